"""Pictures as files in ComfyUI's folders."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import folder_paths
from torch import Tensor

from ...drawing.sheet import as_picture
from .numbered import write_numbered


@dataclass(frozen=True)
class SavedPicture:
    """Where a picture lies, as ComfyUI's front end asks for it."""

    filename: str
    subfolder: str
    type: Literal["output"] = "output"

    def as_dict(self) -> dict[str, str]:
        """What stands in a node's `images`."""
        return asdict(self)


def save_picture(image: Tensor, prefix: str) -> SavedPicture:
    """Save a picture [H, W, 3] as PNG in the output folder, under the next free number.

    Raises:
        PalimpsestError: If it cannot be written.
    """
    folder, name, _, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), image.shape[1], image.shape[0]
    )
    picture = as_picture(image)
    path = write_numbered(
        Path(folder) / name, "_.png", lambda path: picture.save(path, "PNG"), "The picture"
    )
    return SavedPicture(path.name, subfolder)
