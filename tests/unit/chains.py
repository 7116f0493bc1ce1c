"""What the tests of the SDE family share: a denoiser that is asked row by row, and real levels."""

from dataclasses import dataclass, field

import torch


@dataclass
class PerRow:
    """A denoiser that knows one level a call, asked for every row alone; counts rows per call."""

    model: object
    calls: list = field(default_factory=list)

    def __call__(self, x, sigma):
        self.calls.append(len(x))
        rows = zip(x.split(1), sigma.expand(len(x)), strict=True)
        return torch.cat([self.model(row, level) for row, level in rows])


def stable_diffusion_sigmas():
    """[1000] noise level of every training timestep of Stable Diffusion, rising."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt()
