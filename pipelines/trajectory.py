"""A recorded chain: the latents of one image at every noise level, and how they were made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .attention.features import Features
from .carried import Carried
from .errors import PalimpsestError
from .schedule import check_rising

Kind = TypeVar("Kind", bound=Carried)


@dataclass(frozen=True)
class Recipe:
    """How a trajectory was made.

    Attributes:
        method: Name of the coupling, for example "ddim".
        convention: Where DDIM inversion evaluates: "destination" or "current".
        refinement: Fixed-point iterations per level beyond the first evaluation.
        cfg: Guidance of the inversion.
        model: Fingerprint of the model and its patches, "" where the host has none.
        rows: UNet rows it cost.
        seconds: Wall time it took; 0 where that was not measured.
        eta: Of the step down that the chain belongs to; 0 for an ODE chain, 1 for an SDE chain.
        strength: Part of the chain's residual that every edit along it adds to its target. None
            leaves it to the edit: the residual is an inversion's error and not the picture's noise.
        source_key: What `denoised` was computed under, as text; "" where nothing was.
        source_cfg: Guidance of the source row in an edit; None guides it as the target is.
        noise_scale: Of a rectified-flow model, whose host names levels by flow time; None for
            models whose host names them by sigma.
        regularised: Whether the inversion drew its noise towards white noise.
        latent_slope: Per channel, the host's own latents over ours; empty where they are the same.
        latent_offset: Per channel, what the host's own latents have added to that.
        prompt: What tells the prompt of the inversion from others; "" where that is not known.
    """

    method: str
    convention: str = ""
    refinement: int = 0
    cfg: float = 1.0
    model: str = ""
    rows: int = 0
    seconds: float = 0.0
    eta: float = 0.0
    strength: float | None = None
    source_key: str = ""
    source_cfg: float | None = None
    noise_scale: float | None = None
    regularised: bool = False
    latent_slope: tuple[float, ...] = ()
    latent_offset: tuple[float, ...] = ()
    prompt: str = ""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The latents of an image at every noise level, and all else that an edit along them needs.

    Immutable: a host hands the same object to every later run.

    Attributes:
        latents: [N+1, B, C, ...] float32 in x = x0 + sigma * noise, from clean to noisy.
        sigmas: [N+1] float64 on the CPU, strictly rising.
        origin: [B, C, ...] the image as the host handed it in, in the host's own scaling: what an
            unedited result returns bit for bit.
        recipe: How it was made.
        denoised: [N, B, C, ...] the source's denoised guess at the levels 1 to N, where the edit
            needs them and they were kept; None otherwise.
        image: [B, C, ...] the image in x where the chain ends elsewhere: that of an inversion which
            only comes close to its image. None where `latents[0]` is the image.
        carried: What its method left for the edits along it.
        features: What the inversion kept of the source's attention; no file holds it.
    """

    latents: Tensor
    sigmas: Tensor
    origin: Tensor
    recipe: Recipe
    denoised: Tensor | None = None
    image: Tensor | None = None
    carried: tuple[Carried, ...] = ()
    features: Features | None = None

    def __post_init__(self) -> None:
        check_rising(self.sigmas)
        levels = len(self.latents) if self.latents.ndim else 0
        if levels != len(self.sigmas):
            raise PalimpsestError(
                f"A trajectory needs one latent per noise level, got {levels} latents "
                f"for {len(self.sigmas)} levels."
            )
        if self.origin.shape != self.latents.shape[1:]:
            raise PalimpsestError(
                f"The trajectory's image is {tuple(self.origin.shape)}, but its latents are "
                f"{tuple(self.latents.shape[1:])}: they must be of one size."
            )
        if self.denoised is not None and self.denoised.shape != self.latents[1:].shape:
            raise PalimpsestError(
                f"The trajectory's denoised guesses are {tuple(self.denoised.shape)}, they must "
                f"be {tuple(self.latents[1:].shape)}: one for each level above the lowest."
            )
        if self.image is not None and self.image.shape != self.origin.shape:
            raise PalimpsestError(
                f"The trajectory's image is {tuple(self.image.shape)} in x and "
                f"{tuple(self.origin.shape)} in the host's scaling: they must be of one size."
            )
        for carried in self.carried:
            carried.check(self)

    def to(self, device: torch.device | str) -> Trajectory:
        """The same trajectory with its tensors on a device; the levels stay on the CPU."""
        denoised, image = (t if t is None else t.to(device) for t in (self.denoised, self.image))
        return replace(
            self,
            latents=self.latents.to(device),
            origin=self.origin.to(device),
            denoised=denoised,
            image=image,
            carried=tuple(carried.to(device) for carried in self.carried),
        )

    def find(self, kind: type[Kind]) -> Kind | None:
        """The carried value of a kind, or None."""
        return next((carried for carried in self.carried if isinstance(carried, kind)), None)

    def with_carried(self, value: Carried) -> Trajectory:
        """The same trajectory that carries a value as well, in the place of one of its kind."""
        others = tuple(carried for carried in self.carried if type(carried) is not type(value))
        return replace(self, carried=(*others, value))

    @property
    def clean(self) -> Tensor:
        """[B, C, ...] the image in x."""
        return self.latents[0] if self.image is None else self.image

    @property
    def steps(self) -> int:
        """Number of steps between its levels."""
        return len(self.sigmas) - 1

    @property
    def start(self) -> Tensor:
        """[B, C, ...] the noisiest latent: where an edit begins."""
        return self.latents[-1]

    @property
    def falling_sigmas(self) -> Tensor:
        """[N+1] float32 levels as the host's samplers name them, in the order they walk."""
        scale, falling = self.recipe.noise_scale, self.sigmas.flip(0)
        return (falling if scale is None else falling / (scale + falling)).float()

    def in_host_scale(self, latents: Tensor) -> Tensor:
        """Latents [..., B, C, ...] of this chain in the scaling that the host's wires have."""
        if not self.recipe.latent_slope:
            return latents
        sides = [1] * (self.origin.ndim - 2)
        slope, offset = (
            torch.tensor(numbers, dtype=latents.dtype, device=latents.device).view(-1, *sides)
            for numbers in (self.recipe.latent_slope, self.recipe.latent_offset)
        )
        return latents * slope + offset

    def clean_estimates(self, count: int) -> tuple[list[float], Tensor]:
        """Denoised guesses along the chain, without running the model.

        Those that were kept, or what the line through two neighbours of an ODE chain points at.

        Args:
            count: How many (2 or more), evenly spread over the levels, from noisy to clean.

        Returns:
            The sigmas, and [count, B, C, ...] guesses; the last is the image itself.
        """
        levels = torch.linspace(self.steps, 0, min(count, self.steps + 1)).round().long().tolist()
        guesses = torch.stack([self._clean_estimate(level) for level in levels])
        return [float(self.sigmas[level]) for level in levels], guesses

    def _clean_estimate(self, level: int) -> Tensor:
        if level == 0:
            return self.clean
        if self.denoised is not None:
            return self.denoised[level - 1]
        return line_end(
            self.latents[level - 1],
            self.latents[level],
            self.sigmas[level - 1],
            self.sigmas[level],
        )


def line_end(x: Tensor, x_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The clean latent on the line through two neighbours of an ODE chain."""
    return x - sigma * (x_next - x) / (sigma_next - sigma)
