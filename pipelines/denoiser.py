"""The denoiser: what every algorithm knows of a model.

`denoise(x, sigma) -> D` is the posterior mean of the clean latent, D = E[x0 | x] for
x = x0 + sigma * noise, with its conditioning inside. Source and target prompt are two denoisers.

References:
    Ho & Salimans 2022, Classifier-Free Diffusion Guidance, arXiv:2207.12598, eq. 6
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: Guidance scale of a noise level.
Guidance = Callable[[float], float]


class Denoiser(Protocol):
    """The posterior mean of the clean latent.

    `x` is [B, C, ...] float32; `sigma` is 0-d where the batch sits at one level, or [B]; the
    result has the shape of `x`.
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@dataclass
class RowCount:
    """UNet rows spent: batch elements that went through the network. The cost of a method."""

    rows: int = 0

    def add(self, rows: int) -> None:
        """Count one network call of `rows` batch elements."""
        self.rows += rows


def guide(conditional: Tensor, unconditional: Tensor, cfg: float | Tensor) -> Tensor:
    """Classifier-free guidance of two predictions; `cfg` 1 is the conditional one."""
    return unconditional + cfg * (conditional - unconditional)


def noise_of(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a denoised latent leaves unexplained: (x - D) / sigma."""
    return (x - denoised) / sigma


def per_row(sigma: Tensor, like: Tensor) -> Tensor:
    """A level, or one per row, shaped to broadcast over [B, C, ...] rows like `like`."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1)) if sigma.ndim else sigma


def constant(cfg: float) -> Guidance:
    """The same guidance at every level."""
    return lambda _sigma: cfg


def ramp(sigmas: Tensor, top: float, *, overshoot: bool = False) -> Guidance:
    """Guidance that grows with the noise, from 1 at the lowest step to `top` at the noisiest.

    Args:
        sigmas: [N+1] rising levels; a step begins at each but the first.
        top: Guidance of the noisiest step.
        overshoot: The published ramp, which is one step ahead: it ends above `top`.

    References:
        Nie et al. 2023, arXiv:2311.01410, appendix (SDE-Drag: linear, 1 to 3)
    """
    levels, steps = sigmas[1:].double(), len(sigmas) - 1

    def cfg(sigma: float) -> float:
        step = int((levels - sigma).abs().argmin()) + int(overshoot)
        return top if steps == 1 else 1 + (top - 1) * step / (steps - 1)

    return cfg


def guidance_of(guidance: Guidance, sigma: Tensor, like: Tensor) -> float | Tensor:
    """Guidance of a call: one number, or one per row shaped to broadcast over rows like `like`."""
    if not sigma.ndim:
        return guidance(float(sigma))
    scales = torch.tensor([guidance(level) for level in sigma.tolist()])
    return per_row(scales.to(like), like)
