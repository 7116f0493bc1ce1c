"""Names that people give files: such as every system can hold, inside one of ComfyUI's folders."""

import errno
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ....pipelines.errors import PalimpsestError, quoted
from .causes import CAUSES, not_written

#: Names that Windows keeps for devices, whatever follows a dot.
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"
}

#: Characters that Windows allows in no name; slashes part folders, on every system.
FORBIDDEN = '<>:"|?*'

#: What is put between a name and its ending while it is measured.
NUMBER = "_00001"

#: Longest names, where the system does not tell.
LONGEST_NAME, LONGEST_PATH = 255, 4096

#: Bytes that an unfinished file's own folder adds to the path of the folder beside.
UNFINISHED = 80


@dataclass(frozen=True)
class Kind:
    """Where files of one kind go.

    Attributes:
        what: What one is called, to begin a sentence: "The trajectory".
        folder: The folder that their names may not leave.
        where: What it is called.
        example: A good name.
        ending: What follows a name and its number.
    """

    what: str
    folder: Path
    where: str
    example: str
    ending: str


class _Fault(ValueError):
    """What is wrong with a name, to follow "The file name ..."."""


def place_for(name: str, kind: Kind) -> Path:
    """The path that a name stands for, without number and ending.

    Whatever can be refused about a name is refused here, and nothing is made: it can be asked
    before anything that takes long.

    Args:
        name: As the person gave it: folders, if any, parted by slashes, and the words that core's
            Save Image fills in, `%year%` and its like.
        kind: What is going to be written.

    Raises:
        PalimpsestError: If no file of that name can be written.
    """
    try:
        path = _checked(name, kind)
    except _Fault as fault:
        raise PalimpsestError(
            f"The file name {quoted(name)} {fault}: use a name such as {kind.example}."
        ) from None
    obstacle = _obstacle(path.parent)
    if obstacle is not None:
        raise PalimpsestError(not_written(kind.what, path.name + kind.ending, CAUSES[obstacle]))
    return path


def filled_in(name: str) -> str:
    """A name with what the server's part of core fills in: %year%, %month%, ... %second%.

    %width% and %height% belong to pictures and are 0, as they are in core's Save Latent. The page
    fills in %date:...% and %Node.widget% (`web/file_names.js`).
    """
    words = list(dict.fromkeys(re.findall(r"%[a-z]+%", name)))
    if not words:
        return name
    # Core fills them in on its way to a folder that it lists, for a number that is not used here:
    # any small folder will do. All words at once, so that they are of one second.
    told = folder_paths.get_save_image_path("|".join(words), str(Path(__file__).parent))[4]
    values = dict(zip(words, told.split("|"), strict=True))
    return re.sub(r"%[a-z]+%", lambda word: values[word[0]], name)


def _checked(name: str, kind: Kind) -> Path:
    text = filled_in(name).replace("\\", "/")
    _check_characters(text)
    folder = kind.folder.resolve()
    path = Path(os.path.normpath(folder / text))
    if not text.strip() or path == folder or not path.is_relative_to(folder):
        raise _Fault(f"leaves {kind.where}")
    parts = path.relative_to(folder).parts
    for part in parts:
        _check_part(part)
    _check_length(path, parts, kind.ending)
    try:
        inside = path.parent.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # which one depends on Python
        raise _Fault("leads through a link to itself") from None
    if not inside:
        raise _Fault(f"leaves {kind.where} by a link")
    return path


def _check_characters(text: str) -> None:
    if "%date:" in text:
        raise _Fault("has %date:...%, which only ComfyUI's page fills in")
    wrong = next((c for c in text if c in FORBIDDEN or ord(c) < 32 or c == "\x7f"), None)
    if wrong is not None:
        raise _Fault(f"has the character {wrong!r}, which not every system allows in a name")
    if any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise _Fault("has half of a character")


def _check_part(part: str) -> None:
    if part[-1] in ". ":
        raise _Fault(f"has {quoted(part)}, whose last character Windows drops")
    if part.split(".")[0].rstrip().upper() in DEVICES:
        raise _Fault(f"has {quoted(part)}, which Windows keeps for a device")


def _check_length(path: Path, parts: Sequence[str], ending: str) -> None:
    names = [*parts[:-1], f"{parts[-1]}{NUMBER}{ending}"]
    longest, most = max(map(_length, names)), _limit(path, "PC_NAME_MAX", LONGEST_NAME)
    if longest > most:
        raise _Fault(f"is too long: with its number it takes {longest} bytes of at most {most}")
    whole = _length(str(path.parent)) + max(UNFINISHED, 1 + _length(names[-1]))
    most = _limit(path, "PC_PATH_MAX", LONGEST_PATH) - 1
    if whole > most:
        raise _Fault(f"is too long: with its folders it takes {whole} bytes of at most {most}")


def _length(name: str) -> int:
    """As the system counts: bytes, on Windows pairs of them."""
    return len(name.encode("utf-16-le")) // 2 if os.name == "nt" else len(os.fsencode(name))


def _limit(path: Path, name: str, usual: int) -> int:
    """What the disk of a path says of itself."""
    with suppress(AttributeError, OSError, ValueError):  # Windows has no pathconf
        return os.pathconf(_nearest(path), name)
    return usual


def _nearest(path: Path) -> Path:
    """The folder that is there already, of those that lead to a path."""
    return next(p for p in path.parents if os.path.lexists(p))


def _obstacle(folder: Path) -> int | None:
    """The system's number of what would keep files from being made in a folder."""
    nearest = folder if os.path.lexists(folder) else _nearest(folder)
    if not nearest.is_dir():
        return errno.ENOTDIR
    if os.access(nearest, os.W_OK | os.X_OK):
        return None
    read_only = hasattr(os, "statvfs") and os.statvfs(nearest).f_flag & os.ST_RDONLY
    return errno.EROFS if read_only else errno.EACCES
