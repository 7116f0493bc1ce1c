"""The objects of the demo scenes: what they are and how they are painted.

Everything is drawn from signed distances on a canvas of 128 units, so that it renders at any
resolution.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import SHAPES, dots, stripes

CANVAS = 128

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 45),
    "green": (40, 160, 70),
    "blue": (40, 80, 215),
    "yellow": (250, 210, 50),
    "turquoise": (60, 205, 205),
    "pink": (240, 100, 190),
    "white": (248, 248, 248),
    "black": (28, 28, 34),
}
TEXTURES = ("plain", "striped", "dotted")

_LIGHT_COLORS = frozenset({"yellow", "turquoise", "white"})

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Thing:
    """One object. Lengths are in canvas units (1/128 of the picture's side).

    Attributes:
        color: Key of `COLORS`.
        shape: Key of `SHAPES`.
        texture: One of `TEXTURES`.
        x: Horizontal centre.
        y: Vertical centre.
        size: Radius of a circle of about the object's area.
    """

    color: str
    shape: str
    texture: str
    x: float
    y: float
    size: float

    def __post_init__(self) -> None:
        for name, known in (("color", COLORS), ("shape", SHAPES), ("texture", TEXTURES)):
            require_known(name, getattr(self, name), known)

    def __str__(self) -> str:
        texture = "" if self.texture == "plain" else f"{self.texture} "
        return f"a {texture}{self.color} {self.shape}"


def require_known(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse the value of an attribute that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}.")


def tones(color: str) -> tuple[Color, Color]:
    """The base colour and the second tone that stripes and dots of this colour have, in 0..1."""
    base = tuple(value / 255 for value in COLORS[color])
    target, share = (0.0, 0.42) if color in _LIGHT_COLORS else (1.0, 0.62)
    return base, tuple(value + share * (target - value) for value in base)  # type: ignore[return-value]


def painted(thing: Thing, resolution: int = CANVAS) -> tuple[Tensor, Tensor]:
    """The object alone: its paint `[H, W, 3]`, not yet cut out, and its mask `[H, W]`."""
    x, y, unit = pixel_grid(resolution)
    distance = _distance(thing, x, y)
    paint = _paint(thing, x - thing.x, y - thing.y, unit)
    rim = 0.78 + 0.22 * _coverage(distance + 2.6, unit)
    return paint * rim[..., None], _coverage(distance, unit)


def mask_of(thing: Thing, resolution: int = CANVAS) -> Tensor:
    """The object's anti-aliased mask `[H, W]`."""
    x, y, unit = pixel_grid(resolution)
    return _coverage(_distance(thing, x, y), unit)


def shadow(thing: Thing, resolution: int = CANVAS) -> Tensor:
    """The object's soft shadow `[H, W]` in 0..1: nothing four and a half units outside it."""
    x, y, _ = pixel_grid(resolution)
    depth = (0.5 - _distance(thing, x - 2.5, y - 3.5) / 9).clamp(0, 1)
    return depth**2 * (3 - 2 * depth)


def pixel_grid(resolution: int) -> tuple[Tensor, Tensor, float]:
    """Pixel centres x, y `[H, W]` in canvas units, and the size of a pixel."""
    unit = CANVAS / resolution
    line = (torch.arange(resolution, dtype=torch.float32) + 0.5) * unit
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y, unit


def _coverage(distance: Tensor, unit: float) -> Tensor:
    """How much of a pixel lies inside (anti-aliasing over one pixel)."""
    return (0.5 - distance / unit).clamp(0, 1)


def _distance(thing: Thing, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the object's outline, in canvas units, negative inside."""
    x, y = (x - thing.x) / thing.size, (y - thing.y) / thing.size
    return thing.size * SHAPES[thing.shape](x, y)


def _paint(thing: Thing, x: Tensor, y: Tensor, unit: float) -> Tensor:
    """The object's surface. The pattern is fixed to the object's centre."""
    base, second = map(torch.tensor, tones(thing.color))
    if thing.texture == "plain":
        return base.expand(*x.shape, 3)
    pattern = stripes(x, y) if thing.texture == "striped" else dots(x, y)
    return base + _coverage(pattern, unit)[..., None] * (second - base)
