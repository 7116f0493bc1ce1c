"""Recorded chains: ways to give an image a latent at every noise level.

Four chains draw them, and cost no model call:

    markov        x' = x + sqrt(sigma'^2 - sigma^2) z          fresh z at every level
    independent   x' = x0 + sqrt(sigma'^2 - sigma_0^2) z        fresh z at every level
    one noise     x' = x0 + sqrt(sigma'^2 - sigma_0^2) z        the same z at every level
    posterior     x = x0 + c (x' - x0) + s_up z                 the step of eta, D being the image

The first is the forward process whose reverse is the SDE. The second (Edit-Friendly DDPM) has the
same law at every level and none that ties two levels, so that the noise which leads from one to the
next is large and holds the picture's layout. The third is what a kept region is noised with. The
last (CycleDiffusion) is drawn downwards and lies between: eta 1 gives the law of the first, eta 0
the third. At each level all four have the same law.

DDIM inversion walks the probability-flow ODE upwards. One step down is

    x = x' + (sigma - sigma') noise(x', sigma')                      sigma' > sigma

and going up one would need noise(x', sigma') before x' is known. Three ways out:

    current       noise(x, sigma)                          latent and label of the level one leaves
    destination   noise(x * scale / scale', sigma')        that latent, labelled with the next level
    refined       x' = x + (sigma' - sigma) noise(x', sigma'), solved by fixed-point iteration

References:
    Song et al. 2020, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 13 and 14
    Mokady et al. 2022, Null-text Inversion, arXiv:2211.09794, section 3.1 (destination)
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, eq. 7 (markov)
    Huberman-Spiegelglas et al. 2023, An Edit Friendly DDPM Noise Space: Inversion and
        Manipulations, arXiv:2304.06140, section 3 (independent)
    Wu & De la Torre 2022, Unifying Diffusion Models' Latent Space, with Applications to
        CycleDiffusion and Guidance, arXiv:2210.05559, section 3 (posterior)
    Pan et al. 2023, Effective Real Image Editing with Accelerated Iterative Diffusion Inversion,
        arXiv:2309.04907, section 3.2 (the implicit equation and its acceleration)
    Garibi et al. 2024, ReNoise: Real Image Inversion Through Iterative Noising, arXiv:2403.14602,
        section 4.2 (averaging the iterates)
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .denoiser import Denoiser, noise_of
from .errors import PalimpsestError
from .noise import Draw
from .schedule import Scale, check_rising, step_down
from .solvers import Solver, fixed_point
from .trajectory import line_end

Convention = Literal["destination", "current"]

#: Levels of a chain that the source is asked about in one call, where nothing else is said: more
#: would cost memory, and each of them comes to the same.
LEVELS_AT_ONCE = 8

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
    solve: Solver = fixed_point,
    regularise: Callable[[Tensor], Tensor] | None = None,
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
        solve: How these iterate.
        regularise: What becomes of every predicted noise [B, C, ...] before it is used; with a
            refinement of 0 only. None leaves it.
        on_step: Progress callback.

    Returns:
        [N+1, B, C, ...] the latents visited, `x0` first.

    Raises:
        PalimpsestError: If the levels do not rise, the latents stop being finite, or noise shall be
            both regularised and refined.
    """
    check_rising(sigmas)
    if regularise is not None and refinement:
        raise PalimpsestError(
            f"The refinement is {refinement}, which seeks the exact way back, and noise "
            "regularisation leaves it: set the refinement to 0, or the regularisation off."
        )
    latents = [x0]
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x = latents[-1]
        leap = _step_up(denoise, x, sigma, sigma_next, regularise)
        if convention == "current" and sigma > 0:
            noise = _predicted(denoise, x, sigma, regularise)
            guess, left = x + (sigma_next - sigma) * noise, refinement
        else:
            guess, left = x * (scale(sigma) / scale(sigma_next)), refinement + 1
        x_next = solve(leap, guess, left) if left else guess
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
    denoise: Denoiser,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    regularise: Callable[[Tensor], Tensor] | None,
) -> Callable[[Tensor], Tensor]:
    """The map whose fixed point is the latent from which a step down returns to `x`."""

    def leap(x_next: Tensor) -> Tensor:
        noise = _predicted(denoise, x_next, sigma_next, regularise)
        return x + (sigma_next - sigma) * noise

    return leap


