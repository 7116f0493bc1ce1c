"""Scenes with exact captions, exact masks and ground-truth edits: what the demo model paints.

One object (colour, shape, texture) lies on one of six textured backgrounds. Everything is drawn
from signed distances on a canvas of 128 units, so that a scene renders at any resolution. Features
are at least six pixels wide and free of grain: a latent of 16 x 16 x 4 numbers can carry them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from .backgrounds import BACKGROUNDS

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

#: A background that would hide an object: these pairs are never drawn.
EXCLUDED = frozenset(
    {
        ("red", "a brick wall"),
        ("green", "grass"),
        ("yellow", "sand"),
        ("white", "snow"),
        ("blue", "the sea"),
        ("turquoise", "the sea"),
    }
)

_LIGHT_COLORS = frozenset({"yellow", "turquoise", "white"})
_MARGIN = 5.0
_SIZES = (27.0, 40.0)
_HELD_OUT = 200

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Lengths are in canvas units (1/128 of the picture's side).

    Attributes:
        color: Key of `COLORS`.
        shape: Key of `SHAPES`.
        texture: One of `TEXTURES`.
        background: Key of `BACKGROUNDS`.
        x: Horizontal centre of the object.
        y: Vertical centre of the object.
        size: Radius of a circle of about the object's area.
        seed: Draws the details of the background, and nothing else.
    """

    color: str
    shape: str
    texture: str
    background: str
    x: float
    y: float
    size: float
    seed: int

    def __post_init__(self) -> None:
        for name, known in _attributes().items():
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}.")

    @classmethod
    def random(cls, seed: int, captions: "tuple[Scene, ...] | None" = None) -> "Scene":
        """Draw a scene; `captions` limits what it may show to what those scenes show."""
        generator = torch.Generator().manual_seed(seed)
        pool = every_content() if captions is None else captions
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        content = pool[int(u[0] * len(pool))]
        size = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * u[1]
        reach = 1.16 * size + _MARGIN
        x, y = (reach + (CANVAS - 2 * reach) * value for value in u[2:])
        return replace(content, x=round(x, 2), y=round(y, 2), size=round(size, 2), seed=seed)

    def with_(
        self,
        *,
        color: str | None = None,
        shape: str | None = None,
        texture: str | None = None,
        background: str | None = None,
    ) -> "Scene":
        """The ground-truth edit: the same place, size and background details, something else."""
        return replace(
            self,
            color=color or self.color,
            shape=shape or self.shape,
            texture=texture or self.texture,
            background=background or self.background,
        )


def caption(scene: Scene) -> str:
    """Say what a scene shows, e.g. "a striped red heart on a brick wall"."""
    texture = "" if scene.texture == "plain" else f"{scene.texture} "
    return f"a {texture}{scene.color} {scene.shape} on {scene.background}"


def render(scene: Scene, resolution: int = CANVAS) -> tuple[Tensor, Tensor]:
    """Draw a scene.

    Returns:
        The image `[H, W, 3]` in 0..1 and the object's anti-aliased mask `[H, W]`.
    """
    x, y, _ = _grid(resolution)
    image = BACKGROUNDS[scene.background](x, y, scene.seed)
    image = image * (1 - 0.33 * _shadow(scene, x, y))[..., None]
    paint, mask = painted(scene, resolution)
    image = image + mask[..., None] * (paint - image)
    return image.clamp(0, 1), mask


def painted(scene: Scene, resolution: int = CANVAS) -> tuple[Tensor, Tensor]:
    """The object alone: its paint `[H, W, 3]`, not yet cut out, and its mask `[H, W]`."""
    x, y, unit = _grid(resolution)
    distance = _distance(scene, x, y)
    paint = _paint(scene, x - scene.x, y - scene.y, unit)
    rim = 0.78 + 0.22 * _coverage(distance + 2.6, unit)
    return paint * rim[..., None], _coverage(distance, unit)


def _grid(resolution: int) -> tuple[Tensor, Tensor, float]:
    """Pixel centres x, y `[H, W]` in canvas units, and the size of a pixel."""
    unit = CANVAS / resolution
    line = (torch.arange(resolution, dtype=torch.float32) + 0.5) * unit
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y, unit


def changed(scene_a: Scene, scene_b: Scene, resolution: int = CANVAS) -> Tensor:
    """Mask `[H, W]` of 0 and 1: where an edit from one scene to the other may change pixels."""
    difference = render(scene_a, resolution)[0] - render(scene_b, resolution)[0]
    return (difference.abs().amax(-1) > 1 / 512).float()


