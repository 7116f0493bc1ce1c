"""A training's loss as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: Everything is drawn this much larger and shrunk in the end, since PIL's lines have hard edges.
ZOOM = 3
INK, GRID, PALE, STRONG = "#333333", "#e4e4e4", "#a8c4e6", "#1f5fa8"


@dataclass(frozen=True)
class _Plot:
    """The area of the curve, in enlarged pixels, and what its axes reach."""

    left: int
    top: int
    right: int
    bottom: int
    steps: int
    highest: float

    def at(self, step: float, loss: float) -> tuple[float, float]:
        """Where a step's loss lies; steps count from 1 and fill the width."""
        along = (step - 1) / max(1, self.steps - 1)
        return (
            self.left + along * (self.right - self.left),
            self.bottom - loss / self.highest * (self.bottom - self.top),
        )


def draw_loss(losses: Sequence[float], width: int = 768, height: int = 432) -> Tensor:
    """The loss over the steps as an IMAGE: every step as a point, their running mean as a line.

    Args:
        losses: At least one finite loss at least 0, in order.
        width: Pixels.
        height: Pixels.

    Returns:
        [1, height, width, 3] in 0..1.
    """
    picture = Image.new("RGB", (ZOOM * width, ZOOM * height), "white")
    pen = ImageDraw.Draw(picture)
    edges = (ZOOM * edge for edge in (80, 48, width - 28, height - 60))
    plot = _Plot(*edges, steps=len(losses), highest=1.05 * max(*losses, 1e-9, 1e-9))
    _draw_axes(pen, plot)
    window = max(1, len(losses) // 10)
    for step, loss in enumerate(losses, 1):
        _dot(pen, plot.at(step, loss), 2.5, PALE)
    means = running_mean(losses, window)
    line = [plot.at(step, mean) for step, mean in enumerate(means, 1)]
    pen.line(line, STRONG, width=3 * ZOOM, joint="curve")
    _dot(pen, line[-1], 4, STRONG)
    _write(pen, (plot.left, ZOOM * 24), "loss", "lm", size=16)
    _draw_legend(pen, plot.right, f"mean of {window} steps" if window > 1 else "every step")
    shrunk = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(shrunk, dtype=np.float32) / 255).unsqueeze(0)


def running_mean(losses: Sequence[float], window: int) -> list[float]:
    """The mean of each loss and the `window - 1` before it, as far as there are any."""
    starts = (max(0, end - window) for end in range(1, len(losses) + 1))
    return [sum(losses[start:end]) / (end - start) for end, start in enumerate(starts, 1)]


def round_ticks(highest: float, count: int) -> list[float]:
    """At most `count + 1` round numbers from 0 up to `highest`."""
    rough = highest / count
    decade = 10 ** math.floor(math.log10(rough))
    step = next(n * decade for n in (1, 2, 5, 10) if n * decade >= rough * (1 - 1e-9))
    return [n * step for n in range(int(highest / step * (1 + 1e-9)) + 1)]


def _draw_axes(pen: ImageDraw.ImageDraw, plot: _Plot) -> None:
    for loss in round_ticks(plot.highest, 5):
        x, y = plot.at(1, loss)
        pen.line([(x, y), (plot.right, y)], INK if loss == 0 else GRID, width=ZOOM)
        _write(pen, (x - 10 * ZOOM, y), f"{loss:.4g}", "rm")
    whole = {max(1, round(tick)) for tick in round_ticks(plot.steps, 8)} | {1}
    for step in sorted(whole):
        x, y = plot.at(step, 0)
        pen.line([(x, y), (x, y + 5 * ZOOM)], INK, width=ZOOM)
        _write(pen, (x, y + 10 * ZOOM), str(step), "ma")
    _write(pen, ((plot.left + plot.right) / 2, plot.bottom + 34 * ZOOM), "step", "ma", size=16)


def _draw_legend(pen: ImageDraw.ImageDraw, right: int, text: str) -> None:
    y = ZOOM * 24
    start = right - pen.textlength(text, _font(14))
    _write(pen, (start, y), text, "lm")
    pen.line([(start - 34 * ZOOM, y), (start - 8 * ZOOM, y)], STRONG, width=3 * ZOOM)


def _dot(pen: ImageDraw.ImageDraw, place: tuple[float, float], radius: float, color: str) -> None:
    x, y, r = *place, radius * ZOOM
    pen.ellipse([x - r, y - r, x + r, y + r], fill=color)


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int = 14
) -> None:
    pen.text(place, text, INK, _font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * ZOOM)
