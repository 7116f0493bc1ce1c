"""Trajectories on ComfyUI's wires and in its folders."""

from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
import safetensors
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..pipelines.errors import PalimpsestError
from ..pipelines.schedule import check_falling
from ..pipelines.trajectory import Recipe, Trajectory
from ..pipelines.trajectory_file import from_tensors, to_tensors
from .comfy_checks import check_samples
from .comfy_files import SUFFIX, write_numbered
from .comfy_inversion import describe
from .comfy_space import rising_sigmas, space_of


@dataclass(frozen=True, eq=False)
class TrajectoryNoise:
    """A NOISE that starts core's samplers where an inversion ended.

    Core adds the latent to noise times the first sigma (at a model's largest sigma: times
    sqrt(1 + sigma^2)), or mixes both for a flow; this is what gives the start after that.

    Attributes:
        start: [B, C, h, w] where the inversion ended, as core's samplers hold it, in model scale.
        noise_part: What core will multiply the noise by.
        latent_part: What core will multiply the latent by.
        latent_format: How the model scales a LATENT.
        seed: Core wants one; nothing is drawn.
    """

    start: Tensor
    noise_part: float
    latent_part: float
    latent_format: LatentFormat
    seed: int = 0

    def generate_noise(self, input_latent: dict) -> Tensor:
        """The noise that goes with the latent it will be added to."""
        samples = input_latent["samples"].to(self.start)
        if samples.shape != self.start.shape:
            raise PalimpsestError(
                f"The latent is {tuple(samples.shape)}, the inverted noise "
                f"{tuple(self.start.shape)}: connect a latent of the inverted picture's size."
            )
        if samples.any():  # core leaves empty latents unscaled
            samples = self.latent_format.process_in(samples)
        return (self.start - self.latent_part * samples) / self.noise_part


def noise_of_trajectory(model: ModelPatcher, trajectory: Trajectory) -> TrajectoryNoise:
    """The NOISE from which core's samplers start at the trajectory's noisiest level."""
    latent_format = model.get_model_object("latent_format")
    space = space_of(model, "A trajectory's noise")
    sigma = float(trajectory.sigmas[-1])
    if space.noise_scale is not None:
        t = float(space.level(trajectory.sigmas[-1]))
        start = trajectory.start * (1 - t)
        return TrajectoryNoise(start, t * space.noise_scale, 1 - t, latent_format)
    largest = float(model.get_model_object("model_sampling").sigma_max)
    full = sigma > largest or abs(sigma - largest) <= 1e-5 * largest
    scale = (1 + sigma**2) ** 0.5 if full else sigma
    return TrajectoryNoise(trajectory.start, scale, 1.0, latent_format)


def schedule(model: ModelPatcher, scheduler: str, steps: int, strength: float) -> Tensor:
    """Core's falling sigmas for the last `strength` of a schedule, as KSampler's denoise does.

    Raises:
        PalimpsestError: If there are no such steps.
    """
    sampling = model.get_model_object("model_sampling")
    train_steps = len(getattr(sampling, "sigmas", ())) or 1000
    if not 1 <= steps <= train_steps:
        raise PalimpsestError(
            f"Steps must be 1 to {train_steps}, the model's training steps, got {steps}."
        )
    if not 0 < strength <= 1:
        raise PalimpsestError(f"Strength must be above 0 and at most 1, got {strength}.")
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, int(steps / strength)).cpu()
    sigmas = whole if strength == 1 else whole[-(steps + 1) :]
    if not bool((sigmas.diff() < 0).all()):
        raise PalimpsestError(
            f"The schedule {scheduler!r} has no {steps} different levels at strength {strength}: "
            "use fewer steps or another scheduler."
        )
    return sigmas


def trajectory_from_latents(model: ModelPatcher, samples: Tensor, sigmas: Tensor) -> Trajectory:
    """A trajectory from a LATENT batch that holds all levels, clean first.

    Args:
        model: The model it is for.
        samples: [(N+1) * B, C, h, w] LATENT samples, level by level.
        sigmas: [N+1] falling levels, ending at 0.

    Raises:
        PalimpsestError: If the batch does not divide by the levels.
    """
    check_falling(sigmas)
    check_samples(model, samples)
    if len(samples) % len(sigmas):
        raise PalimpsestError(
            f"The latent batch holds {len(samples)} latents, which {len(sigmas)} levels do not "
            "divide: connect the batch and the sigmas of the same trajectory."
        )
    levels = samples.unflatten(0, (len(sigmas), -1)).float()
    scaled = model.model.process_latent_in(levels)
    recipe = describe(model, Recipe("latent batch"))
    rising = rising_sigmas(space_of(model, "A trajectory"), sigmas)
    return Trajectory(scaled, rising, levels[0], recipe)


def save_trajectory(trajectory: Trajectory, prefix: str) -> Path:
    """Write a trajectory into ComfyUI's output folder under a name that is still free.

    Raises:
        PalimpsestError: If the prefix leaves the folder, or nothing can be written.
    """
    output = Path(folder_paths.get_output_directory()).resolve()
    wanted = (output / prefix).resolve()
    if not prefix.strip() or wanted == output or not wanted.is_relative_to(output):
        raise PalimpsestError(
            f"The file name prefix {prefix!r} leaves ComfyUI's output folder: "
            "use a name such as trajectories/cat."
        )
    return write_numbered(wanted, *to_tensors(trajectory), "The trajectory")


def trajectory_files() -> list[str]:
    """Names of the files that Load Trajectory offers: those in the input and output folders."""
    names = []
    for folder, mark in _folders():
        names += [f"{p.relative_to(folder).as_posix()}{mark}" for p in folder.rglob(f"*{SUFFIX}")]
    return sorted(names)


def _folders() -> list[tuple[Path, str]]:
    return [
        (Path(folder_paths.get_input_directory()).resolve(), ""),
        (Path(folder_paths.get_output_directory()).resolve(), " [output]"),
    ]


def trajectory_path(name: str) -> Path:
    """The file of a name that `trajectory_files` gave.

    Raises:
        PalimpsestError: If it leaves the folders or is not there.
    """
    folder, mark = next(
        (pair for pair in reversed(_folders()) if pair[1] and name.endswith(pair[1])),
        _folders()[0],
    )
    path = (folder / name.removesuffix(mark)).resolve()
    if not path.is_relative_to(folder) or path.suffix != SUFFIX:
        raise PalimpsestError(
            f"The trajectory file {name!r} is not a {SUFFIX} file inside ComfyUI's input or output "
            "folder: choose one from the list, or upload it."
        )
    if not path.is_file():
        raise PalimpsestError(
            f"There is no trajectory file {name!r}: choose one from the list, or upload it."
        )
    return path


def load_trajectory(name: str) -> Trajectory:
    """Read a trajectory by the name that `trajectory_files` gave.

    Raises:
        PalimpsestError: If it leaves the folders, is damaged, or is no trajectory.
    """
    path = trajectory_path(name)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise PalimpsestError(
            f"The trajectory file {name!r} is damaged or not a safetensors file ({error}): "
            "save the trajectory again."
        ) from error
    kept = comfy.model_management.intermediate_device()
    return from_tensors(tensors, about, name=name).to(kept)
