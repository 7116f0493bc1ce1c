"""Noise regularisation: what an inversion predicts is drawn towards white noise.

A model that is asked on the way up predicts noise that still holds the picture: neighbours agree.
The chain then ends at a latent that is no noise to the model. Every prediction e is therefore moved
by a few steps of gradient descent, which ask the model nothing, on

    pairs     sum over scales, channels and both axes of mean(e * roll(e, r))^2
    normal    v + m^2 - 1 - log(v + 1e-7)                m, v: mean and variance of all cells

where a scale is e averaged over 2 x 2 cells again and again, down to 8 cells a side, and r is drawn
anew for every channel, scale and step. One round is

    e <- e - pair_weight / pair_steps * slope of pairs           pair_steps times
    e <- e - normal_weight * slope of normal                     once

Both slopes are written out: no gradient of any network is needed, only sums over cells.

References:
    Parmar et al. 2023, Zero-shot Image-to-Image Translation, arXiv:2302.03027, section 3.1
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from ..errors import PalimpsestError

#: How far a side of so many cells is rolled.
Shift = Callable[[int], int]

#: The coarsest scale has no more cells than this on its shorter side.
COARSEST = 8


@dataclass(frozen=True)
class NoiseRegularisation:
    """How much a prediction is moved; by the defaults as published.

    Attributes:
        rounds: How often both slopes are followed.
        pair_steps: Steps on the pairs in a round.
        pair_weight: What the steps of a round on the pairs come to.
        normal_weight: That of its step on the normal law.

    Raises:
        PalimpsestError: If a number is below its least.
    """

    rounds: int = 5
    pair_steps: int = 5
    pair_weight: float = 20.0
    normal_weight: float = 20.0

    def __post_init__(self) -> None:
        least = {"rounds": 0, "pair_steps": 1, "pair_weight": 0, "normal_weight": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if not lowest <= value < float("inf"):
                raise PalimpsestError(
                    f"The noise regularisation's {name} must be {lowest} or more, got {value}."
                )

    def __call__(self, noise: Tensor, shift: Shift) -> Tensor:
        """Move a prediction.

        Args:
            noise: [B, C, ..., h, w]; every picture by itself, all by the same rolls. Frames count
                as channels.
            shift: Asked in every step on the pairs, channel by channel and from fine to coarse.
        """
        moved = noise.flatten(1, -3)
        for _ in range(self.rounds):
            for _ in range(self.pair_steps):
                slope = pair_slope(moved, drawn_shifts(moved, shift))
                moved = moved - self.pair_weight / self.pair_steps * slope
            moved = moved - self.normal_weight * normal_slope(moved)
        return moved.view_as(noise)


def shifts_of(seed: int) -> Shift:
    """Rolls by less than half of a side and by one cell at least, the same for the same seed."""
    drawn = random.Random(seed)
    return lambda side: drawn.randrange(1, max(2, side // 2))


def drawn_shifts(noise: Tensor, shift: Shift) -> Tensor:
    """[scales, C] the rolls of one step for a [B, C, h, w] prediction."""
    side = min(noise.shape[-2:])
    sides = [side]
    while sides[-1] > COARSEST:
        sides.append(sides[-1] // 2)
    return torch.tensor([[shift(s) for s in sides] for _ in range(noise.shape[1])]).T


def pair_slope(noise: Tensor, shifts: Tensor) -> Tensor:
    """The slope of the pairs.

    Args:
        noise: [B, C, h, w].
        shifts: [scales, C] how far both axes are rolled.
    """
    cells = noise.shape[-2:].numel()
    slope = torch.zeros_like(noise)
    for axis in (2, 3):
        ahead, behind = (_rolled(noise, sign * shifts[0], axis) for sign in (1, -1))
        together = (noise * ahead).mean((2, 3), keepdim=True)
        # A cell is in two pairs: with what was rolled to it, and with what it is rolled to.
        slope = slope + 2 * together * (ahead + behind) / cells
    if len(shifts) == 1:
        return slope
    return slope + _spread(pair_slope(avg_pool2d(noise, 2), shifts[1:]), noise)


def normal_slope(noise: Tensor) -> Tensor:
    """The slope of the normal law of every picture of [B, C, h, w]."""
    cells = noise[0].numel()
    mean = noise.mean((1, 2, 3), keepdim=True)
    variance = noise.var((1, 2, 3), keepdim=True)
    return 2 * (1 - 1 / (variance + 1e-7)) * (noise - mean) / (cells - 1) + 2 * mean / cells


def _rolled(noise: Tensor, shifts: Tensor, axis: int) -> Tensor:
    """`torch.roll` along an axis, every channel by its own shift."""
    size = noise.shape[axis]
    index = (torch.arange(size)[None] - shifts[:, None]) % size
    index = index.unsqueeze(-1 if axis == 2 else 1)[None].to(noise.device)
    return noise.gather(axis, index.expand_as(noise))


def _spread(coarse: Tensor, like: Tensor) -> Tensor:
    """What a slope of averages over 2 x 2 cells is for the cells; a last odd one is in none."""
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    height, width = (a - b for a, b in zip(like.shape[2:], fine.shape[2:], strict=True))
    return pad(fine, (0, width, 0, height))
