"""Finds the object that explains a picture best, against what the background explains.

Explanations compete by what every pixel costs. Correlation proposes outlines, local search refines
them by the nearest tone of the object's colour, and patterns at many shifts find the texture.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .judge_tones import distance_to, object_tones
from .scenes import EXCLUDED
from .shapes import SHAPES, dots, stripes
from .things import CANVAS, COLORS, TEXTURES, Thing, mask_of, painted, tones

_STEP = 2
_TRUST = 0.2
_FINALISTS = 6
_POLISHED = 3


@dataclass(frozen=True)
class Search:
    """How an object is sought: its sizes, and at how many shifts its pattern is tried.

    Where `polish` says so, the best explanations are moved and resized once more, by their
    surfaces: a small object's outline alone may lie.
    """

    sizes: tuple[float, ...]
    shifts: int
    polish: bool


ALONE = Search(tuple(float(size) for size in range(26, 43, 2)), 8, False)
IN_PAIR = Search(tuple(float(size) for size in range(19, 28, 2)), 16, True)


def best_thing(
    image: Tensor, rest: Tensor, background: str, search: Search, taken: Tensor | None = None
) -> tuple[float, Thing]:
    """The object that explains a picture best, and the cost of the picture with it.

    `rest [H, W]` is what every pixel costs without it; it lies off what `taken [H, W]` covers.
    """
    found = []
    for cost, thing in _proposals(image, rest, background, search, taken)[:_FINALISTS]:
        advantage = _advantage(image, rest, thing.color, taken)
        _, better = _refined(lambda t, a=advantage: _outline_cost(a, t), cost, thing, search)
        found.append(_with_texture(image, rest, better, search))
    found.sort(key=lambda entry: entry[0])
    if search.polish:
        found = [_polished(image, rest, *entry, search) for entry in found[:_POLISHED]]
    cost, thing, _ = min(found, key=lambda entry: entry[0])
    return cost, thing


def _proposals(
    image: Tensor, rest: Tensor, background: str, search: Search, taken: Tensor | None
) -> list[tuple[float, Thing]]:
    """For every colour its best shapes where they fit best, with their costs, cheapest first."""
    ranked = []
    for color in COLORS:
        if (color, background) in EXCLUDED:
            continue
        advantage = _advantage(image, rest, color, taken)
        own = distance_to(image, object_tones(color))
        gain = (rest.sqrt() - own).clamp(-_TRUST, _TRUST)
        if taken is not None:
            gain = torch.where(taken > 0, -_TRUST, gain)
        for shape, x, y, size in _best_outlines(gain, search.sizes):
            thing = Thing(color, shape, "plain", x, y, size)
            ranked.append((_outline_cost(advantage, thing), thing))
    return sorted(ranked, key=lambda entry: entry[0])


def _advantage(image: Tensor, rest: Tensor, color: str, taken: Tensor | None) -> Tensor:
    """What every pixel costs more, or less, as part of an object of a colour."""
    advantage = distance_to(image, object_tones(color)) ** 2 - rest
    return advantage if taken is None else advantage + taken


def _outline_cost(advantage: Tensor, thing: Thing) -> float:
    """What an outline adds to the cost of a picture that shows nothing but background."""
    return (mask_of(thing) * advantage).sum().item()


def _best_outlines(gain: Tensor, sizes: tuple[float, ...]) -> list[tuple[str, float, float, float]]:
    """The three shapes that gather most gain, with their places: correlation with all outlines."""
    small = F.avg_pool2d(gain[None, None], _STEP)[0, 0]
    scores = torch.fft.irfft2(torch.fft.rfft2(small) * _outline_spectra(sizes).conj())
    side = small.shape[-1]
    best, places = scores.flatten(2).max(-1)
    found = []
    for s in best.amax(1).argsort(descending=True)[:3].tolist():
        k = int(best[s].argmax())
        row, column = divmod(int(places[s, k]), side)
        x, y = (float(_STEP * shift) for shift in (column, row))
        found.append((list(SHAPES)[s], x, y, sizes[k]))
    return found


@cache
def _outline_spectra(sizes: tuple[float, ...]) -> Tensor:
    """Spectra `[shapes, sizes, h, w]` of all outlines, centred on the corner of the canvas."""
    spectra = []
    for shape, size in product(SHAPES, sizes):
        thing = Thing("red", shape, "plain", CANVAS / 2, CANVAS / 2, size)
        mask = F.avg_pool2d(mask_of(thing)[None, None], _STEP)[0, 0]
        half = CANVAS // _STEP // 2
        spectra.append(torch.fft.rfft2(mask.roll((-half, -half), (0, 1))))
    return torch.stack(spectra).unflatten(0, (len(SHAPES), len(sizes)))


def _refined(
    cost_of: Callable[[Thing], float], cost: float, thing: Thing, search: Search
) -> tuple[float, Thing]:
    """Move and resize an object, by ever smaller steps, while the explanation gets better."""
    for step in (2.0, 1.0, 0.5):
        for _ in range(6):
            moves = [
                replace(thing, **{name: getattr(thing, name) + sign * step})
                for name in ("x", "y", "size")
                for sign in (-1, 1)
            ]
            best_cost, best = min(
                (
                    (cost_of(move), move)
                    for move in moves
                    if search.sizes[0] - 2 <= move.size <= search.sizes[-1] + 2
                ),
                key=lambda entry: entry[0],
            )
            if best_cost >= cost:
                break
            cost, thing = best_cost, best
    return cost, thing


def _with_texture(
    image: Tensor, rest: Tensor, thing: Thing, search: Search
) -> tuple[float, Thing, Tensor]:
    """The texture that explains an object's surface best.

    Returns:
        The cost of the whole picture, the object, and the coverage `[H, W]` by its pattern.
    """
    plain, other, mask = _surface(image, thing)
    start = (mask * plain + (1 - mask) * rest).sum().item()
    change = (mask * (other - plain)).flatten()
    found = [(start, thing, torch.zeros_like(mask))]
    for texture in TEXTURES[1:]:
        patterns = _patterns(texture, search.shifts)
        saved, place = (patterns @ change).min(0)
        pattern = patterns[place].view(mask.shape)
        found.append((start + saved.item(), replace(thing, texture=texture), pattern))
    return min(found, key=lambda entry: entry[0])


def _polished(
    image: Tensor, rest: Tensor, cost: float, thing: Thing, pattern: Tensor, search: Search
) -> tuple[float, Thing, Tensor]:
    """Move and resize an object whose pattern stays, while its surface is explained better."""

    def cost_of(moved: Thing) -> float:
        plain, other, mask = _surface(image, moved)
        surface = plain + pattern * (other - plain)
        return (mask * surface + (1 - mask) * rest).sum().item()

    return *_refined(cost_of, cost, thing, search), pattern


def _surface(image: Tensor, thing: Thing) -> tuple[Tensor, Tensor, Tensor]:
    """What every pixel costs as the object's base tone and as its second, and its mask."""
    paint, mask = painted(replace(thing, texture="plain"))
    base, second = (torch.tensor(tone) for tone in tones(thing.color))
    light = (paint.sum(-1) / base.sum())[..., None]
    plain = ((image - base * light) ** 2).sum(-1)
    return plain, ((image - second * light) ** 2).sum(-1), mask


@cache
def _patterns(texture: str, shifts: int) -> Tensor:
    """Coverage `[places, H * W]` of the canvas by stripes or dots, for many places of them."""
    line = torch.arange(CANVAS) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    if texture == "striped":
        distances = [stripes(x - 16 * i / shifts * 2**0.5, y) for i in range(shifts)]
    else:
        steps = [26 / shifts * i for i in range(shifts)]
        distances = [dots(x - dx, y - dy) for dx in steps[: shifts // 2] for dy in steps]
    return torch.stack([(0.5 - distance).clamp(0, 1).flatten() for distance in distances])
