"""What pixels look like: tones of objects and backgrounds, and which background a picture has."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from .backgrounds import BACKGROUNDS
from .scenes import Scene, render
from .things import CANVAS, tones

_BORDER = 14


def judge_background(image: Tensor) -> str:
    """The background whose drawings resemble a picture's border most."""
    features = _border_features(image)

    def distance(name: str) -> float:
        centre, spread = _background_features(name)
        return (((features - centre) / spread) ** 2).sum().item()

    return min(BACKGROUNDS, key=distance)


def distance_to(image: Tensor, palette: Tensor) -> Tensor:
    """Distance `[H, W]` of every pixel to the nearest colour of a palette `[N, 3]`."""
    return torch.cdist(image.float().reshape(-1, 3), palette).amin(-1).view(image.shape[:2])


def object_tones(color: str) -> Tensor:
    """Base tone, second tone and rim of an object of a colour."""
    base, second = (torch.tensor(tone) for tone in tones(color))
    return torch.stack([base, second, 0.78 * base])


@cache
def background_tones(name: str) -> Tensor:
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
