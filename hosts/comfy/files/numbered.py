"""Numbered files in ComfyUI's output folder: whole or not at all, and never over another one.

A file is written in a folder of its own beside its place, brought to the disk, and then given its
name: a process that is killed at any moment leaves no part of a file under a name that counts.
What it may leave, the folder, is cleared away by a later save.
"""

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ....pipelines.errors import PalimpsestError
from .causes import cause, not_written

SUFFIX = ".safetensors"

#: Names of our folders for unfinished files, and of no one else's.
WORKSHOP = re.compile(r"\.palimpsest-[0-9a-f]{32}\.part")

#: Seconds without a write after which such a folder belongs to no running save any more.
ABANDONED = 3600.0


def write_tensors(
    place: Path, tensors: Mapping[str, Tensor], about: dict[str, str], what: str
) -> Path:
    """Write a safetensors file; see `write_numbered`.

    Args:
        place: Folder and name, without number and suffix.
        tensors: What it holds.
        about: The file's text.
        what: What it is called, for messages: "The trajectory".
    """
    held = _apart(tensors)
    return write_numbered(place, SUFFIX, lambda path: save_file(held, path, about), what)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: safetensors refuses views of one."""
    held: dict[str, Tensor] = {}
    places = set()
    for key, tensor in tensors.items():
        own = tensor.cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        held[key] = own.clone() if place in places else own
        places.add(place)
    return held


def write_numbered(place: Path, ending: str, write: Callable[[Path], None], what: str) -> Path:
    """Write the file `place_00001` + `ending`, or the next number that is still free.

    Args:
        place: Folder and name, without number and ending.
        ending: What follows the number.
        write: Writes it, under the path that it is given.
        what: What it is called, for messages: "The trajectory".

    Raises:
        PalimpsestError: If it cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(place.parent)
        with _workshop(place.parent) as folder:
            made = _finished(folder / "file", write)
            path = _under_a_free_name(made, place, ending)
        _to_disk(place.parent)
    except (OSError, SafetensorError) as error:
        why = not_written(what, place.name + ending, cause(error))
        raise PalimpsestError(why) from error
    return path


def clear_abandoned(folder: Path) -> None:
    """Remove what saves that were killed left in a folder, and nothing of anyone else's."""
    for found in folder.iterdir():
        if not WORKSHOP.fullmatch(found.name):
            continue
        with suppress(OSError):  # another run removes it too
            touched = max(path.lstat().st_mtime for path in (found, *found.iterdir()))
            if time.time() - touched > ABANDONED:
                shutil.rmtree(found, ignore_errors=True)


@contextmanager
def _workshop(beside: Path) -> Iterator[Path]:
    """A folder for one unfinished file; safetensors makes temporary files of its own in there."""
    folder = beside / f".palimpsest-{uuid.uuid4().hex}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finished(path: Path, write: Callable[[Path], None]) -> Path:
    """A file that is whole and on the disk, with the rights that a new file gets here."""
    path.touch()
    rights = path.stat().st_mode
    write(path)
    with suppress(PermissionError):  # FAT has no rights to give
        path.chmod(rights)  # safetensors gives them to the owner alone
    _to_disk(path)
    return path


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not all file systems can
            raise
    finally:
        os.close(handle)


def _under_a_free_name(made: Path, place: Path, ending: str) -> Path:
    number = 1
    while True:
        path = place.with_name(f"{place.name}_{number:05}{ending}")
        try:
            _give_name(made, path)
            return path
        except FileExistsError:
            number += 1


def _give_name(made: Path, path: Path) -> None:
    """Move a file to a name in one step; FileExistsError where the name is taken."""
    try:
        os.link(made, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG):
            raise
        # A file system without links (FAT): take the name, then put the file there.
        path.touch(exist_ok=False)
        try:
            made.replace(path)
        except BaseException:
            path.unlink()
            raise
