"""How few steps SDE-Drag needs: scenes whose object is dragged, beside the scene drawn moved.

    python dev.py bench drag [--count 60] [--steps 200,100,50,20] [--process sde,ode]
                             [--kept] [--write]

The object has the smallest size that the embedded model was trained on, 27 pixels in radius, and
the copied square radius 3: 48 pixels, a little less than the object. Every drag is by whole latent
cells, under a mask of what really changes (a cell wider), by the SDE and by the ODE. A drag
succeeds if the object is found within one cell of its target, and less than a tenth of what lay
further than a cell from there is still painted in its colour. What was measured is kept in
benchmarks/results/drag.jsonl, so that an interrupted run goes on. With --write the table goes to
benchmarks/results/drag.md, and a sheet of some drags to drag.jpg.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from ..demo.judge import judge, pixels_of_color
from ..demo.model_files import WEIGHTS
from ..demo.scenes import CANVAS, Scene, caption, changed, render
from ..demo.train import save_grid
from ..hosts.diffusers.folder import DiffusersModel, load_folder
from ..hosts.diffusers.sde import Drags, sde_drag
from ..pipelines.copy_paste import Brush, Cell
from ..pipelines.denoiser import RowCount
from .machine import describe_machine

RESULTS = Path(__file__).parent / "results"
KEPT = RESULTS / "drag.jsonl"
PROCESSES = {"sde": 1.0, "ode": 0.0}
RADIUS = 3
CELL = 8
T0 = 0.6
CFG = 3.0
SIZE = 27.0
SHOWN, SHOWN_STEPS = 6, 50


@dataclass(frozen=True)
class Task:
    """A scene, and by how many cells its object is dragged."""

    scene: Scene
    right: int
    down: int

    @property
    def moved(self) -> Scene:
        """The true result."""
        x, y = self.scene.x + CELL * self.right, self.scene.y + CELL * self.down
        return replace(self.scene, x=x, y=y)

    @property
    def pair(self) -> tuple[Cell, Cell]:
        """Handle and target in latent cells: the object's middle."""
        x, y = int(self.scene.x // CELL), int(self.scene.y // CELL)
        return (x, y), (x + self.right, y + self.down)

    def mask(self) -> Tensor:
        """[1, 1, 16, 16] the cells that really change, and those beside them."""
        pixels = changed(self.scene, self.moved)[None, None]
        cells = torch.nn.functional.max_pool2d(pixels, CELL)
        return torch.nn.functional.max_pool2d(cells, 3, 1, 1)


@dataclass(frozen=True)
class Outcome:
    """What one drag came to.

    Attributes:
        steps: n, of the whole way from pure noise.
        eta: 1 for the SDE, 0 for the ODE.
        task: Number of the task.
        arrived: Whether the object is within one cell of its target.
        gone: Whether less than a tenth of it is left further than a cell from the new object.
        same: Whether it still has its colour and shape.
        background: PSNR in dB outside the old and the new object, to the scene drawn moved.
        rows: UNet rows.
        seconds: Wall time.
    """

    steps: int
    eta: float
    task: int
    arrived: bool
    gone: bool
    same: bool
    background: float
    rows: int
    seconds: float


def tasks(count: int) -> list[Task]:
    """Drags of 2 to 4 cells that leave the object inside the picture."""
    found: list[Task] = []
    seed = 1000
    while len(found) < count:
        seed += 1
        generator = torch.Generator().manual_seed(seed)
        right, down = (int(n) for n in torch.randint(-4, 5, (2,), generator=generator))
        scene = replace(Scene.random(seed), size=SIZE)
        task = Task(scene, right, down)
        reach = 1.16 * scene.size + 5
        ends = (task.moved.x, task.moved.y)
        if 2 <= math.hypot(right, down) <= 4.5 and all(reach <= e <= CANVAS - reach for e in ends):
            found.append(task)
    return found


def run(model: DiffusersModel, number: int, task: Task, steps: int, eta: float) -> Outcome:
    """One drag, judged."""
    rows, started = RowCount(), time.perf_counter()
    image = dragged(model, task, steps, eta, rows)
    seconds = time.perf_counter() - started
    truth, shape = render(task.moved)
    old = render(task.scene)[1]
    found = judge(image)
    near = max(abs(found.x - task.moved.x), abs(found.y - task.moved.y)) <= CELL
    around = torch.nn.functional.max_pool2d(shape[None], 2 * CELL + 1, 1, CELL)[0]
    only_old = (old > 0.5) & (around < 0.01)
    left = pixels_of_color(image, task.scene.color)[only_old].float().mean()
    away = (old < 0.01) & (shape < 0.01)
    error = float((image - truth)[away].square().mean())
    same = found.color == task.scene.color and found.shape == task.scene.shape
    gone = bool(left < 0.1)
    psnr = -10 * math.log10(error)
    return Outcome(steps, eta, number, near, gone, same, psnr, rows.rows, round(seconds, 2))


def dragged(model: DiffusersModel, task: Task, steps: int, eta: float, rows: RowCount) -> Tensor:
    """[128, 128, 3] the picture after the drag."""
    image = render(task.scene)[0][None]
    sigmas = model.unet.ddim_sigmas(steps)[: round(T0 * steps) + 1]
    latent = sde_drag(
        model.unet,
        model.encode(image),
        model.prompt(caption(task.scene)),
        model.prompt(""),
        sigmas,
        Drags([task.pair], Brush(RADIUS)),
        cfg=CFG,
        eta=eta,
        mask=task.mask(),
        levels_at_once=12,
        rows=rows,
    )
    return model.decode(latent)[0]


def kept() -> dict[tuple[int, float, int], Outcome]:
    """What earlier runs measured."""
    if not KEPT.exists():
        return {}
    outcomes = (Outcome(**json.loads(line)) for line in KEPT.read_text().splitlines())
    return {(o.steps, o.eta, o.task): o for o in outcomes}


def measure(
    model: DiffusersModel, every: list[Task], steps: list[int], etas: list[float]
) -> Iterator[Outcome]:
    """All outcomes, those already kept without running them again."""
    done = kept()
    for n in sorted(steps):
        for eta in etas:
            for number, task in enumerate(every):
                outcome = done.get((n, eta, number))
                if outcome is None:
                    outcome = run(model, number, task, n, eta)
                    with KEPT.open("a") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
                yield outcome


def table(outcomes: list[Outcome], steps: list[int]) -> str:
    """The table as Markdown; a line for what was measured, with the number of drags."""
    lines = [
        "| n | | drags | success | arrived | nothing left | colour and shape kept | background "
        "PSNR | rows a drag | rows a drag step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n in sorted(steps, reverse=True):
        for name, eta in PROCESSES.items():
            own = [o for o in outcomes if (o.steps, o.eta) == (n, eta)]
            if not own:
                continue
            shares = [_share([o.arrived and o.gone for o in own])]
            shares += [_share([getattr(o, k) for o in own]) for k in ("arrived", "gone", "same")]
            psnr = sum(o.background for o in own) / len(own)
            rows = sum(o.rows for o in own) / len(own)
            lines.append(
                f"| {n} | {name.upper()} | {len(own)} | {' | '.join(shares)} | {psnr:.1f} dB | "
                f"{rows:.0f} | {min(o.rows for o in own)} |"
            )
    return "\n".join(lines) + "\n"


def paired(outcomes: list[Outcome], steps: list[int]) -> str:
    """The SDE on the drags that were run at every n, since a drag is not like another."""
    done = {n: {o.task: o for o in outcomes if o.steps == n and o.eta == 1.0} for n in steps}
    common = set.intersection(*(set(own) for own in done.values()))
    won = {n: sum(done[n][t].arrived and done[n][t].gone for t in common) for n in steps}
    told = ", ".join(f"{won[n]} at n = {n}" for n in sorted(steps, reverse=True))
    return f"Of the {len(common)} drags that the SDE was run on at every n, it succeeded in {told}."


def _share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.0%}"


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="dev.py bench drag", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="how many drags")
    parser.add_argument("--steps", default="200,100,50,20", help="n, by commas")
    parser.add_argument("--process", default="sde,ode", help="sde, ode or both, by a comma")
    parser.add_argument("--kept", action="store_true", help="measure nothing that is not kept")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/drag.md")
    options = parser.parse_args(arguments)
    steps = [int(n) for n in options.steps.split(",")]
    model, every = load_folder(WEIGHTS), tasks(options.count)
    etas = [PROCESSES[name] for name in options.process.split(",")]
    if not options.kept:
        for outcome in measure(model, every, steps, etas):
            print(outcome, flush=True)
    outcomes = [o for o in kept().values() if o.steps in steps and o.task < options.count]
    print(table(outcomes, steps), paired(outcomes, steps))
    if options.write:
        RESULTS.joinpath("drag.md").write_text(page(outcomes, steps), encoding="utf-8")
        shown = sheet(model, every[:SHOWN], SHOWN_STEPS)
        save_grid(shown, RESULTS / "drag.jpg", columns=4)
    return 0


