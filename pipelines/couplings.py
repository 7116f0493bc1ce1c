"""Recorded chains: ways to give an image a latent at every noise level.

DDIM inversion walks the probability-flow ODE upwards. One step down is

    x = x' + (sigma - sigma') noise(x', sigma')                      sigma' > sigma

and going up one would need noise(x', sigma') before x' is known. Three ways out:

    current       noise(x, sigma)                          latent and label of the level one leaves
    destination   noise(x * scale / scale', sigma')        that latent, labelled with the next level
    refined       x' = x + (sigma' - sigma) noise(x', sigma'), solved by fixed-point iteration

References:
    Song et al. 2020, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 13 and 14
    Mokady et al. 2022, Null-text Inversion, arXiv:2211.09794, section 3.1 (destination)
    Pan et al. 2023, Effective Real Image Editing with Accelerated Iterative Diffusion Inversion,
        arXiv:2309.04907, section 3.2 (the implicit equation and its acceleration)
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .denoiser import Denoiser, noise_of
from .errors import PalimpsestError
from .schedule import Scale, check_rising
from .solvers import fixed_point
from .trajectory import line_end

Convention = Literal["destination", "current"]

#: Called after each step with (steps done, latent, denoised guess to preview).
OnStep = Callable[[int, Tensor, Tensor], None]


def ddim(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    *,
    scale: Scale,
    convention: Convention = "destination",
    refinement: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Invert an image by DDIM.

    Args:
        denoise: The model, conditioned on a description of the image.
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising noise levels; the first may be 0.
        scale: How the model family scales its input (`vp_scale`, `flow_scale`).
        convention: Where the first evaluation of a step lies. Noise is undefined at sigma 0, so
            a step up from 0 is always "destination".
        refinement: Further evaluations per step that solve the implicit equation; 0 is plain
            DDIM inversion.
        on_step: Progress callback.

    Returns:
        [N+1, B, C, ...] the latents visited, `x0` first.

    Raises:
        PalimpsestError: If the levels do not rise, or the latents stop being finite.
    """
    check_rising(sigmas)
    latents = [x0]
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x = latents[-1]
        leap = _step_up(denoise, x, sigma, sigma_next)
        if convention == "current" and sigma > 0:
            noise = noise_of(x, denoise(x, sigma), sigma)
            guess, left = x + (sigma_next - sigma) * noise, refinement
        else:
            guess, left = x * (scale(sigma) / scale(sigma_next)), refinement + 1
        x_next = fixed_point(leap, guess, left) if left else guess
        if not bool(torch.isfinite(x_next).all()):
            raise PalimpsestError(
                f"The inversion left the finite numbers at step {i + 1} of {len(sigmas) - 1} "
                f"(sigma {float(sigma_next):.4g}): use cfg 1, fewer refinement iterations or "
                "more steps."
            )
        latents.append(x_next)
        if on_step:
            on_step(i + 1, x_next, line_end(x, x_next, sigma, sigma_next))
    return torch.stack(latents)


def _step_up(
    denoise: Denoiser, x: Tensor, sigma: Tensor, sigma_next: Tensor
) -> Callable[[Tensor], Tensor]:
    """The map whose fixed point is the latent from which a step down returns to `x`."""

    def leap(x_next: Tensor) -> Tensor:
        return x + (sigma_next - sigma) * noise_of(x_next, denoise(x_next, sigma_next), sigma_next)

    return leap
