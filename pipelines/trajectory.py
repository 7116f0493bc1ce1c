"""A recorded chain: the latents of one image at every noise level, and how they were made."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import Tensor

from .errors import PalimpsestError
from .schedule import check_rising

#: Raised when the meaning of a stored trajectory changes; older numbers stay readable for ever.
FORMAT = 1


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
        eta: Of the step down that the chain belongs to; 0 for an ODE chain, 1 for an SDE chain.
        source: What `denoised` was computed under, as text; "" where nothing was.
        latent_slope: Per channel, the host's own latents over ours; empty where they are the same.
        latent_offset: Per channel, what the host's own latents have added to that.
    """

    method: str
    convention: str = ""
    refinement: int = 0
    cfg: float = 1.0
    model: str = ""
    rows: int = 0
    eta: float = 0.0
    source: str = ""
    latent_slope: tuple[float, ...] = ()
    latent_offset: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The latents an inversion visited, from clean to noisy.

    Immutable: a host hands the same object to every later run.

    Attributes:
        latents: [N+1, B, C, ...] float32 in x = x0 + sigma * noise; `latents[0]` is the image.
        sigmas: [N+1] float64 on the CPU, strictly rising.
        origin: [B, C, ...] the image as the host handed it in, in the host's own scaling: what an
            unedited result returns bit for bit.
        recipe: How it was made.
        denoised: [N, B, C, ...] the source's denoised guess at the levels 1 to N, where the edit
            needs them and they were kept; None otherwise.
    """

    latents: Tensor
    sigmas: Tensor
    origin: Tensor
    recipe: Recipe
    denoised: Tensor | None = None

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

    def to(self, device: torch.device | str) -> "Trajectory":
        """The same trajectory with its latents on a device; the levels stay on the CPU."""
        return replace(
            self,
            latents=self.latents.to(device),
            origin=self.origin.to(device),
            denoised=None if self.denoised is None else self.denoised.to(device),
        )

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
        """[N+1] float32 levels in the order in which a sampler walks them."""
        return self.sigmas.flip(0).float()

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
            return self.latents[0]
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


def to_tensors(trajectory: Trajectory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text of a trajectory file; a host writes them."""
    tensors = {
        "latents": trajectory.latents.contiguous(),
        "sigmas": trajectory.sigmas.contiguous(),
        "origin": trajectory.origin.contiguous(),
    }
    if trajectory.denoised is not None:
        tensors["denoised"] = trajectory.denoised.contiguous()
    about = {"palimpsest_trajectory": str(FORMAT), "recipe": json.dumps(asdict(trajectory.recipe))}
    return tensors, about


def from_tensors(
    tensors: Mapping[str, Tensor], about: Mapping[str, str], *, name: str
) -> Trajectory:
    """Read back what `to_tensors` gave.

    Args:
        tensors: The file's tensors.
        about: The file's text.
        name: What the file is called, for messages.

    Raises:
        PalimpsestError: If it is no trajectory, of a newer format, or damaged.
    """
    version = about.get("palimpsest_trajectory")
    if version is None:
        raise PalimpsestError(
            f"{name} is not a trajectory: choose a file written by Save Trajectory."
        )
    if not version.isdecimal() or not 1 <= int(version) <= FORMAT:
        raise PalimpsestError(
            f"{name} is of trajectory format {version}, this version reads 1 to {FORMAT}: "
            "update ComfyUI-Palimpsest."
        )
    missing = {"latents", "sigmas", "origin"} - tensors.keys()
    if missing:
        raise PalimpsestError(
            f"{name} is damaged: it lacks {', '.join(sorted(missing))}. Save the trajectory again."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise PalimpsestError(f"{name} is damaged: it holds NaN. Save the trajectory again.")
    recipe = _recipe(about, name)
    try:
        return Trajectory(
            tensors["latents"],
            tensors["sigmas"],
            tensors["origin"],
            recipe,
            tensors.get("denoised"),
        )
    except PalimpsestError as error:
        raise PalimpsestError(f"{name} is damaged. {error} Save the trajectory again.") from error


def _recipe(about: Mapping[str, str], name: str) -> Recipe:
    """The recipe of a file; fields that a later version added are left out."""
    try:
        stored = json.loads(about["recipe"])
        known = {field.name for field in fields(Recipe)}
        lists = {key: tuple(v) for key, v in stored.items() if isinstance(v, list)}
        return Recipe(**{key: v for key, v in (stored | lists).items() if key in known})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PalimpsestError(
            f"{name} is damaged: its recipe cannot be read. Save the trajectory again."
        ) from error