def sheet(model: DiffusersModel, every: list[Task], steps: int) -> Tensor:
    """[N, 3, 128, 128]: each drag's picture, SDE, ODE and truth, side by side."""
    pictures = []
    for task in every:
        results = [dragged(model, task, steps, eta, RowCount()) for eta in (1.0, 0.0)]
        pictures += [render(task.scene)[0], *results, render(task.moved)[0]]
    return torch.stack(pictures).movedim(-1, 1)


def page(outcomes: list[Outcome], steps: list[int]) -> str:
    """The results page."""
    count = len({o.task for o in outcomes})
    return f"""# SDE-Drag: how few steps are enough

{count} scenes of the embedded model, their object (radius {SIZE:g} pixels) dragged by 2 to 4 latent
cells of 8 pixels; t0 {T0}, guidance ramp 1 to {CFG:g}, stride 2, alpha 1.1, beta 0.3, mask on what
really changes and one cell around. The copied square has radius {RADIUS}. *Success*: the object is
found within one cell of its target (*arrived*), and less than a tenth of what lay further than a
cell from there is still painted in its colour (*nothing left*). *Background*: outside both objects,
to the scene drawn moved. n counts the steps of the whole way from pure noise; {T0:.0%} of them are
walked.

{table(outcomes, steps)}
{paired(outcomes, steps)}

![The first drags: picture, SDE, ODE, and the scene drawn moved](drag.jpg)

The first drags at n = {SHOWN_STEPS}, a row each: picture, SDE, ODE, the scene drawn moved.

`python dev.py bench drag --write` makes this page. {date.today():%d %B %Y}, {describe_machine()}.
"""
