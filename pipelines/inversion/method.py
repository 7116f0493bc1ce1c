"""What every inversion is: from an image and a denoiser of its source to a recorded chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..carried import Carried
from ..couplings import OnStep
from ..denoiser import Denoiser
from ..schedule import Family
from ..trajectory import Recipe


@dataclass(frozen=True, eq=False)
class Inverted:
    """What an inversion found; a host makes a `Trajectory` of it.

    Attributes:
        latents: [N+1, B, C, ...] the chain, the image first.
        recipe: How; the host adds what it cost, its model and the guidance.
        denoised: See `Trajectory`, as for `image` and `carried`.
        image: None where the chain ends at the image.
        carried: What edits along it will need besides.
    """

    latents: Tensor
    recipe: Recipe
    denoised: Tensor | None = None
    image: Tensor | None = None
    carried: tuple[Carried, ...] = ()


class Inversion(Protocol):
    """A method whose only question is what the source's denoiser says."""

    def __call__(
        self,
        denoise: Denoiser,
        x0: Tensor,
        sigmas: Tensor,
        *,
        family: Family,
        on_step: OnStep | None = None,
    ) -> Inverted:
        """Invert an image.

        Args:
            denoise: The source's, guided as the user wants it.
            x0: [B, C, ...] float32, the image at `sigmas[0]`.
            sigmas: [N+1] rising noise levels; the first may be 0.
            family: How the latents of the model family relate to x.
            on_step: Progress callback, called once a level.
        """
        ...