def _predicted(
    denoise: Denoiser, x: Tensor, sigma: Tensor, regularise: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """The noise of a latent, as an inversion uses it."""
    noise = noise_of(x, denoise(x, sigma), sigma)
    return noise if regularise is None else regularise(noise)


def markov(x0: Tensor, sigmas: Tensor, draw: Draw) -> Tensor:
    """Noise an image level by level, each level from the one below it.

    Args:
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising noise levels; the first may be 0.
        draw: Asked N times, from the lowest level up.

    Returns:
        [N+1, B, C, ...] the chain, `x0` first.

    Raises:
        PalimpsestError: If the levels do not rise.
    """
    check_rising(sigmas)
    latents = [x0]
    for low, high in pairwise(sigmas.tolist()):
        size = math.sqrt((high - low) * (high + low))
        latents.append(latents[-1] + size * draw(x0))
    return torch.stack(latents)


def one_noise(x0: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """An image under the same noise at every level.

    Args:
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising noise levels; the first may be 0.
        noise: Of the shape of `x0`, standard normal.

    Returns:
        [N+1, B, C, ...] the chain, `x0` first.

    Raises:
        PalimpsestError: If the levels do not rise.
    """
    check_rising(sigmas)
    return torch.stack([x0 + size * noise for size in _noise_sizes(sigmas)])


def independent(x0: Tensor, sigmas: Tensor, draw: Draw) -> Tensor:
    """An image under noise of its own at every level.

    Args:
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising noise levels; the first may be 0.
        draw: Asked N times, from the lowest level up.

    Returns:
        [N+1, B, C, ...] the chain, `x0` first.

    Raises:
        PalimpsestError: If the levels do not rise.
    """
    check_rising(sigmas)
    return torch.stack([x0, *(x0 + size * draw(x0) for size in _noise_sizes(sigmas)[1:])])


def posterior(x0: Tensor, sigmas: Tensor, draw: Draw, *, eta: float) -> Tensor:
    """An image noised at the noisiest level, and led back by steps that know the image.

    Args:
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising noise levels; the first may be 0.
        draw: Asked N times, from the noisiest level down.
        eta: Of the step down: 0 draws nothing but the start, 1 is the law of `markov`.

    Returns:
        [N+1, B, C, ...] the chain, `x0` first.

    Raises:
        PalimpsestError: If the levels do not rise, or `eta` is outside 0..1.
    """
    check_rising(sigmas)
    sizes = torch.tensor(_noise_sizes(sigmas), dtype=torch.float64)
    noise = float(sizes[-1]) * draw(x0)
    latents = [x0 + noise]
    for low, high in reversed([*pairwise(sizes)][1:]):
        step = step_down(high, low, eta)
        noise = step.c * noise + step.sigma_up * draw(x0)
        latents.append(x0 + noise)
    return torch.stack([x0, *reversed(latents)])


def _noise_sizes(sigmas: Tensor) -> list[float]:
    """[N+1] what every level has more of noise than the lowest."""
    low = float(sigmas[0])
    return [math.sqrt((s - low) * (s + low)) for s in sigmas.tolist()]


def denoise_chain(
    denoise: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    *,
    levels_at_once: int = LEVELS_AT_ONCE,
    on_levels: Callable[[int], None] | None = None,
) -> Tensor:
    """The denoised guesses of a recorded chain, many levels in one call.

    They depend on the chain alone, so no level waits for another.

    Args:
        denoise: The source's; it is called with one sigma per row.
        latents: [N+1, B, C, ...] the chain.
        sigmas: [N+1] its rising levels.
        levels_at_once: Levels per call; 1 gives calls with one sigma.
        on_levels: Called with the number of levels done.

    Returns:
        [N, B, C, ...] for the levels 1 to N: what `Trajectory.denoised` keeps.
    """
    images, guesses = latents.shape[1], []
    for first in range(1, len(sigmas), levels_at_once):
        x, levels = (t[first : first + levels_at_once] for t in (latents, sigmas))
        sigma = levels[0] if levels_at_once == 1 else levels.repeat_interleave(images)
        guesses.append(denoise(x.flatten(0, 1), sigma).unflatten(0, (-1, images)))
        if on_levels:
            on_levels(first + len(levels) - 1)
    return torch.cat(guesses)
