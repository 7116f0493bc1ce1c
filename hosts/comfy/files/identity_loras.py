"""Where an identity's LoRA is saved, and its file."""

import json
from pathlib import Path

import folder_paths

from ..learning.identity import IdentityLora
from .names import Kind, place_for
from .numbered import SUFFIX, write_tensors


def lora_place(prefix: str) -> Path:
    """Where a LoRA of this name goes, without its number: inside the output folder's loras.

    Raises:
        PalimpsestError: If no LoRA of that name can be written.
    """
    folder = Path(folder_paths.get_output_directory()) / "loras"
    where = "the loras folder of ComfyUI's output folder"
    return place_for(prefix, Kind("The LoRA", folder, where, "cat", SUFFIX))


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
