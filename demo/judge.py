"""Tells by rules what a picture shows: the scene of `scenes.py` that explains it best.

The background comes first, from the picture's border. Then explanations compete: outside an
object's outline a pixel costs its squared distance to the nearest tone of the background; inside
it, first that to the nearest tone of the object's colour, which finds colour, shape and place
(correlation proposes outlines, local search refines them), then that to the drawing, whose stripes
or dots may lie anywhere, which finds the texture.
"""

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from .judge_search import ALONE, IN_PAIR, best_thing
from .judge_tones import background_tones, distance_to, judge_background, object_tones
from .scenes import BACKGROUNDS, PLACES, Scene, lies
from .things import CANVAS, COLORS, Thing, mask_of


@dataclass(frozen=True)
class Judgement:
    """What a picture shows.

    Attributes:
        color: Key of `scenes.COLORS`.
        shape: Key of `scenes.SHAPES`.
        texture: One of `scenes.TEXTURES`.
        background: Key of `scenes.BACKGROUNDS`.
        x: Horizontal centre of the object in canvas units.
        y: Vertical centre of the object in canvas units.
        size: The object's radius in canvas units.
        error: Root mean square distance between picture and explanation, in 0..1.
    """

    color: str
    shape: str
    texture: str
    background: str
    x: float
    y: float
    size: float
    error: float

    @property
    def caption(self) -> str:
        """What it shows in words, e.g. "a red heart on grass"."""
        thing = Thing(self.color, self.shape, self.texture, self.x, self.y, self.size)
        return f"{thing} on {self.background}"

    def agrees(self, scene: Scene) -> dict[str, bool]:
        """For each attribute, whether the picture shows what the scene says."""
        return _agrees((self,), scene)


def judge(image: Tensor) -> Judgement:
    """Judge a picture `[128, 128, 3]` in 0..1 of one object."""
    image = _checked(image)
    background = judge_background(image)
    rest = distance_to(image, background_tones(background)) ** 2
    cost, thing = best_thing(image, rest, background, ALONE)
    return _judgement(thing, background, cost)


def judge_pair(image: Tensor) -> tuple[Judgement, Judgement]:
    """Judge a picture `[128, 128, 3]` in 0..1 of two objects: that which shows more comes first.

    The second object is sought where the first is not.
    """
    image = _checked(image)
    background = judge_background(image)
    rest = distance_to(image, background_tones(background)) ** 2
    cost, first = best_thing(image, rest, background, IN_PAIR)
    taken = mask_of(first)
    free = rest * (1 - taken)
    cost_beside, second = best_thing(image, free, background, IN_PAIR, taken)
    cost += cost_beside - free.sum().item()
    return _judgement(first, background, cost), _judgement(second, background, cost)


def agreement(image: Tensor, scene: Scene) -> dict[str, bool]:
    """For each attribute of a scene, whether a picture `[128, 128, 3]` in 0..1 shows it.

    Those of a second object are called `other_color` and so on. Which of two objects that were
    found is which of the scene's is what more attributes speak for.
    """
    return _agrees(found_in(image, scene), scene)


def found_in(image: Tensor, scene: Scene) -> tuple[Judgement, ...]:
    """What a picture `[128, 128, 3]` in 0..1 shows, in the order of a scene's objects."""
    if scene.other is None:
        return (judge(image),)
    orders = permutations(judge_pair(image))
    return max(orders, key=lambda order: sum(_agrees(order, scene).values()))


def pixels_of_color(image: Tensor, color: str) -> Tensor:
    """Which pixels `[H, W]` of an image `[H, W, 3]` look painted in a colour.

    A pixel counts where one of the colour's two tones, or its darker rim, is nearer than the base
    tone of every other colour and than every tone of every background.
    """
    rivals = [object_tones(other)[:1] for other in COLORS if other != color]
    rivals += [background_tones(name) for name in BACKGROUNDS]
    own = distance_to(image, object_tones(color))
    return own < distance_to(image, torch.cat(rivals))


def _agrees(found: tuple[Judgement, ...], scene: Scene) -> dict[str, bool]:
    """For each attribute, whether the objects found are the scene's objects in their order."""
    names = ("color", "shape", "texture")
    right = {
        prefix + name: getattr(judgement, name) == getattr(thing, name)
        for prefix, judgement, thing in zip(("", "other_"), found, scene.things, strict=False)
        for name in names
    }
    right["background"] = found[0].background == scene.background
    if scene.place is not None:
        places = (scene.place, PLACES[scene.place])
        right["place"] = all(
            lies(judgement.x, judgement.y, place)
            for judgement, place in zip(found, places, strict=False)
        )
    return right


def _checked(image: Tensor) -> Tensor:
    if image.shape != (CANVAS, CANVAS, 3):
        raise ValueError(
            f"The image has the shape {list(image.shape)}, but must be [{CANVAS}, {CANVAS}, 3]: "
            "the judge knows scenes at their native size only."
        )
    return image.detach().float().cpu().clamp(0, 1)


def _judgement(thing: Thing, background: str, cost: float) -> Judgement:
    return Judgement(
        color=thing.color,
        shape=thing.shape,
        texture=thing.texture,
        background=background,
        x=thing.x,
        y=thing.y,
        size=thing.size,
        error=(max(cost, 0.0) / (3 * CANVAS**2)) ** 0.5,
    )
