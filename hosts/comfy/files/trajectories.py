"""Trajectories on ComfyUI's wires and in its folders."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import comfy.model_management
import comfy.samplers
import folder_paths
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.errors import PalimpsestError, quoted
from ....pipelines.schedule import check_falling
from ....pipelines.trajectory import Recipe, Trajectory
from ....pipelines.trajectory_file import from_tensors, to_tensors
from ..coordinates import coordinates_of, rising_sigmas
from ..fingerprint import describe
from ..refusals import check_samples
from .names import Kind, place_for
from .numbered import SUFFIX, write_tensors
from .trajectory_reader import read_trajectory_file

#: What one is called, to begin a sentence about its file.
TRAJECTORY = "The trajectory"


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
    rising = rising_sigmas(coordinates_of(model, "A trajectory"), sigmas)
    return Trajectory(scaled, rising, levels[0], recipe)


def save_trajectory(trajectory: Trajectory, prefix: str) -> Path:
    """Write a trajectory into ComfyUI's output folder under a name that is still free.

    Raises:
        PalimpsestError: If no file of that name can be written.
    """
    place = trajectory_place(prefix)
    return write_tensors(place, *to_tensors(trajectory), TRAJECTORY)


def trajectory_place(prefix: str) -> Path:
    """Where a trajectory of this name goes, without its number: inside the output folder.

    Raises:
        PalimpsestError: If no trajectory of that name can be written.
    """
    folder = Path(folder_paths.get_output_directory())
    where = "ComfyUI's output folder"
    return place_for(prefix, Kind(TRAJECTORY, folder, where, "trajectories/cat", SUFFIX))


def trajectory_files() -> list[str]:
    """Names of the files that Load Trajectory offers: those in the input and output folders."""
    return sorted(
        f"{path.relative_to(folder).as_posix()}{mark}"
        for folder, mark in _folders()
        for path in _named(folder)
        if _is_offered(path, folder)
    )


def _named(folder: Path) -> Iterator[Path]:
    """What ends as our files do; unlike rglob, a walk bears folders that vanish meanwhile."""
    for path, _, names in os.walk(folder):
        yield from (Path(path, name) for name in names if name.endswith(SUFFIX))


def _is_offered(path: Path, folder: Path) -> bool:
    """Whether it is a file with something in it; a link may leave, lead nowhere, or to itself."""
    with suppress(OSError, RuntimeError):
        found = path.stat()
        filled = stat.S_ISREG(found.st_mode) and found.st_size > 0
        return filled and path.resolve().is_relative_to(folder)
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
    path = _resolved(folder / name.removesuffix(mark))
    if path is not None and not (path.is_relative_to(folder) and path.suffix == SUFFIX):
        raise PalimpsestError(
            f"The trajectory file {quoted(name)} is not a {SUFFIX} file inside ComfyUI's input or "
            "output folder: choose one from the list, or upload it."
        )
    if path is None or not path.is_file():
        raise PalimpsestError(
            f"There is no trajectory file {quoted(name)}: choose one from the list, or upload it."
        )
    return path


def _resolved(path: Path) -> Path | None:
    """Where a path leads; None where it can lead nowhere: a NUL, too long, a loop of links."""
    try:
        path = path.resolve()
        path.is_file()
    except (OSError, ValueError, RuntimeError):
        return None
    return path


def load_trajectory(name: str) -> Trajectory:
    """Read a trajectory by the name that `trajectory_files` gave.

    Raises:
        PalimpsestError: If it leaves the folders, is damaged, is no trajectory, or is too large.
    """
    tensors, about = read_trajectory_file(trajectory_path(name), name)
    kept = comfy.model_management.intermediate_device()
    return from_tensors(tensors, about, name=name).to(kept)