def every_content() -> tuple[Scene, ...]:
    """Every combination of attributes that may be drawn, at one standard place."""
    return tuple(_contents())


def held_out() -> tuple[Scene, ...]:
    """The 200 combinations whose captions the demo model never saw in training."""
    contents = every_content()
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(len(contents), generator=generator).tolist()
    return tuple(contents[i] for i in order[:_HELD_OUT])


def training_content() -> tuple[Scene, ...]:
    """The combinations that training sees: all but those of `held_out`."""
    hidden = set(held_out())
    return tuple(content for content in every_content() if content not in hidden)


def tones(color: str) -> tuple[Color, Color]:
    """The base colour and the second tone that stripes and dots of this colour have, in 0..1."""
    base = tuple(value / 255 for value in COLORS[color])
    target, share = (0.0, 0.42) if color in _LIGHT_COLORS else (1.0, 0.62)
    return base, tuple(value + share * (target - value) for value in base)  # type: ignore[return-value]


def _attributes() -> dict[str, tuple[str, ...]]:
    return {
        "color": tuple(COLORS),
        "shape": tuple(SHAPES),
        "texture": TEXTURES,
        "background": tuple(BACKGROUNDS),
    }


def _contents() -> Iterator[Scene]:
    for color, shape, texture, background in product(*_attributes().values()):
        if (color, background) not in EXCLUDED:
            yield Scene(color, shape, texture, background, CANVAS / 2, CANVAS / 2, 30.0, 0)


def _coverage(distance: Tensor, unit: float) -> Tensor:
    """How much of a pixel lies inside (anti-aliasing over one pixel)."""
    return (0.5 - distance / unit).clamp(0, 1)


def _distance(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the object's outline, in canvas units, negative inside."""
    x, y = (x - scene.x) / scene.size, (y - scene.y) / scene.size
    return scene.size * SHAPES[scene.shape](x, y)


def _shadow(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    """The object's soft shadow, in 0..1: exactly nothing four and a half units outside it."""
    depth = (0.5 - _distance(scene, x - 2.5, y - 3.5) / 9).clamp(0, 1)
    return depth**2 * (3 - 2 * depth)


def _paint(scene: Scene, x: Tensor, y: Tensor, unit: float) -> Tensor:
    """The object's surface. The pattern is fixed to the object's centre."""
    base, second = map(torch.tensor, tones(scene.color))
    if scene.texture == "plain":
        return base.expand(*x.shape, 3)
    pattern = stripes(x, y) if scene.texture == "striped" else dots(x, y)
    return base + _coverage(pattern, unit)[..., None] * (second - base)


def stripes(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to slanted stripes, negative inside."""
    along = (x + y) / math.sqrt(2)
    return ((along / 16) % 1 - 0.5).abs() * 16 - 3.6


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to staggered dots, negative inside."""
    spacing = 13.0
    row = torch.round(y / spacing)
    shift = spacing / 2 * (row % 2)
    dx = x - shift - spacing * torch.round((x - shift) / spacing)
    return torch.hypot(dx, y - spacing * row) - 4.0


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    dx, dy = x.abs() - width, y.abs() - height
    outside = torch.hypot(dx.clamp_min(0), dy.clamp_min(0))
    return outside + torch.maximum(dx, dy).clamp_max(0)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.8, 0.8) - 0.08


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 1.0, 0.32), _box(x, y, 0.32, 1.0)) - 0.06


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon: nearest edge, sign by the crossing rule."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        t = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(wx - t * ex, wy - t * ey))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (wx < (y - ay) * ex / (ey if ey else 1.0))
    return torch.where(inside, -nearest, nearest)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    turns = (math.pi * (2 * i / 3 - 0.5) for i in range(3))
    return _polygon(x, y - 0.22, [(1.2 * math.cos(a), 1.2 * math.sin(a)) for a in turns]) - 0.1


def _star(x: Tensor, y: Tensor) -> Tensor:
    corners = []
    for i in range(10):
        radius, angle = (1.16, 0.55)[i % 2], math.pi * (i / 5 - 0.5)
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    return _polygon(x, y - 0.06, corners) - 0.05


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Inigo Quilez's heart: https://iquilezles.org/articles/distfunctions2d/."""
    scale = 1.8
    u, v = x.abs() / scale, (0.95 - y) / scale
    upper = torch.hypot(u - 0.25, v - 0.75) - math.sqrt(2) / 4
    half = 0.5 * (u + v).clamp_min(0)
    tip = torch.minimum(u**2 + (v - 1) ** 2, (u - half) ** 2 + (v - half) ** 2).sqrt()
    return scale * torch.where(u + v > 1, upper, tip * torch.sign(u - v))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
}
