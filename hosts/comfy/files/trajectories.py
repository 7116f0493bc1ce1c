"""Trajectories on ComfyUI's wires and in its folders."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
import safetensors
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.errors import PalimpsestError
from ....pipelines.schedule import check_falling
from ....pipelines.trajectory import Recipe, Trajectory
from ....pipelines.trajectory_file import from_tensors, to_tensors
from ..coordinates import rising_sigmas, space_of
from ..fingerprint import describe
from ..refusals import check_samples
from .numbered import SUFFIX, write_tensors


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
    return write_tensors(wanted, *to_tensors(trajectory), "The trajectory")


def trajectory_files() -> list[str]:
    """Names of the files that Load Trajectory offers: those in the input and output folders."""
    return sorted(
        f"{path.relative_to(folder).as_posix()}{mark}"
        for folder, mark in _folders()
        for path in _named(folder)
        if _holds_something(path)
    )


def _named(folder: Path) -> Iterator[Path]:
    """What ends as our files do; unlike rglob, a walk bears folders that vanish meanwhile."""
    for path, _, names in os.walk(folder):
        yield from (Path(path, name) for name in names if name.endswith(SUFFIX))


def _holds_something(path: Path) -> bool:
    """Whether it is a file with something in it; a link may lead nowhere, or to itself."""
    with suppress(OSError):
        found = path.stat()
        return stat.S_ISREG(found.st_mode) and found.st_size > 0
    return False


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
