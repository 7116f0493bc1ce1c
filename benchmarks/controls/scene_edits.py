"""Edits of scenes with two objects, or with a place, and what one of them came to."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ...demo.judge import Judgement, agreement, found_in
from ...demo.layouts import scene_of
from ...demo.scenes import (
    BACKGROUNDS,
    COLORS,
    EXCLUDED,
    PLACES,
    SHAPES,
    TEXTURES,
    Scene,
    every_content,
)
from ...demo.things import Thing
from ..inversions.scene_edits import CELL, psnr
from ..inversions.scene_edits import Task as OneThing

#: What changes: something of one of two objects, the background of both, or one object's place.
Kind = Literal["color", "shape", "texture", "background", "place"]

KINDS: tuple[Kind, ...] = ("color", "shape", "texture", "background", "place")

#: What one of two objects can become.
OF_ONE: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": tuple(SHAPES),
    "texture": TEXTURES,
}

FIRST_SEED = 70_000


@dataclass(frozen=True)
class Task(OneThing):
    """A scene of two objects, or with a place, and the scene that it shall become.

    Attributes:
        second: Whether it is the second object's.
    """

    second: bool = False

    @property
    def words(self) -> tuple[str, str]:
        """What the edited object is called in either prompt; the first, where all are edited."""
        return tuple(s.things[self.second].shape for s in (self.scene, self.wanted))

    @property
    def told(self) -> str:
        """What changes, in a few words."""
        name = f"other_{self.kind}" if self.second else self.kind
        before, after = (_value(scene, name) for scene in (self.scene, self.wanted))
        told = f"{before} to {after}"
        for filler in ("on the ", "at the ", "the ", "a "):
            told = told.replace(filler, "")
        return told


def _value(scene: Scene, name: str) -> str:
    other = name.removeprefix("other_")
    return getattr(scene if other == name else scene.other, other)


def tasks(count: int, kind: Kind) -> list[Task]:
    """So many edits of a kind; a prefix of a longer list is the shorter one."""
    return [_task(kind, 1000 * KINDS.index(kind) + FIRST_SEED + n) for n in range(count)]


def _task(kind: Kind, seed: int) -> Task:
    scene = scene_of("placed" if kind == "place" else "pair", seed, every_content())
    second = kind in OF_ONE and seed % 2 == 1
    return Task(kind, scene, _one_of(_wanted(scene, kind, second), seed), second)


def _wanted(scene: Scene, kind: Kind, second: bool) -> list[Scene]:
    """What a scene may become: something that can be drawn, and still two different objects."""
    if kind == "place":
        return [scene.with_(place=PLACES[scene.place])]
    if kind == "background":
        edits = [{"background": name} for name in BACKGROUNDS if name != scene.background]
    else:
        name = f"other_{kind}" if second else kind
        # Two objects differ in colour and in shape; their textures may be the same.
        taken = {_value(scene, name)} | {
            getattr(t, kind) for t in scene.things if kind != "texture"
        }
        edits = [{name: value} for value in OF_ONE[kind] if value not in taken]
    wanted = [replace(scene.with_(**edit), seed=scene.seed) for edit in edits]
    return [s for s in wanted if all((t.color, s.background) not in EXCLUDED for t in s.things)]


def _one_of(scenes: list[Scene], seed: int) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    return scenes[int(torch.randint(len(scenes), (), generator=generator))]


@dataclass(frozen=True)
class Score:
    """What an edited picture shows.

    Attributes:
        success: Whether all that the target's caption says is in it.
        changed: Whether that is there which the edit was asked for.
        other: Whether the object that was not meant is as it was, within a latent cell of its
            place; None where there is none.
        background: PSNR in dB to the picture, where nothing may change; None where all may.
        likeness: SSIM to the drawn edit, of the whole picture.
    """

    success: bool
    changed: bool
    other: bool | None
    background: float | None
    likeness: float


def score(task: Task, edited: Tensor) -> Score:
    """Judge an edit [1, 128, 128, 3] in 0..1."""
    agrees, where = agreement(edited[0], task.wanted), task.kept()
    first = (t.permute(0, 3, 1, 2) for t in (edited, task.truth))
    return Score(
        success=all(agrees.values()),
        changed=agrees[f"other_{task.kind}" if task.second else task.kind],
        other=_other(task, edited[0]),
        background=psnr(edited[0][where], task.picture[0][where]) if where.any() else None,
        likeness=float(structural_similarity_index_measure(*first, data_range=1.0)),
    )


def _other(task: Task, image: Tensor) -> bool | None:
    if task.kind not in OF_ONE:
        return None
    meant = not task.second
    return _is(found_in(image, task.wanted)[meant], task.scene.things[meant])


def _is(found: Judgement, thing: Thing) -> bool:
    same = all(getattr(found, name) == getattr(thing, name) for name in OF_ONE)
    return same and max(abs(found.x - thing.x), abs(found.y - thing.y)) <= CELL
