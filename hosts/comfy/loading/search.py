"""Where the model folders under a folder are."""

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

#: What a model folder holds.
INDEX = "model_index.json"

#: How deep, and through how many folders, is searched: links can make a few folders endless.
DEEPEST, MOST = 16, 10_000


def model_folders(root: Path) -> Iterator[Path]:
    """The folders below a folder that hold a model, by the paths that lead to them.

    Links are followed, as core does: people keep their models on other disks. A link to a folder
    that it lies in is not.
    """
    waiting: deque[tuple[Path, frozenset]] = deque([(root, frozenset())])
    seen = 0
    while waiting:
        folder, above = waiting.popleft()
        seen += 1
        if seen > MOST:
            logging.warning(
                "Palimpsest looked through %d folders under %s and looks no further: keep fewer "
                "other folders there.",
                MOST,
                root,
            )
            return
        with suppress(OSError):  # it vanished, or is not ours to read
            found = folder.stat()
            here = (found.st_dev, found.st_ino)
            if here in above or len(above) > DEEPEST:
                continue
            if (folder / INDEX).is_file():
                yield folder
                continue
            waiting += [(path, above | {here}) for path in _below(folder)]


def _below(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if _is_folder(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    with suppress(OSError):  # a link that leads to itself
        return entry.is_dir()
    return False
