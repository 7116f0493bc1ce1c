"""Tells by rules what a picture shows: the scene of `scenes.py` that explains it best.

The background comes first, from the picture's border. Then explanations compete: outside an
object's outline a pixel costs its squared distance to the nearest tone of the background; inside
it, first that to the nearest tone of the object's colour, which finds colour, shape and place
(correlation proposes outlines, local search refines them), then that to the drawing, whose stripes
or dots may lie anywhere, which finds the texture.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .scenes import (
    BACKGROUNDS,
    CANVAS,
    COLORS,
    EXCLUDED,
    SHAPES,
    TEXTURES,
    Scene,
    dots,
    painted,
    render,
    stripes,
    tones,
)

_BORDER = 14
_STEP = 2
_SIZES = tuple(float(size) for size in range(26, 43, 2))
_TRUST = 0.2
_FINALISTS = 6


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

    def agrees(self, scene: Scene) -> dict[str, bool]:
        """For each attribute, whether the picture shows what the scene says."""
        names = ("color", "shape", "texture", "background")
        return {name: getattr(self, name) == getattr(scene, name) for name in names}


def judge(image: Tensor) -> Judgement:
    """Judge a picture `[128, 128, 3]` in 0..1."""
    if image.shape != (CANVAS, CANVAS, 3):
        raise ValueError(
            f"The image has the shape {list(image.shape)}, but must be [{CANVAS}, {CANVAS}, 3]: "
            "the judge knows scenes at their native size only."
        )
    image = image.detach().float().cpu().clamp(0, 1)
    background = judge_background(image)
    rest = _distance_to(image, _background_tones(background)) ** 2
    finalists = [
        _refined(_advantage(image, rest, scene.color), cost, scene)
        for cost, scene in _proposals(image, rest, background)[:_FINALISTS]
    ]
    cost, scene = min(
        (_with_texture(image, rest, scene) for _, scene in finalists), key=lambda entry: entry[0]
    )
    return Judgement(
        color=scene.color,
        shape=scene.shape,
        texture=scene.texture,
        background=background,
        x=scene.x,
        y=scene.y,
        size=scene.size,
        error=(max(cost, 0.0) / (3 * CANVAS**2)) ** 0.5,
    )


def judge_background(image: Tensor) -> str:
    """The background whose drawings resemble a picture's border most."""
    features = _border_features(image)

    def distance(name: str) -> float:
        centre, spread = _background_features(name)
        return (((features - centre) / spread) ** 2).sum().item()

    return min(BACKGROUNDS, key=distance)


def pixels_of_color(image: Tensor, color: str) -> Tensor:
    """Which pixels `[H, W]` of an image `[H, W, 3]` look painted in a colour.

    A pixel counts where one of the colour's two tones, or its darker rim, is nearer than the base
    tone of every other colour and than every tone of every background.
    """
    rivals = [_object_tones(other)[:1] for other in COLORS if other != color]
    rivals += [_background_tones(name) for name in BACKGROUNDS]
    own = _distance_to(image, _object_tones(color))
    return own < _distance_to(image, torch.cat(rivals))


# --- candidates ---------------------------------------------------------------------------------


def _proposals(image: Tensor, rest: Tensor, background: str) -> list[tuple[float, Scene]]:
    """For every colour its best shapes where they fit best, with their costs, cheapest first."""
    ranked = []
    for color in COLORS:
        if (color, background) in EXCLUDED:
            continue
        own = _distance_to(image, _object_tones(color))
        advantage = own**2 - rest
        for shape, x, y, size in _best_outlines((rest.sqrt() - own).clamp(-_TRUST, _TRUST)):
            scene = Scene(color, shape, "plain", background, x, y, size, 0)
            ranked.append((_outline_cost(advantage, scene), scene))
    return sorted(ranked, key=lambda entry: entry[0])


def _advantage(image: Tensor, rest: Tensor, color: str) -> Tensor:
    """What every pixel costs more, or less, as part of an object of a colour."""
    return _distance_to(image, _object_tones(color)) ** 2 - rest


def _outline_cost(advantage: Tensor, scene: Scene) -> float:
    """What an outline adds to the cost of a picture that shows nothing but background."""
    return (painted(scene)[1] * advantage).sum().item()


def _best_outlines(gain: Tensor) -> list[tuple[str, float, float, float]]:
    """The three shapes that gather most gain, with their places: correlation with all outlines."""
    small = F.avg_pool2d(gain[None, None], _STEP)[0, 0]
    scores = torch.fft.irfft2(torch.fft.rfft2(small) * _outline_spectra().conj())
    side = small.shape[-1]
    best, places = scores.flatten(2).max(-1)
    found = []
    for s in best.amax(1).argsort(descending=True)[:3].tolist():
        k = int(best[s].argmax())
        row, column = divmod(int(places[s, k]), side)
        x, y = (float(_STEP * shift) for shift in (column, row))
        found.append((list(SHAPES)[s], x, y, _SIZES[k]))
    return found


