"""Where an identity's LoRA is saved, and its file."""

import json
from pathlib import Path

import folder_paths

from ....pipelines.errors import PalimpsestError
from ..learning.identity import IdentityLora
from .numbered import write_tensors


def lora_place(prefix: str) -> Path:
    """Where a LoRA of this name goes, without its number: inside the output folder's loras.

    Raises:
        PalimpsestError: If the prefix leaves that folder.
    """
    folder = (Path(folder_paths.get_output_directory()) / "loras").resolve()
    wanted = folder if "\0" in prefix else (folder / prefix).resolve()
    if wanted == folder or not wanted.is_relative_to(folder):
        raise PalimpsestError(
            f"The file name {prefix!r} leaves the loras folder of ComfyUI's output folder: "
            "use a name such as cat."
        )
    return wanted


def save_lora(lora: IdentityLora, place: Path) -> Path:
    """Write a LoRA that core's Load LoRA reads, under a number that is still free.

    Args:
        lora: What to write.
        place: From `lora_place`.

    Raises:
        PalimpsestError: If nothing can be written.
    """
    about = {"steps": len(lora.losses), "loss before": lora.before, "loss after": lora.after}
    text = {"format": "pt", "palimpsest_identity": json.dumps(about)}
    return write_tensors(place, lora.weights, text, "The LoRA")
