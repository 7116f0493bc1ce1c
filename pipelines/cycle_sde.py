"""Cycle-SDE: noise an image so that the SDE leads back to it, and edit along that.

The image is noised along a chain, by the SDE's own forward process (eta above 0) or by DDIM
inversion (eta 0, the ODE's counterpart). What the source's denoiser makes of the chain depends on
the chain alone: it is computed here, for many levels in one call, and serves every later edit. The
edit is the delta form of `editing`; where nothing is changed the image comes back bit for bit.

References:
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, eq. 6 to 8
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from .couplings import LEVELS_AT_ONCE, OnStep, ddim, denoise_chain, markov
from .denoiser import Denoiser
from .errors import PalimpsestError
from .noise import Draw
from .schedule import Scale
from .trajectory import Recipe, Trajectory


@dataclass(frozen=True, eq=False)
class SourceChain:
    """How a picture gets its chain, and what the source makes of it.

    Attributes:
        sigmas: [k+1] rising levels, the image at the lowest.
        source: The source's denoiser, guided as the edit will be; None where source and target are
            the same and nothing of the chain is going to be changed, so that no one reads it.
        invert: Denoiser of DDIM inversion, unguided; read at eta 0 alone.
        scale: How the model family scales its input; read at eta 0 alone.
        eta: 1 for the SDE, 0 for the ODE; between, the SDE's chain walked with less noise.
        levels_at_once: Levels per call of the source's denoiser.
    """

    sigmas: Tensor
    source: Denoiser | None
    invert: Denoiser
    scale: Scale
    eta: float = 1.0
    levels_at_once: int = LEVELS_AT_ONCE

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise PalimpsestError(f"Eta must be 0 (ODE) to 1 (SDE), got {self.eta}.")
        if self.levels_at_once < 1:
            raise PalimpsestError(
                f"At least 1 level goes into a call, got {self.levels_at_once}: raise it."
            )

    def of(
        self,
        x0: Tensor,
        draw: Draw,
        *,
        origin: Tensor | None = None,
        on_step: OnStep | None = None,
        on_levels: Callable[[int], None] | None = None,
    ) -> Trajectory:
        """Give an image its chain.

        Args:
            x0: [B, C, ...] float32, at the lowest level.
            draw: Noise of the chain; not read at eta 0.
            origin: The image in the host's own scaling, where that is another.
            on_step: Progress of DDIM inversion.
            on_levels: Progress of the source's guesses.
        """
        if self.eta:
            latents = markov(x0, self.sigmas, draw)
        else:
            latents = ddim(self.invert, x0, self.sigmas, scale=self.scale, on_step=on_step)
        strength = 1.0 if self.eta else None
        recipe = Recipe("markov" if self.eta else "ddim", eta=self.eta, strength=strength)
        chain = Trajectory(latents, self.sigmas, x0 if origin is None else origin, recipe)
        return self.denoise(chain, on_levels)

    def denoise(
        self, chain: Trajectory, on_levels: Callable[[int], None] | None = None
    ) -> Trajectory:
        """A chain with the source's guesses, anew where it had some.

        Args:
            chain: What `of` gave, or a chain of that kind.
            on_levels: Progress.
        """
        if self.source is None:
            return chain
        guesses = denoise_chain(
            self.source,
            chain.latents,
            chain.sigmas,
            levels_at_once=self.levels_at_once,
            on_levels=on_levels,
        )
        return replace(chain, denoised=guesses)
