"""Every inversion under the same edit: what comes back, what changes, what stays, what it costs.

    python dev.py bench inversions [--count 60] [--methods NAME,...] [--cfg 2,3] [--kept]
                                   [--write] [--sheet]

Scenes of the embedded model are edited under Prompt-to-Prompt (`scene_edits`): colour, shape,
texture and background in turn. All methods have the same steps, guidance and windows; where one
needs others, `methods` says so. --cfg measures them at other guidances too, so that they
can be compared where they succeed about equally often (`guidance`). Rows and seconds are
those of inversion and edit; what it takes to follow a drifting source for its reconstruction is in
neither. Seconds are those of the processor, on one core: what else it had to do does not count.

What was measured is kept in benchmarks/results/inversions.jsonl, so that an interrupted run goes
on, and so that several may measure different methods at once. With --write the table goes to
benchmarks/results/inversions.md; with --sheet some edits are made once more and drawn to
inversions.jpg.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...demo.model_files import WEIGHTS
from ...hosts.diffusers.folder import DiffusersModel, load_folder
from ...hosts.drawing.sheet import Sheet, as_picture, draw_sheet
from ..kept import keep, kept_by, told
from ..tables import RESULTS
from .guidance import by_guidance, orders
from .methods import METHODS, edit
from .outcome import Outcome
from .page import page, table
from .scene_edits import Score, Task, psnr, score, tasks

#: A method, the number of a task, and a guidance that is not the method's own.
Key = tuple[str, int, float | None]

KEPT = RESULTS / "inversions.jsonl"

#: Edits on the sheet: two of each kind.
SHOWN = 8


def run(model: DiffusersModel, key: Key, task: Task) -> Outcome:
    """One edit, judged."""
    name, number, cfg = key
    method = METHODS[name]
    edited = edit(model, task, method if cfg is None else replace(method, cfg=cfg))
    latent = model.encode(task.picture)
    round_trip, row, image = map(model.decode, (latent, edited.source, edited.latent))
    back = None if torch.equal(edited.source, latent) else psnr(row, round_trip)
    found = score(task, image, round_trip)
    return Outcome(name, number, task.kind, found, back, edited.rows, round(edited.seconds, 2), cfg)


def kept() -> dict[Key, Outcome]:
    """What earlier runs measured."""
    outcomes = map(Outcome.read, kept_by(WEIGHTS, KEPT))
    return {(o.method, o.task, o.cfg): o for o in outcomes}


def measure(
    model: DiffusersModel, every: list[Task], names: list[str], guidances: list[float | None]
) -> Iterator[Outcome]:
    """All outcomes, those already kept without running them again."""
    done = kept()
    for number, task in enumerate(every):
        for name, cfg in itertools.product(names, guidances):
            key = (name, number, None if cfg == METHODS[name].cfg else cfg)
            outcome = done.get(key)
            if outcome is None:
                outcome = run(model, key, task)
                keep(WEIGHTS, KEPT, outcome)
            yield outcome


def ceiling(model: DiffusersModel, every: list[Task]) -> list[Score]:
    """What the true results score, as the VAE gives them back."""
    return [
        score(task, *(model.decode(model.encode(image)) for image in (task.truth, task.picture)))
        for task in every
    ]


def draw(model: DiffusersModel, every: list[Task]) -> Tensor:
    """[1, H, W, 3] a sheet of the first edits, a column each, by every method."""
    pictures = [task.picture[0] for task in every] + [task.truth[0] for task in every]
    for method in METHODS.values():
        pictures += [model.decode(edit(model, task, method).latent)[0] for task in every]
    columns = [f"{task.kind}\n{task.told}" for task in every]
    rows = ["picture", "drawn edited", *(method.name for method in METHODS.values())]
    return draw_sheet(Sheet(torch.stack(pictures), columns, rows, "Inversions compared", least=128))


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="dev.py bench inversions", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="how many edits")
    parser.add_argument("--methods", default=",".join(METHODS), help="which, by commas")
    parser.add_argument("--cfg", default="", help="guidances, by commas, in place of their own")
    parser.add_argument("--kept", action="store_true", help="measure nothing that is not kept")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--sheet", action="store_true", help="draw the sheet")
    options = parser.parse_args(arguments)
    names = options.methods.split(",")
    if unknown := set(names) - METHODS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    model, every = load_folder(WEIGHTS), tasks(options.count)
    if not options.kept:
        guidances = [float(cfg) for cfg in options.cfg.split(",") if cfg] or [None]
        for outcome in measure(model, every, names, guidances):
            print(outcome, flush=True)
    measured = [o for o in kept().values() if o.method in names and o.task < options.count]
    outcomes = told(measured, KEPT)
    print(table([o for o in outcomes if o.cfg is None]))
    print(by_guidance(outcomes))
    print(orders(outcomes))
    if options.write:
        best = ceiling(model, every)
        RESULTS.joinpath("inversions.md").write_text(page(outcomes, best), encoding="utf-8")
    if options.sheet:
        as_picture(draw(model, every[:SHOWN])[0]).save(RESULTS / "inversions.jpg", quality=88)
    return 0
