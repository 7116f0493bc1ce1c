"""A recorded chain: the latents of one image at every noise level, and how they were made."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention.features import Features
from .errors import PalimpsestError
from .proximal import Proximal
from .schedule import check_rising

#: What a trajectory may carry beside its chain, and the file format that brought it
#: (`trajectory_file.FORMAT`).
CARRIED = {"denoised": 1, "uncond": 2, "image": 2, "values": 2, "partner": 2, "guesses": 2}


@dataclass(frozen=True)
class Recipe:
    """How a trajectory was made.

    Attributes:
        method: Name of the coupling, for example "ddim".
        convention: Where DDIM inversion evaluates: "destination" or "current".
        refinement: Fixed-point iterations per level beyond the first evaluation.
        cfg: Guidance of the inversion.
        cfg_bound: Whether an edit must have that guidance too: what was learned holds for it alone.
        model: Fingerprint of the model and its patches, "" where the host has none.
        rows: UNet rows it cost.
        seconds: Wall time it took; 0 where that was not measured.
        eta: Of the step down that the chain belongs to; 0 for an ODE chain, 1 for an SDE chain.
        source: What `denoised` was computed under, as text; "" where nothing was.
        source_cfg: Guidance of the source row in an edit; None guides it as the target is.
        uncond_for: Who reads `Trajectory.uncond`: "both" rows, or the "source" alone.
        value_window: Part of an edit's steps, the noisiest first, in which the target's values are
            mapped by `Trajectory.values`; the source's are in all of them.
        proximal: How the guidance of an edit is limited; None does not limit it.
        mixing: Weight that holds the coupled chains of EDICT together; 0 where there are none.
        rests: Steps of a published grid at whose lowest level the coupled chains only mix.
        noise_scale: Of a rectified-flow model, whose host names levels by flow time; None for
            models whose host names them by sigma.
        latent_slope: Per channel, the host's own latents over ours; empty where they are the same.
        latent_offset: Per channel, what the host's own latents have added to that.
    """

    method: str
    convention: str = ""
    refinement: int = 0
    cfg: float = 1.0
    cfg_bound: bool = False
    model: str = ""
    rows: int = 0
    seconds: float = 0.0
    eta: float = 0.0
    source: str = ""
    source_cfg: float | None = None
    uncond_for: str = "both"
    value_window: float = 1.0
    proximal: Proximal | None = None
    mixing: float = 0.0
    rests: int = 0
    noise_scale: float | None = None
    latent_slope: tuple[float, ...] = ()
    latent_offset: tuple[float, ...] = ()

    def check_cfg(self, cfg: float) -> None:
        """Refuse an edit under another guidance than what it reads was learned for.

        Raises:
            PalimpsestError: Naming both.
        """
        if self.cfg_bound and abs(cfg - self.cfg) > 1e-6:
            raise PalimpsestError(
                f"The trajectory was learned at cfg {self.cfg:g}, the edit's cfg is {cfg:g}: set "
                f"it to {self.cfg:g} too, or invert again at cfg {cfg:g}."
            )


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
        uncond: [N or 1, B or 1, tokens, channels] embeddings that stand for the negative prompt at
            the levels 1 to N, or at all of them; None where the negative prompt itself does.
        values: [N, 2, B or 1, tokens, channels] scale and shift, at the levels 1 to N, of what the
            conditional branch computes cross-attention's values from; None leaves it alone.
        image: [B, C, ...] the image in x where the chain ends elsewhere: that of an inversion which
            only comes close to its image. None where `latents[0]` is the image.
        partner: [N+1, B, C, ...] the other one of two coupled chains (`inversion.edict`), which are
            edited together; None where the chain is alone.
        guesses: [N, 2, B, C, ...] what the source made of them: the denoised guesses of the two
            evaluations of a step, at the levels 1 to N.
        features: What the inversion kept of the source's attention; no file holds it.
    """

    latents: Tensor
    sigmas: Tensor
    origin: Tensor
    recipe: Recipe
    denoised: Tensor | None = None
    uncond: Tensor | None = None
    image: Tensor | None = None
    values: Tensor | None = None
    partner: Tensor | None = None
    guesses: Tensor | None = None
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
        pictures = self.origin.shape[0]
        if self.uncond is not None and not (
            self.uncond.ndim == 4
            and self.uncond.shape[0] in (1, levels - 1)
            and self.uncond.shape[1] in (1, pictures)
        ):
            raise PalimpsestError(
                f"The trajectory's unconditional embeddings are {tuple(self.uncond.shape)}, they "
                f"must be [{levels - 1} steps or 1, {pictures} pictures or 1, tokens, channels]."
            )
        if self.values is not None and not (
            self.values.ndim == 5
            and self.values.shape[:2] == (levels - 1, 2)
            and self.values.shape[2] in (1, pictures)
        ):
            raise PalimpsestError(
                f"The trajectory's mapping of values is {tuple(self.values.shape)}, it must be "
                f"[{levels - 1} steps, 2, {pictures} pictures or 1, tokens, channels]."
            )
        self._check_coupled()

    def _check_coupled(self) -> None:
        """Refuse half of a pair of coupled chains."""
        chain, steps = self.latents.shape, len(self.latents) - 1
        wanted = {"partner": chain, "guesses": (steps, 2, *chain[1:])}
        found = {
            name: tuple(getattr(self, name).shape)
            for name in wanted
            if getattr(self, name) is not None
        }
        if found and found != {name: tuple(shape) for name, shape in wanted.items()}:
            raise PalimpsestError(
                f"The trajectory's coupled chains are {found}, they must be a partner of "
                f"{tuple(chain)} and guesses of {(steps, 2, *chain[1:])}."
            )
        if found and not 0.5 <= self.recipe.mixing <= 1:
            raise PalimpsestError(
                f"The mixing of the trajectory's coupled chains is {self.recipe.mixing}, it must "
                "be 0.5 to 1."
            )
        if found and self.recipe.proximal is not None:
            raise PalimpsestError(
                "Proximal Guidance draws an edit back to one chain, EDICT has two that are "
                "coupled: take the trajectory of another Invert node."
            )

    def to(self, device: torch.device | str) -> "Trajectory":
        """The same trajectory with its latents on a device; the levels stay on the CPU."""
        moved = {name: tensor.to(device) for name, tensor in self.carried.items()}
        return replace(
            self, latents=self.latents.to(device), origin=self.origin.to(device), **moved
        )

    @property
    def carried(self) -> dict[str, Tensor]:
        """What is there beside the chain, by the names of the attributes."""
        every = ((name, getattr(self, name)) for name in CARRIED)
        return {name: tensor for name, tensor in every if tensor is not None}

    @property
    def clean(self) -> Tensor:
        """[B, C, ...] the image in x."""
        return self.latents[0] if self.image is None else self.image

    def uncond_at(self, sigma: Tensor) -> Tensor:
        """[B or 1, tokens, channels] the embedding that stands for the negative prompt at a level.

        Args:
            sigma: 0-d, one of the levels.
        """
        if len(self.uncond) == 1:
            return self.uncond[0]
        return self.uncond[self._above_lowest(sigma)]

    def values_at(self, sigma: Tensor, *, window: float = 1.0) -> Tensor | None:
        """[2, B or 1, tokens, channels] the mapping of values in the step from a level.

        Args:
            sigma: 0-d, one of the levels.
            window: Part of the steps, the noisiest first, that have one; None in the others.
        """
        level = self._above_lowest(sigma)
        if self.values is None or self.steps - 1 - level >= int(window * self.steps):
            return None
        return self.values[level]

    def _above_lowest(self, sigma: Tensor) -> int:
        """Where a level stands among the levels 1 to N, from 0."""
        return int((self.sigmas[1:] - float(sigma)).abs().argmin())

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
        """Latents [..., C, h, w] of this chain in the scaling that the host's wires have."""
        if not self.recipe.latent_slope:
            return latents
        slope, offset = (
            torch.tensor(numbers, dtype=latents.dtype, device=latents.device).view(-1, 1, 1)
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
