"""Denoisers with known answers, and the published steps in their own coordinates."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from palimpsest.pipelines.denoiser import per_row
from palimpsest.pipelines.schedule import moment_at


@dataclass(frozen=True)
class Gaussian:
    """Data drawn from N(mean, std^2), independently per element.

    Its probability-flow ODE has the closed form
        x(sigma) = mean + (x(0) - mean) * sqrt(1 + sigma^2 / std^2)
    """

    mean: float = 0.3
    std: float = 0.8

    def __call__(self, x, sigma):
        return self.mean + self.std**2 / (self.std**2 + sigma**2) * (x - self.mean)

    def flow(self, x0, sigma):
        return self.mean + (x0 - self.mean) * torch.sqrt(1 + (sigma / self.std) ** 2)


@dataclass
class Prompted:
    """A denoiser that is not linear, mixes channels and depends on its prompt; counts its calls.

    Guidance is part of it: the noise is pushed `cfg` times as far from that of the empty prompt.
    """

    prompt: float
    cfg: float = 1.0
    calls: list = field(default_factory=list)

    def noise(self, z, sigma):
        uncond, cond = (self._noise(z, sigma, prompt) for prompt in (0.0, self.prompt))
        return uncond + self.cfg * (cond - uncond)

    def _noise(self, z, sigma, prompt):
        mixed = z + 0.3 * z.roll(1, dims=1) + prompt
        return torch.tanh(mixed) * (0.5 + 0.1 * torch.cos(sigma)) + 0.1 * prompt

    def __call__(self, x, sigma):
        self.calls.append(len(x))
        sigma = per_row(sigma, x)
        return x - sigma * self.noise(x * (1 + sigma**2).rsqrt(), sigma)


def geometric(steps, low=0.03, high=14.0):
    """[steps + 1] levels that climb from 0, the first hop to `low`, then a constant ratio."""
    levels = torch.logspace(0, 1, steps, dtype=torch.float64)
    ratio = torch.log10(torch.tensor(high / low, dtype=torch.float64))
    return torch.cat([torch.zeros(1, dtype=torch.float64), low * 10 ** (levels.log10() * ratio)])


def picture(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape or (2, 4, 3, 5), generator=generator, dtype=torch.float64).to(dtype)


def sample_euler(denoise, x, sigmas):
    """Core's euler sampler: x + (sigma_next - sigma) * (x - D) / sigma, over falling levels."""
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def alpha_of(sigma):
    """Cumulative alpha of a level."""
    return 1 / (1 + sigma**2)


def vp_step(noise, alpha, alpha_next, z):
    """The published DDIM step between two cumulative alphas, up (next_step) or down (prev_step)."""
    clean = (z - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise


def distance(a, b):
    """The largest difference between two tensors."""
    return float((a - b).abs().max())


def moment(step, steps):
    """The beginning of a step of an edit of so many."""
    return moment_at(geometric(steps), step)
