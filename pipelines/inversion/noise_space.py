"""Inversions into drawn noise: Edit-Friendly DDPM and CycleDiffusion.

No model is asked how the picture came about. Its chain is drawn, and what the model's mean does not
explain of a step is the noise that the picture is made of:

    z = (x_next - mean_src(x)) / s_up        mean(x) = c x + (1 - c) D(x, sigma)

Repeating it under another prompt, x_next = mean_tgt(x) + s_up z, is the edit. In the delta form of
`editing` z is never computed, so that a step may add next to no noise (eta 0.1) or none (the last).

    method            chain          eta    what ties the edit to the picture
    Edit-Friendly     independent    1      levels that share nothing: z is large and has its layout
    CycleDiffusion    posterior      0.1    steps that hardly forget: nearly the ODE's
    Cycle-SDE         markov         1      `cycle_sde`

What the source's denoiser makes of the chain depends on the chain alone. It is computed with the
inversion, for many levels in one call, and serves every later edit. Noisiest levels that an edit
skips are left out of `sigmas`: they cost nothing.

References:
    Huberman-Spiegelglas et al. 2023, An Edit Friendly DDPM Noise Space: Inversion and
        Manipulations, arXiv:2304.06140, section 3
    Wu & De la Torre 2022, Unifying Diffusion Models' Latent Space, with Applications to
        CycleDiffusion and Guidance, arXiv:2210.05559, section 3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..couplings import LEVELS_AT_ONCE, denoise_chain, independent, posterior
from ..denoiser import Denoiser
from ..errors import PalimpsestError
from ..noise import Draw
from ..trajectory import Recipe

#: Draws [N+1, B, C, ...] latents of an image at rising levels, the image first.
Coupling = Callable[[Tensor, Tensor, Draw], Tensor]

#: Published eta of CycleDiffusion.
CYCLE_ETA = 0.1


@dataclass(frozen=True)
class NoiseSpace:
    """How a picture's chain is drawn, and by which steps an edit walks back along it.

    Attributes:
        chain: Name of the coupling, for `Recipe.method`.
        eta: Of the steps.
        draw_chain: The coupling.
        strength: Part of the residual that edits repeat. At eta 0 and strength 1 an independent
            chain is FlowEdit.
    """

    chain: str
    eta: float
    draw_chain: Coupling
    strength: float = 1.0

    @property
    def recipe(self) -> Recipe:
        """Of the chains that are drawn so."""
        return Recipe(self.chain, eta=self.eta, strength=self.strength)


EDIT_FRIENDLY = NoiseSpace("independent", 1.0, independent)


def cycle_diffusion(eta: float = CYCLE_ETA) -> NoiseSpace:
    """The space of CycleDiffusion.

    Args:
        eta: Above 0, at most 1; at 1 it is that of Cycle-SDE.

    Raises:
        PalimpsestError: If it is outside.
    """
    if not 0 < eta <= 1:
        raise PalimpsestError(
            f"CycleDiffusion's eta must be above 0 and at most 1, got {eta}: try 0.1, or invert by "
            "DDIM for steps without noise."
        )
    return NoiseSpace("posterior", eta, partial(posterior, eta=eta))


def invert_into_noise(
    space: NoiseSpace,
    source: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    draw: Draw,
    *,
    levels_at_once: int = LEVELS_AT_ONCE,
    on_levels: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw an image's chain, and ask the source about it.

    Args:
        space: Edit-Friendly or CycleDiffusion.
        source: Guided as the edit's source shall be.
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising levels.
        draw: Noise of the chain.
        levels_at_once: Levels per call of the source.
        on_levels: Called with the number of levels done.

    Returns:
        [N+1, B, C, ...] the chain, and [N, B, C, ...] the source's guesses at its levels 1 to N.

    Raises:
        PalimpsestError: If the levels do not rise, or no level goes into a call.
    """
    if levels_at_once < 1:
        raise PalimpsestError(f"At least 1 level goes into a call, got {levels_at_once}: raise it.")
    latents = space.draw_chain(x0, sigmas, draw)
    guesses = denoise_chain(
        source, latents, sigmas, levels_at_once=levels_at_once, on_levels=on_levels
    )
    return latents, guesses
