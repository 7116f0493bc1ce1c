"""The drags, and what each came to beside the scene drawn moved."""

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...demo.judge import judge, pixels_of_color
from ...demo.scenes import CANVAS, Scene, caption, changed, render
from ...hosts.diffusers.folder import DiffusersModel
from ...hosts.diffusers.sde import Drags, sde_drag
from ...pipelines.copy_paste import Brush, Cell
from ...pipelines.denoiser import RowCount

#: Eta of each process.
PROCESSES = {"sde": 1.0, "ode": 0.0}

RADIUS = 3
CELL = 8
T0 = 0.6
CFG = 3.0
SIZE = 27.0


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