@cache
def _outline_spectra() -> Tensor:
    """Spectra `[shapes, sizes, h, w]` of all outlines, centred on the corner of the canvas."""
    spectra = []
    for shape, size in product(SHAPES, _SIZES):
        scene = Scene("red", shape, "plain", "sand", CANVAS / 2, CANVAS / 2, size, 0)
        mask = F.avg_pool2d(painted(scene)[1][None, None], _STEP)[0, 0]
        half = CANVAS // _STEP // 2
        spectra.append(torch.fft.rfft2(mask.roll((-half, -half), (0, 1))))
    return torch.stack(spectra).unflatten(0, (len(SHAPES), len(_SIZES)))


def _refined(advantage: Tensor, cost: float, scene: Scene) -> tuple[float, Scene]:
    """Move and resize an outline, by ever smaller steps, while the explanation gets better."""
    for step in (2.0, 1.0, 0.5):
        for _ in range(6):
            moves = [
                replace(scene, **{name: getattr(scene, name) + sign * step})
                for name in ("x", "y", "size")
                for sign in (-1, 1)
            ]
            best_cost, best = min(
                (
                    (_outline_cost(advantage, move), move)
                    for move in moves
                    if _SIZES[0] - 2 <= move.size <= _SIZES[-1] + 2
                ),
                key=lambda entry: entry[0],
            )
            if best_cost >= cost:
                break
            cost, scene = best_cost, best
    return cost, scene


def _with_texture(image: Tensor, rest: Tensor, scene: Scene) -> tuple[float, Scene]:
    """The texture that explains an object's surface best, and the cost of the whole picture."""
    paint, mask = painted(scene)
    base, second = (torch.tensor(tone) for tone in tones(scene.color))
    light = (paint.sum(-1) / base.sum())[..., None]
    plain = ((image - base * light) ** 2).sum(-1)
    other = ((image - second * light) ** 2).sum(-1)
    start = (mask * plain + (1 - mask) * rest).sum().item()
    change = (mask * (other - plain)).flatten()
    costs = {"plain": start}
    for texture in TEXTURES[1:]:
        costs[texture] = start + (_patterns(texture) @ change).min().item()
    best = min(costs, key=costs.__getitem__)
    return costs[best], replace(scene, texture=best)


@cache
def _patterns(texture: str) -> Tensor:
    """Coverage `[places, H * W]` of the canvas by stripes or dots, for many places of them."""
    line = torch.arange(CANVAS) + 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    if texture == "striped":
        distances = [stripes(x - shift * 2**0.5, y) for shift in range(0, 16, 2)]
    else:
        steps = [3.25 * i for i in range(8)]
        distances = [dots(x - dx, y - dy) for dx in steps[:4] for dy in steps]
    return torch.stack([(0.5 - distance).clamp(0, 1).flatten() for distance in distances])


# --- tones and features -------------------------------------------------------------------------


def _distance_to(image: Tensor, palette: Tensor) -> Tensor:
    """Distance `[H, W]` of every pixel to the nearest colour of a palette `[N, 3]`."""
    return torch.cdist(image.float().reshape(-1, 3), palette).amin(-1).view(image.shape[:2])


def _object_tones(color: str) -> Tensor:
    """Base tone, second tone and rim of an object of a colour."""
    base, second = (torch.tensor(tone) for tone in tones(color))
    return torch.stack([base, second, 0.78 * base])


@cache
def _background_tones(name: str) -> Tensor:
    """The colours that occur in a background, in light and in an object's shadow."""
    line = torch.arange(0.5, CANVAS, 2)
    y, x = torch.meshgrid(line, line, indexing="ij")
    seen = torch.cat([BACKGROUNDS[name](x, y, seed).reshape(-1, 3) for seed in range(12)])
    shades = torch.cat([seen * light for light in (1.0, 0.85, 0.7)])
    steps = (shades * 20).round().long()
    # One number for each colour: torch sorts numbers far faster than rows, in the same order.
    place = torch.tensor([32**2, 32, 1])
    return torch.unique((steps * place).sum(1))[:, None] // place % 32 / 20


def _border_features(image: Tensor) -> Tensor:
    """Average colour, its spread, and how much lightness changes along x and y, at the border."""
    light = image.mean(-1)
    edges = torch.zeros(2, *light.shape)
    edges[0, :, 1:] = light.diff(dim=1).abs()
    edges[1, 1:] = light.diff(dim=0).abs()
    border = torch.ones_like(light, dtype=torch.bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    pixels = image[border]
    return torch.cat([pixels.mean(0), pixels.std(0), edges[:, border].mean(1)])


@cache
def _background_features(name: str) -> tuple[Tensor, Tensor]:
    """Mean and allowed deviation of the border's features over drawings of a background."""
    black = Scene("black", "circle", "plain", name, CANVAS / 2, CANVAS / 2, 30.0, 0)
    features = [_border_features(render(replace(black, seed=seed))[0]) for seed in range(16)]
    stack = torch.stack(features)
    floor = torch.tensor([0.04] * 3 + [0.03] * 3 + [0.02] * 2)
    return stack.mean(0), stack.std(0) + floor
