"""The tensors and the text of a trajectory file, refused before they are read where they must be.

The file is read, not mapped: what a graph keeps must not change, or end the process, when somebody
overwrites the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import comfy.model_management
import torch
from torch import Tensor

from ....pipelines.errors import PalimpsestError, quoted
from ....pipelines.trajectory_file import read_format
from .safetensors_header import DamagedFile, Entry, Header, read_header

#: What a trajectory's numbers may be stored as. Half precision is read as float32, which holds it
#: exactly: a chain of half precision is none the pack writes, and overflows in what reads it.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
HALVES = (torch.float16, torch.bfloat16)

#: Memory that must be free, in bytes of the trajectory: it is checked, and moved, once it is read.
MARGIN = 1.5

#: Bytes that are read at a time.
PIECE = 2**26


def read_trajectory_file(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a trajectory file.

    Args:
        path: The file.
        name: What it is called, for messages.

    Raises:
        PalimpsestError: If it is damaged, holds what no trajectory holds, or is too large for the
            memory that is free now.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file)
            read_format(header.text, name)
            _check_tensors(header.tensors)
            check_memory(header, _free_memory(), name)
            tensors = {key: _read(file, entry) for key, entry in header.tensors.items()}
    except (OSError, DamagedFile) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PalimpsestError(
            f"The trajectory file {quoted(name)} is damaged or not a safetensors file ({reason}): "
            "save the trajectory again."
        ) from error
    return tensors, header.text


def _check_tensors(tensors: Mapping[str, Entry]) -> None:
    for entry in tensors.values():
        if entry.dtype not in DTYPES:
            raise DamagedFile(f"it holds {entry.dtype}, a trajectory {', '.join(DTYPES)}")
        if not entry.numbers or not entry.shape:
            raise DamagedFile("it holds a tensor without shape, or without numbers")


def check_memory(header: Header, free: int, name: str) -> None:
    """Refuse a trajectory that would not leave the machine room to breathe.

    Args:
        header: Of its file.
        free: Bytes of memory that are free.
        name: What it is called, for messages.

    Raises:
        PalimpsestError: Naming both.
    """
    widths = {dtype: max(4, DTYPES[dtype].itemsize) for dtype in DTYPES}
    needed = sum(e.numbers * widths[e.dtype] for e in header.tensors.values()) * MARGIN
    if needed > free:
        raise PalimpsestError(
            f"The trajectory file {quoted(name)} needs {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} are free: close what else takes memory, or invert at fewer steps or "
            "a smaller size."
        )


def _free_memory() -> int:
    return int(comfy.model_management.get_free_memory(torch.device("cpu")))


def _read(file: BinaryIO, entry: Entry) -> Tensor:
    """One tensor, in float32 or float64."""
    dtype = DTYPES[entry.dtype]
    held = torch.empty(entry.shape, dtype=dtype)
    memory = memoryview(held.view(-1).view(torch.uint8).numpy())
    file.seek(entry.start)
    done = 0
    while done < len(memory):
        got = file.readinto(memory[done : done + PIECE])
        if not got:
            raise DamagedFile("it became shorter while it was read")
        done += got
    return held.float() if dtype in HALVES else held
