"""Outlines and patterns of the demo scenes, as signed distances: negative inside.

Every outline is a function of coordinates x, y `[H, W]` around the object's centre, in units of its
size, and gives a distance `[H, W]` in the same units.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def stripes(x: Tensor, y: Tensor) -> Tensor:
    """Distance to slanted stripes; all of it in canvas units."""
    along = (x + y) / math.sqrt(2)
    return ((along / 16) % 1 - 0.5).abs() * 16 - 3.6


def dots(x: Tensor, y: Tensor) -> Tensor:
    """Distance to staggered dots; all of it in canvas units."""
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
