"""The textured backgrounds of the demo scenes.

Each is a function of pixel centres x, y `[H, W]` in canvas units (a picture is 128 wide) and a
seed, which draws its details; it gives an image `[H, W, 3]`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _draws(seed: int, count: int) -> Tensor:
    """The details of a background, in 0..1: the same for a seed whatever lies on it."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed ^ 0x5EED5EED))


def _shade(color: tuple[int, int, int], tone: Tensor) -> Tensor:
    """A colour made lighter or darker: tone 0 leaves it, 0.1 adds ten percent."""
    return torch.tensor(color) / 255 * (1 + tone)[..., None]


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + share[..., None] * (b - a)


def _wave(position: Tensor, period: float, phase: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * (position / period + phase))


def _brick_wall(x: Tensor, y: Tensor, seed: int) -> Tensor:
    width, height = 32.0, 16.0
    u = _draws(seed, 3 + 64)
    v = y / height + u[0]
    row = torch.floor(v)
    h = x / width + u[1] + 0.5 * (row % 2)
    tone = u[3:][(7 * row.long() + torch.floor(h).long()) % 64] - 0.5
    joint = torch.maximum((h % 1 - 0.5).abs() * width, (v % 1 - 0.5).abs() * height + 8) - 14.2
    brick = _shade((168, 84, 62), 0.24 * tone + 0.06 * (u[2] - 0.5))
    mortar = _shade((206, 190, 174), torch.zeros_like(x))
    return _mix(brick, mortar, torch.sigmoid(joint / 0.6))


def _grass(x: Tensor, y: Tensor, seed: int) -> Tensor:
    u = _draws(seed, 4)
    sway = 2.0 * _wave(y, 90, u[2])
    row = torch.floor(y / 16 + u[0])
    blade = ((x + sway) / 14 + u[1] + 0.5 * (row % 2)) % 1
    height = (1 - 2 * (blade - 0.5).abs()) * 9
    depth = (y + height - 9 + 16 * u[0]) / 16
    tone = 0.5 - depth % 1
    return _shade((124, 172, 78), 0.26 * tone + 0.06 * (u[3] - 0.5))


def _sand(x: Tensor, y: Tensor, seed: int) -> Tensor:
    u = _draws(seed, 4)
    ripple = y + 5 * _wave(x, 75, u[0]) + 2.5 * _wave(x + y, 48, u[1])
    tone = 0.07 * _wave(ripple, 19, u[2]) + 0.05 * (u[3] - 0.5)
    return _shade((224, 196, 148), tone)


def _snow(x: Tensor, y: Tensor, seed: int) -> Tensor:
    u = _draws(seed, 4)
    ridge = (y + 7 * _wave(x, 88, u[0]) + 3 * _wave(x, 41, u[1])) / 40 + u[2]
    fall = ridge % 1
    shade = fall * torch.sigmoid((1 - fall) * 14) * 1.3
    light, dark = _shade((244, 248, 252), 0 * x), _shade((206, 220, 238), 0 * x)
    return _mix(light, dark, shade.clamp(0, 1) * (0.9 + 0.1 * u[3]))


def _sea(x: Tensor, y: Tensor, seed: int) -> Tensor:
    u = _draws(seed, 4)
    row = torch.floor(y / 16 + u[0])
    hollow = (x / 32 + u[1] + 0.5 * (row % 2)) % 1 - 0.5
    depth = (y - 20 * hollow**2 + 5 + 16 * u[0]) / 16
    fall = depth % 1
    water = _shade((44, 112, 168), 0.26 * (0.5 - fall) + 0.06 * (u[3] - 0.5))
    foam = torch.sigmoid((0.17 - fall) * 16 / 1.2) * torch.sigmoid(fall * 16 / 0.8 - 1)
    return _mix(water, _shade((150, 202, 226), 0 * x), 0.8 * foam)


def _wooden_floor(x: Tensor, y: Tensor, seed: int) -> Tensor:
    height, length = 24.0, 104.0
    u = _draws(seed, 4 + 32)
    v = y / height + u[0]
    row = torch.floor(v)
    detail = u[4:][(5 * row.long()) % 32]
    h = x / length + detail
    plank = u[4:][(5 * row.long() + 11 * torch.floor(h).long() + 3) % 32]
    grain = _wave(y + 2.5 * _wave(x, 96, plank), 9, plank)
    seam = torch.maximum((v % 1 - 0.5).abs() * height, (h % 1 - 0.5).abs() * length - 40) - 10.8
    wood = _shade((178, 128, 74), 0.26 * (plank - 0.5) + 0.05 * grain + 0.05 * (u[1] - 0.5))
    return _mix(wood, _shade((92, 60, 34), 0 * x), 0.85 * torch.sigmoid(seam / 0.6))


BACKGROUNDS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "a brick wall": _brick_wall,
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "the sea": _sea,
    "a wooden floor": _wooden_floor,
}
