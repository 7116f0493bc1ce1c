"""Edits of scenes whose true result is known, and what one of them came to.

An edit changes one thing that the caption says: the object's colour, its shape, its texture, or the
background. The mask of what may change is where the two drawings differ, a latent cell wider.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ...demo.judge import Judgement, judge
from ...demo.scenes import BACKGROUNDS, COLORS, EXCLUDED, SHAPES, TEXTURES, Scene, caption, changed
from ...demo.scenes import render as drawn

Kind = Literal["color", "shape", "texture", "background"]

#: What an edit may change, and to what.
CHOICES: dict[Kind, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": tuple(SHAPES),
    "texture": TEXTURES,
    "background": tuple(BACKGROUNDS),
}
CELL = 8
FIRST_SEED = 5000


@dataclass(frozen=True)
class Task:
    """A scene, and the scene that it shall become.

    Attributes:
        kind: What changes.
        scene: As it is.
        wanted: As it shall be: the same place, size and background details.
    """

    kind: Kind
    scene: Scene
    wanted: Scene

    @property
    def captions(self) -> tuple[str, str]:
        """Source and target prompt."""
        return caption(self.scene), caption(self.wanted)

    @property
    def picture(self) -> Tensor:
        """[1, 128, 128, 3] the scene as it is."""
        return drawn(self.scene)[0][None]

    @property
    def truth(self) -> Tensor:
        """[1, 128, 128, 3] the scene as it shall be."""
        return drawn(self.wanted)[0][None]

    @property
    def told(self) -> str:
        """What changes, in a few letters."""
        before, after = (getattr(scene, self.kind) for scene in (self.scene, self.wanted))
        return f"{before} to {after}".replace("a ", "").replace("the ", "")

    def kept(self) -> Tensor:
        """[128, 128] bool: where nothing may change, a latent cell away from what does."""
        wide = max_pool2d(changed(self.scene, self.wanted)[None], 2 * CELL + 1, 1, CELL)[0]
        return wide == 0


def tasks(count: int) -> list[Task]:
    """So many edits, of each kind in turn; a prefix of a longer list is the shorter one."""
    kinds = tuple(CHOICES)
    return [_task(kinds[n % len(kinds)], FIRST_SEED + n) for n in range(count)]


def _task(kind: Kind, seed: int) -> Task:
    scene = Scene.random(seed)
    every = [scene.with_(**{kind: value}) for value in CHOICES[kind]]
    others = [s for s in every if s != scene and (s.color, s.background) not in EXCLUDED]
    generator = torch.Generator().manual_seed(seed)
    wanted = others[int(torch.randint(len(others), (), generator=generator))]
    return Task(kind, scene, replace(wanted, seed=scene.seed))


@dataclass(frozen=True)
class Score:
    """What an edited picture shows.

    Attributes:
        success: Whether all that the target's caption says is in it.
        changed: Whether that is there which the edit was asked for.
        kept: Whether all else of the caption is as it was, and the object within a latent cell of
            its place.
        background: PSNR in dB to the picture, where nothing may change.
        background_vae: The same to the picture as the VAE gives it back.
    """

    success: bool
    changed: bool
    kept: bool
    background: float
    background_vae: float


def score(task: Task, edited: Tensor, round_trip: Tensor) -> Score:
    """Judge an edit.

    Args:
        task: What was asked for.
        edited: [1, 128, 128, 3] the result in 0..1.
        round_trip: [1, 128, 128, 3] the picture, encoded and decoded.
    """
    found, where = judge(edited[0]), task.kept()
    agrees = found.agrees(task.wanted)
    others = all(right for name, right in agrees.items() if name != task.kind)
    return Score(
        success=all(agrees.values()),
        changed=agrees[task.kind],
        kept=others and _in_place(found, task.wanted),
        background=psnr(edited[0][where], task.picture[0][where]),
        background_vae=psnr(edited[0][where], round_trip[0][where]),
    )


def _in_place(found: Judgement, scene: Scene) -> bool:
    return max(abs(found.x - scene.x), abs(found.y - scene.y)) <= CELL


def psnr(a: Tensor, b: Tensor) -> float:
    """Of numbers in 0..1, in dB; infinite where all are equal."""
    error = float((a - b).square().mean())
    return -10 * math.log10(error) if error else math.inf
