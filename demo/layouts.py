"""Draws every kind of scene that the demo model learns: with one object or two, and with places.

A scene of two shows two contents of `scenes.py` on their common background. It is held out where
both are, and seen in training where both are: neither object of a held-out caption was ever seen on
its background.
"""

from dataclasses import replace
from typing import TypeVar

import torch

from .scenes import CANVAS, PLACES, Scene, point_at
from .things import Thing

#: One object; one with its place; two; two with their places.
KINDS = ("one", "placed", "pair", "placed pair")

_ALONE = (26.0, 30.0)
_IN_PAIR = (21.0, 25.0)
#: The centre of an object that has a place lies at most so deep behind its edge.
_DEEPEST = 48.0
_MARGIN = 5.0
#: Between an object of a pair and the canvas's edge, and to the middle that no pair crosses.
_PAIR_MARGIN = 3.0

Choice = TypeVar("Choice")


def scene_of(kind: str, seed: int, contents: tuple[Scene, ...]) -> Scene:
    """Draw a scene of a kind of `KINDS` that shows one of `contents`, or two of them."""
    draw = {"one": Scene.random, "placed": _placed, "pair": _pair, "placed pair": _placed_pair}
    return draw[kind](seed, contents)


def _placed(seed: int, contents: tuple[Scene, ...]) -> Scene:
    u = _draws(seed, 5)
    content = _one_of(contents, u[0])
    place = _one_of(tuple(PLACES), u[1])
    size = _between(*_ALONE, u[2])
    reach = 1.16 * size + _MARGIN
    x, y = point_at(place, _between(reach, _DEEPEST, u[3]), _between(reach, CANVAS - reach, u[4]))
    return replace(content, x=x, y=y, size=size, seed=seed, place=place)


def _placed_pair(seed: int, contents: tuple[Scene, ...]) -> Scene:
    """Two objects, each in its half of the canvas."""
    u = _draws(seed, 9)
    content = _one_of(contents, u[0])
    other = _one_of(tuple(c for c in contents if _goes_with(c, content)), u[1])
    place = _one_of(tuple(PLACES), u[2])
    size, x, y = _spot(place, *u[3:6])
    other_size, other_x, other_y = _spot(PLACES[place], *u[6:9])
    thing = Thing(other.color, other.shape, other.texture, other_x, other_y, other_size)
    return replace(content, x=x, y=y, size=size, seed=seed, other=thing, place=place)


def _pair(seed: int, contents: tuple[Scene, ...]) -> Scene:
    """Two objects whose places the caption does not name: the first lies on the left, or above."""
    scene = _placed_pair(seed, contents)
    before = {"on the right": "on the left", "at the bottom": "at the top"}
    turned = scene.with_(place=before.get(scene.place or "", scene.place))
    return replace(turned, place=None)


def _goes_with(a: Scene, b: Scene) -> bool:
    return a.background == b.background and a.color != b.color and a.shape != b.shape


def _spot(place: str, u_size: float, u_depth: float, u_along: float) -> tuple[float, float, float]:
    """Size, x and y of an object of a pair."""
    size = _between(*_IN_PAIR, u_size)
    reach = 1.16 * size + _PAIR_MARGIN
    depth = _between(reach, CANVAS / 2 - reach, u_depth)
    return size, *point_at(place, depth, _between(reach, CANVAS - reach, u_along))


def _draws(seed: int, count: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def _between(low: float, high: float, share: float) -> float:
    return round(low + (high - low) * share, 2)


def _one_of(choices: tuple[Choice, ...], share: float) -> Choice:
    return choices[int(share * len(choices))]
