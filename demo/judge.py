"""Tells by rules what a picture shows: the scene of `scenes.py` that explains it best.

The background comes first, from the picture's border. Then scenes compete: inside an object's
outline a pixel costs its squared distance to the drawing, outside it the squared distance to the
nearest tone of the background. Correlation proposes outlines, local search refines them.
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
    painted,
    render,
    tones,
)

_BORDER = 14
_STEP = 2
_SIZES = tuple(float(size) for size in range(26, 43, 2))
_TRUST = 0.2
_FINALISTS = 4


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
    ranked = [(_cost(image, rest, scene), scene) for scene in _proposals(image, rest, background)]
    ranked.sort(key=lambda entry: entry[0])
    cost, scene = min(
        (_refined(image, rest, *entry) for entry in ranked[:_FINALISTS]), key=lambda entry: entry[0]
    )
    return Judgement(
        color=scene.color,
        shape=scene.shape,
        texture=scene.texture,
        background=background,
        x=scene.x,
        y=scene.y,
        size=scene.size,
        error=(cost / (3 * CANVAS**2)) ** 0.5,
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


def _proposals(image: Tensor, rest: Tensor, background: str) -> list[Scene]:
    """For every colour its two best shapes, each in every texture, where they fit best."""
    scenes = []
    for color in COLORS:
        if (color, background) in EXCLUDED:
            continue
        cost = _distance_to(image, _object_tones(color)) ** 2
        gain = (rest.sqrt() - cost.sqrt()).clamp(-_TRUST, _TRUST)
        for shape, x, y, size in _best_outlines(gain):
            for texture in TEXTURES:
                scenes.append(Scene(color, shape, texture, background, x, y, size, 0))
    return scenes


def _best_outlines(gain: Tensor) -> list[tuple[str, float, float, float]]:
    """The two shapes that gather most gain, with their places: correlation with all outlines."""
    small = F.avg_pool2d(gain[None, None], _STEP)[0, 0]
    scores = torch.fft.irfft2(torch.fft.rfft2(small) * _outline_spectra().conj())
    side = small.shape[-1]
    best, places = scores.flatten(2).max(-1)
    found = []
    for s in best.amax(1).argsort(descending=True)[:2].tolist():
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


def _cost(image: Tensor, rest: Tensor, scene: Scene) -> float:
    """Squared error of a picture under an explanation; `rest [H, W]` is that of the background."""
    paint, mask = painted(scene)
    inside = ((image - paint) ** 2).sum(-1)
    return (mask * inside + (1 - mask) * rest).sum().item()


def _refined(image: Tensor, rest: Tensor, cost: float, scene: Scene) -> tuple[float, Scene]:
    """Move and resize an object, by ever smaller steps, while the explanation gets better."""
    for step in (2.0, 1.0, 0.5):
        for _ in range(6):
            moves = [
                replace(scene, **{name: getattr(scene, name) + sign * step})
                for name in ("x", "y", "size")
                for sign in (-1, 1)
            ]
            best_cost, best = min(
                ((_cost(image, rest, move), move) for move in moves), key=lambda entry: entry[0]
            )
            if best_cost >= cost:
                break
            cost, scene = best_cost, best
    return cost, scene


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
    return torch.unique((shades * 20).round() / 20, dim=0)


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
