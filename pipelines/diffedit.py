"""DiffEdit: find by itself where two prompts disagree about a picture.

The picture is noised N times to one level; where the guesses under both prompts differ by more
than half of `ratio` times the mean difference, the edit may paint. In the noise that the model
predicts or in its denoised guess the differences are the same up to the factor sigma.

References:
    Couairon et al. 2022, DiffEdit: Diffusion-based Semantic Image Editing with Mask Guidance,
        arXiv:2210.11427, section 3.2 (step 1)
"""

import math

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import PalimpsestError
from .noise import Draw


def edit_mask(
    source: Denoiser,
    target: Denoiser,
    x0: Tensor,
    sigma: Tensor,
    *,
    draw: Draw,
    draws: int = 10,
    ratio: float = 3.0,
    draws_at_once: int = 5,
) -> Tensor:
    """Where two prompts disagree.

    Args:
        source: The model under the prompt of the picture as it is, guided.
        target: The model under the prompt of the edit, guided.
        x0: [B, C, ...] the picture, or the video with its frames.
        sigma: 0-d level to compare at; the published one is half of the timesteps.
        draw: Asked once a draw.
        draws: Noise draws to average over; 10 is published.
        ratio: Threshold in units of half the mean difference; 3 is published.
        draws_at_once: Draws per model call.

    Returns:
        [B, 1, ...] 1 where the edit may paint, 0 elsewhere.

    Raises:
        PalimpsestError: If there is no draw, the level or ratio is 0, or the prompts agree
            everywhere.
    """
    if draws < 1 or not float(sigma) > 0:
        raise PalimpsestError(
            f"The mask needs 1 or more draws at a noise level above 0, got {draws} at sigma "
            f"{float(sigma):.4g}: raise them."
        )
    if draws_at_once < 1 or not (math.isfinite(ratio) and ratio > 0):
        raise PalimpsestError(
            f"The mask needs a ratio above 0 and 1 or more draws a call, got ratio {ratio} and "
            f"{draws_at_once}: 3 and 5 are usual."
        )
    total = torch.zeros_like(x0[:, :1])
    for first in range(0, draws, draws_at_once):
        count = min(draws_at_once, draws - first)
        noisy = torch.cat([x0 + sigma.to(x0) * draw(x0) for _ in range(count)])
        difference = (target(noisy, sigma) - source(noisy, sigma)).abs()
        total += difference.unflatten(0, (count, -1)).sum(0).mean(1, keepdim=True)
    if not bool(torch.isfinite(total).all()):
        raise PalimpsestError(
            "The model left the finite numbers where the prompts were compared: use a lower cfg, "
            "or load the model in bfloat16 or float32 (float16 overflows in some models)."
        )
    mean = total.mean(tuple(range(1, total.ndim)), keepdim=True)
    if not bool((mean > 0).all()):
        raise PalimpsestError(
            "Source and target prompt say the same of this picture, so there is nothing to edit: "
            "change the target prompt."
        )
    return (total > 0.5 * ratio * mean).to(x0)
