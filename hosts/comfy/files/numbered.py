"""Safetensors files in ComfyUI's output folder: numbered, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from ....pipelines.errors import PalimpsestError

SUFFIX = ".safetensors"


def write_numbered(
    place: Path, tensors: Mapping[str, Tensor], about: dict[str, str], what: str
) -> Path:
    """Write a file beside `place` under a number that is still free.

    Args:
        place: Folder and name, without number and suffix.
        tensors: What it holds.
        about: The file's text.
        what: What it is called, for messages: "The trajectory".

    Raises:
        PalimpsestError: If nothing can be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        path = _claim(place)
        part = path.with_suffix(".part")
        try:
            save_file({key: tensor.cpu() for key, tensor in tensors.items()}, part, about)
            part.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            raise
    except (OSError, safetensors.SafetensorError) as error:
        raise PalimpsestError(
            f"{what} could not be written to {place.name}{SUFFIX}: {error}. Free some space."
        ) from error
    return path


def _claim(place: Path) -> Path:
    """The next free numbered file, created empty so that no other run can take it."""
    number = 1
    while True:
        path = place.with_name(f"{place.name}_{number:05}{SUFFIX}")
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1
