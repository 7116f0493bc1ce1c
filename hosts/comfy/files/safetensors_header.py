"""What a safetensors file says it holds, checked against the file before anything is allocated.

Such a file is 8 bytes that give the length of its header, the header, which is JSON, and the
tensors' bytes. Every number in it may be a lie, or may be right and the file too large to read.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from .json_text import read_json_text

#: Bits of one number of each dtype that the format knows.
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

#: Bytes of the longest header that is read: those of the largest models take a few hundred KB.
LONGEST_HEADER = 16 * 2**20

#: Most tensors in a file, and most dimensions of one.
MOST_TENSORS, MOST_DIMENSIONS = 100_000, 16

#: The key that holds text instead of a tensor.
TEXT = "__metadata__"


class DamagedFile(ValueError):
    """A file that is not what it says it is; the message is a reason, without a full stop."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: A key of `BITS`.
        shape: Its shape.
        start: Where its bytes begin, from the beginning of the file.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file holds: its tensors in the order of their bytes, and its text."""

    tensors: dict[str, Entry]
    text: dict[str, str]


def read_header(file: BinaryIO) -> Header:
    """Read and check the header of an open file; it allocates no more than the header's length.

    Raises:
        DamagedFile: If it is no safetensors file, or does not hold what it says.
        OSError: If it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length < 2:
        raise DamagedFile("it is too short to be a safetensors file")
    if length > min(LONGEST_HEADER, size - 8):
        raise DamagedFile(f"it does not begin as a safetensors file of {size} bytes does")
    try:
        said = read_json_text(file.read(length))
    except ValueError as error:
        raise DamagedFile(f"its header is no JSON: {error}") from error
    if not isinstance(said, dict) or len(said) > MOST_TENSORS:
        raise DamagedFile(f"its header is no list of up to {MOST_TENSORS} tensors")
    text = _text(said.pop(TEXT, {}))
    tensors = [(name, _entry(entry, 8 + length)) for name, entry in said.items()]
    ordered = dict(sorted(tensors, key=lambda pair: (pair[1].start, pair[1].end)))
    _check_places(ordered, 8 + length, size)
    return Header(ordered, text)


def _text(said: object) -> dict[str, str]:
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise DamagedFile("the text in its header is no text")
    return said


def _entry(said: object, first: int) -> Entry:
    """One tensor of the header; `first` is where the bytes of the first one begin."""
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedFile("its header does not say dtype, shape and place of every tensor")
    dtype, shape, places = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise DamagedFile("it has a tensor of a dtype that safetensors does not know")
    if not _are_sizes(shape) or not _are_sizes(places) or len(places) != 2:
        raise DamagedFile("the shape or the place of one of its tensors is no list of sizes")
    start, end = places
    if math.prod(shape) * BITS[dtype] != (end - start) * 8:
        raise DamagedFile("one of its tensors has not the bytes that its shape needs")
    return Entry(dtype, tuple(shape), first + start, first + end)


def _are_sizes(said: object) -> bool:
    """Whether it is a list of a few whole numbers, none of which is larger than any file."""
    return (
        isinstance(said, list)
        and len(said) <= MOST_DIMENSIONS
        and all(type(n) is int and 0 <= n < 2**63 for n in said)
    )


def _check_places(tensors: Mapping[str, Entry], first: int, size: int) -> None:
    """Every byte after the header must belong to one tensor."""
    reached = first
    for entry in tensors.values():
        if entry.start != reached:
            raise DamagedFile("the bytes of its tensors overlap or leave gaps")
        reached = entry.end
    if reached != size:
        raise DamagedFile(f"its tensors need {reached} bytes, the file has {size}")
