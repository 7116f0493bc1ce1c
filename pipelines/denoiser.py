"""The denoiser: what every algorithm knows of a model.

`denoise(x, sigma) -> D` is the posterior mean of the clean latent, D = E[x0 | x] for
x = x0 + sigma * noise, with its conditioning inside. Source and target prompt are two denoisers.

References:
    Ho & Salimans 2022, Classifier-Free Diffusion Guidance, arXiv:2207.12598, eq. 6
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """The posterior mean of the clean latent.

    `x` is [B, C, ...] float32; `sigma` is 0-d, since a batch sits at one level; the result has the
    shape of `x`.
    """

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor: ...


@dataclass
class RowCount:
    """UNet rows spent: batch elements that went through the network. The cost of a method."""

    rows: int = 0

    def add(self, rows: int) -> None:
        """Count one network call of `rows` batch elements."""
        self.rows += rows


def guide(conditional: Tensor, unconditional: Tensor, cfg: float) -> Tensor:
    """Classifier-free guidance of two predictions; `cfg` 1 is the conditional one."""
    return unconditional + cfg * (conditional - unconditional)


def noise_of(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a denoised latent leaves unexplained: (x - D) / sigma."""
    return (x - denoised) / sigma
