"""SDEdit: noise a guide to a level where its flaws drown, and let the SDE paint it anew.

From x = x0 + sigma(t0) e the reverse SDE is walked down with fresh noise. With a mask the rest of
the picture is put back after each step, under the one noise e at the level just reached, and as it
is at the end. Inpainting is the same walk from pure noise.

A strength means three things in the literature, and the same number is far from the same noise:

    t0, VP    sigma = sqrt((1 - abar) / abar) of DDPM's linear schedule, on pictures in -1..1
    t0, VE    sigma = 0.01 (378 / 0.01)^t0 on pictures in 0..1, twice that on -1..1
    fraction  the model's own training timestep, as img2img's "denoise" counts

References:
    Meng et al. 2021, SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
        Equations, arXiv:2108.01073, algorithms 1 to 5 (here with the small variance of DDPM, and
        the kept region at the level just reached)
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, section 4 (inpainting by SDE and ODE)
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .couplings import OnStep, one_noise
from .denoiser import Denoiser
from .editing import Branches, Edit
from .errors import PalimpsestError
from .kept_region import outside
from .noise import Draw
from .trajectory import Recipe, Trajectory

#: Noise levels of the paper's VE models: the lowest, and the highest of its bedroom model.
VE_MIN, VE_MAX = 0.01, 378.0


def sigma_of_t0_vp(t0: float) -> float:
    """Noise level of the paper's t0 on DDPM's linear schedule.

    Args:
        t0: Above 0, at most 1; 0.5 is sigma 3.4.
    """
    _check_t0(t0)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = float(torch.cumprod(1 - betas, 0)[max(0, round(t0 * 1000) - 1)])
    return math.sqrt((1 - alpha) / alpha)


def sigma_of_t0_ve(t0: float) -> float:
    """Noise level of the paper's t0 on its VE schedule, for data of unit scale (-1..1).

    Args:
        t0: Above 0, at most 1; 0.5 is sigma 3.9.
    """
    _check_t0(t0)
    return 2 * VE_MIN * (VE_MAX / VE_MIN) ** t0


def _check_t0(t0: float) -> None:
    if not 0 < t0 <= 1:
        raise PalimpsestError(f"t0 must be above 0 and at most 1, got {t0}: try 0.5.")


def sdedit(
    guide: Tensor,
    sigmas: Tensor,
    denoise: Denoiser,
    *,
    draw: Draw,
    mask: Tensor | None = None,
    eta: float = 1.0,
    order: Literal[1, 2] = 1,
    repeats: int = 1,
    wipe: bool = False,
    kept: Callable[[Tensor, Tensor, Tensor], Tensor] = one_noise,
    on_step: OnStep | None = None,
) -> Tensor:
    """Paint a guide anew from a noise level.

    Args:
        guide: [B, C, ...] float32, at `sigmas[0]`.
        sigmas: [N+1] rising levels; the last is where the walk begins.
        denoise: The model, guided.
        draw: Noise: once a repeat for e, then once a step where eta is above 0.
        mask: [1 or B, 1, h, w] in 0..1; where it is 0 the guide comes back bit for bit.
        eta: 1 is the SDE, 0 the ODE.
        order: 2 for steps of DPM-Solver++ (2M).
        repeats: How often; each begins with what came out, in the edited region.
        wipe: Begin with noise alone where the mask is open: nothing of the guide shows through.
        kept: How the kept region is noised; the published code is a level late.
        on_step: Progress callback, over all repeats.

    Returns:
        [B, C, ...] at the lowest level.
    """
    x, steps = guide, len(sigmas) - 1
    for repeat in range(repeats):
        noise = draw(guide)
        start = one_noise(x, sigmas[[0, -1]], noise)[-1]
        chain = torch.cat([kept(guide, sigmas, noise)[:-1], one_noise(guide, sigmas, noise)[-1:]])
        if wipe:
            start = noise * math.sqrt(1 + float(sigmas[-1]) ** 2)
        trajectory = Trajectory(chain, sigmas, guide, Recipe("one noise", eta=eta))
        regions = outside(mask, trajectory)
        for region in regions:
            start = region.within(start, chain[-1])
        whole = Edit(
            trajectory,
            Branches(denoise, denoise),
            eta=eta,
            draw=draw,
            order=order,
            after=regions,
        )
        x = whole.run(_later(on_step, repeat * steps), start=start).latent
    return x


def _later(on_step: OnStep | None, done: int) -> OnStep | None:
    """A callback whose steps are counted on from `done`."""
    if on_step is None:
        return None
    return lambda i, x, denoised: on_step(done + i, x, denoised)
