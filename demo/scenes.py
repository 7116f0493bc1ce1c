"""Scenes with exact captions, exact masks and ground-truth edits: what the demo model paints.

One object (colour, shape, texture), or two, on one of six textured backgrounds. Features are at
least six pixels wide and free of grain: a latent of 16 x 16 x 4 numbers can carry them. Scenes with
a place or with a second object are drawn by `layouts.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from .backgrounds import BACKGROUNDS
from .shapes import SHAPES
from .things import (
    CANVAS,
    COLORS,
    TEXTURES,
    Thing,
    mask_of,
    painted,
    pixel_grid,
    require_known,
    shadow,
)

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

#: The places that a caption may name, each with the one across: halves of the canvas.
PLACES = {
    "on the left": "on the right",
    "on the right": "on the left",
    "at the top": "at the bottom",
    "at the bottom": "at the top",
}

_MARGIN = 5.0
_SIZES = (27.0, 40.0)
_HELD_OUT = 200


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
        other: The second object, of another colour and another shape; None where there is none.
        place: Key of `PLACES`: where the object lies and its caption says so, with the second
            object across; None where the caption is silent.
    """

    color: str
    shape: str
    texture: str
    background: str
    x: float
    y: float
    size: float
    seed: int
    other: Thing | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        for name, known in _attributes().items():
            require_known(name, getattr(self, name), known)
        if self.other and (self.color == self.other.color or self.shape == self.other.shape):
            raise ValueError(f"{self.first} and {self.other} must differ in color and in shape.")
        if self.place is not None:
            require_known("place", self.place, PLACES)
            for thing, place in zip(self.things, (self.place, PLACES[self.place]), strict=False):
                if not lies(thing.x, thing.y, place):
                    raise ValueError(f"{thing} at {thing.x:g}, {thing.y:g} is not {place}.")

    @classmethod
    def random(cls, seed: int, captions: "tuple[Scene, ...] | None" = None) -> "Scene":
        """Draw a scene of one object; `captions` limits what it may show to what those show."""
        generator = torch.Generator().manual_seed(seed)
        pool = every_content() if captions is None else captions
        u = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        content = pool[int(u[0] * len(pool))]
        size = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * u[1]
        reach = 1.16 * size + _MARGIN
        x, y = (reach + (CANVAS - 2 * reach) * value for value in u[2:])
        return replace(content, x=round(x, 2), y=round(y, 2), size=round(size, 2), seed=seed)

    @property
    def first(self) -> Thing:
        """The object that the caption names first."""
        return Thing(self.color, self.shape, self.texture, self.x, self.y, self.size)

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects, in the order of the caption."""
        return (self.first, self.other) if self.other else (self.first,)

    def with_(
        self,
        *,
        color: str | None = None,
        shape: str | None = None,
        texture: str | None = None,
        background: str | None = None,
        other_color: str | None = None,
        other_shape: str | None = None,
        other_texture: str | None = None,
        place: str | None = None,
    ) -> "Scene":
        """The ground-truth edit: the same size and background details, something else.

        `other_...` edits the second object. A new `place` moves the object there, and the second
        one across; without it everything stays where it is.
        """
        moved = self if place is None else _moved(self, place)
        if other_color or other_shape or other_texture:
            if moved.other is None:
                raise ValueError(f"There is no second object beside {caption(self)}.")
            other = _edited(moved.other, other_color, other_shape, other_texture)
        else:
            other = moved.other
        first = _edited(moved.first, color, shape, texture)
        return replace(
            moved,
            color=first.color,
            shape=first.shape,
            texture=first.texture,
            background=background or moved.background,
            other=other,
        )


def caption(scene: Scene) -> str:
    """Say what a scene shows, e.g. "a striped red heart on a brick wall"."""
    return f"{' and '.join(phrases(scene))} on {scene.background}"


def phrases(scene: Scene) -> list[str]:
    """What the caption says of every object, e.g. "a red heart on the left"."""
    places = ("", "") if scene.place is None else (f" {scene.place}", f" {PLACES[scene.place]}")
    return [f"{thing}{place}" for thing, place in zip(scene.things, places, strict=False)]


def render(scene: Scene, resolution: int = CANVAS) -> tuple[Tensor, Tensor]:
    """Draw a scene.

    Returns:
        The image `[H, W, 3]` in 0..1 and the first object's anti-aliased mask `[H, W]`.
    """
    x, y, _ = pixel_grid(resolution)
    image = BACKGROUNDS[scene.background](x, y, scene.seed)
    for thing in scene.things:
        image = image * (1 - 0.33 * shadow(thing, resolution))[..., None]
    for thing in scene.things:
        paint, mask = painted(thing, resolution)
        image = image + mask[..., None] * (paint - image)
    return image.clamp(0, 1), mask_of(scene.first, resolution)


def masks(scene: Scene, resolution: int = CANVAS) -> Tensor:
    """The anti-aliased mask `[objects, H, W]` of every object, in the order of the caption."""
    return torch.stack([mask_of(thing, resolution) for thing in scene.things])


def changed(scene_a: Scene, scene_b: Scene, resolution: int = CANVAS) -> Tensor:
    """Mask `[H, W]` of 0 and 1: where an edit from one scene to the other may change pixels."""
    difference = render(scene_a, resolution)[0] - render(scene_b, resolution)[0]
    return (difference.abs().amax(-1) > 1 / 512).float()


def every_content() -> tuple[Scene, ...]:
    """Every combination of one object's attributes that may be drawn, at one standard place."""
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


def point_at(place: str, depth: float, along: float) -> tuple[float, float]:
    """The point x, y that lies `depth` behind the edge a place is named after, `along` it."""
    far = round(CANVAS - depth, 2)
    return {
        "on the left": (depth, along),
        "on the right": (far, along),
        "at the top": (along, depth),
        "at the bottom": (along, far),
    }[place]


def lies(x: float, y: float, place: str) -> bool:
    """Whether a point lies in the half of the canvas that a place names."""
    return _depth(x, y, place)[0] < CANVAS / 2


def _depth(x: float, y: float, place: str) -> tuple[float, float]:
    """Depth behind the edge a place is named after, and the way along it."""
    return {
        "on the left": (x, y),
        "on the right": (round(CANVAS - x, 2), y),
        "at the top": (y, x),
        "at the bottom": (round(CANVAS - y, 2), x),
    }[place]


def _moved(scene: Scene, place: str) -> Scene:
    """Every object as deep behind the new edge, and as far along it, as it was at the old one."""
    if scene.place is None:
        raise ValueError(f"The caption names no place that could change: {caption(scene)}.")
    require_known("place", place, PLACES)
    x, y = point_at(place, *_depth(scene.x, scene.y, scene.place))
    other = scene.other
    if other:
        depth, along = _depth(other.x, other.y, PLACES[scene.place])
        other_x, other_y = point_at(PLACES[place], depth, along)
        other = replace(other, x=other_x, y=other_y)
    return replace(scene, x=x, y=y, other=other, place=place)


def _edited(thing: Thing, color: str | None, shape: str | None, texture: str | None) -> Thing:
    return replace(
        thing,
        color=color or thing.color,
        shape=shape or thing.shape,
        texture=texture or thing.texture,
    )


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
