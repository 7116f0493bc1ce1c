"""Laws in one dimension whose density is known at every noise level, and how far apart they are.

Their denoisers are exact posterior means, E[x0 | x] for x = x0 + sigma * noise. Noisy particles are
counted in z = x / sqrt(1 + sigma^2), in which the noisiest level is nearly N(0, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...pipelines.noise import Draw
from ...pipelines.schedule import step_down, vp_scale


def number(value: float) -> Tensor:
    """0-d float64."""
    return torch.tensor(value, dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Two equal Gaussians around 0; calling it is its denoiser, elementwise over any shape."""

    centre: float = 2.0
    std: float = 0.28

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        gain = self.std**2 / (self.std**2 + sigma**2)
        side = torch.tanh(x * (self.centre / (self.std**2 + sigma**2)))
        return gain * x + ((1 - gain) * self.centre) * side

    def draw(self, count: int, draw: Draw) -> Tensor:
        """[count] clean samples."""
        like = torch.empty(count, dtype=torch.float64)
        return self.centre * draw(like).sign() + self.std * draw(like)

    def masses(self, edges: Tensor, sigma: Tensor) -> Tensor:
        """Probability of each bin at a noise level, for z between neighbouring `edges` [B+1]."""
        x, spread = edges / vp_scale(sigma), (self.std**2 + sigma**2).sqrt()
        sides = [_between((x - m) / spread) for m in (-self.centre, self.centre)]
        return (sides[0] + sides[1]) / 2


def _between(edges: Tensor) -> Tensor:
    """Standard normal probability between neighbours, by the tail that keeps its digits."""
    return torch.where(edges[:-1] > 0, -below(-edges).diff(), below(edges).diff())


def below(x: Tensor) -> Tensor:
    """Standard normal probability below `x`; torch.special.ndtr is 0 from 9 deviations on."""
    return torch.erfc(-x / math.sqrt(2)) / 2


@dataclass(frozen=True)
class Gaussian:
    """A law N(mean, variance)."""

    mean: float
    variance: float

    def kl(self, other: Gaussian) -> float:
        """Divergence of this law from another."""
        ratio, shift = self.variance / other.variance, self.mean - other.mean
        return (ratio - 1 - math.log(ratio) + shift**2 / other.variance) / 2

    def noised(self, sigma: float) -> Gaussian:
        """The law after noise of size `sigma`."""
        return Gaussian(self.mean, self.variance + sigma**2)

    def stepped(self, data: Gaussian, sigma: Tensor, sigma_next: Tensor, eta: float) -> Gaussian:
        """The law after one step with the exact denoiser of `data`, which is affine."""
        step = step_down(sigma, sigma_next, eta)
        gain = data.variance / (data.variance + float(sigma) ** 2)
        slope = step.c + (1 - step.c) * gain
        mean = slope * self.mean + (1 - step.c) * (1 - gain) * data.mean
        return Gaussian(mean, slope**2 * self.variance + step.sigma_up**2)


def bins(limit: float, count: int) -> Tensor:
    """[count + 1] edges of equal bins on -limit..limit; the outermost are open, to lose nobody."""
    edges = torch.linspace(-limit, limit, count + 1, dtype=torch.float64)
    edges[0], edges[-1] = -math.inf, math.inf
    return edges


def histogram(z: Tensor, edges: Tensor) -> Tensor:
    """[B] shares of the bins among the particles `z`."""
    numbers = torch.bucketize(z, edges[1:-1], right=True)
    return torch.bincount(numbers, minlength=len(edges) - 1) / len(z)


def kl(p: Tensor, q: Tensor) -> float:
    """Kullback-Leibler divergence of two sets of bin masses [B], in nats."""
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())
