"""Where an inversion's source features are kept in ComfyUI: memory, or its temp folder."""

import shutil
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ....pipelines.attention.features import Kept, Store
from ....pipelines.attention.hooks import QKV, Site
from ....pipelines.errors import PalimpsestError

MIB = 2**20


@dataclass
class MemoryStore:
    """Features in memory, where ComfyUI keeps what goes from node to node."""

    _steps: dict[int, Kept] = field(default_factory=dict)

    def write(self, step: int, kept: Kept) -> None:
        """Keep those of a step."""
        place = comfy.model_management.intermediate_device()
        self._steps[step] = {
            site: QKV(*(None if t is None else t.to(place) for t in qkv))
            for site, qkv in kept.items()
        }

    def read(self, step: int) -> Kept:
        """Give back those of a step."""
        return self._steps[step]


class DiskStore:
    """Features as one safetensors file per step in ComfyUI's temp folder.

    The files go when the last trajectory that holds them does; ComfyUI clears the folder itself
    when it starts and stops.
    """

    def __init__(self) -> None:
        name = f"palimpsest_features_{uuid.uuid4().hex}"
        self._folder = Path(folder_paths.get_temp_directory()) / name
        self._folder.mkdir(parents=True)
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def write(self, step: int, kept: Kept) -> None:
        """Keep those of a step."""
        tensors = {
            f"{site.kind} {site.layer} {site.role} {name}": tensor.contiguous()
            for site, qkv in kept.items()
            for name, tensor in zip(QKV._fields, qkv, strict=True)
            if tensor is not None
        }
        try:
            save_file(tensors, self._path(step))
        except (OSError, SafetensorError) as error:
            raise PalimpsestError(
                f"The source features cannot be written to ComfyUI's temp folder ({error}): make "
                "room there, or set source_features to memory or off."
            ) from error

    def read(self, step: int) -> Kept:
        """Give back those of a step."""
        try:
            tensors = load_file(self._path(step))
        except (OSError, SafetensorError) as error:
            raise PalimpsestError(
                f"The source features are gone from ComfyUI's temp folder ({error}): invert the "
                "picture again."
            ) from error
        parts: dict[Site, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            kind, layer, role, name = key.split()
            parts.setdefault(Site(kind, int(layer), role), {})[name] = tensor
        return {site: QKV(*(p.get(f) for f in QKV._fields)) for site, p in parts.items()}

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:04}.safetensors"


def feature_store(place: str) -> Store:
    """An empty store in "memory" or on "disk"."""
    return MemoryStore() if place == "memory" else DiskStore()


def features_text(needed: int, budget: int, place: str) -> str:
    """What became of the features, for people.

    Args:
        needed: Bytes that they take.
        budget: Bytes that they may take.
        place: "memory" or "disk".
    """
    takes = f"{needed / MIB:.1f} MiB"
    if needed <= budget:
        return f"source features: {takes} kept in {place}"
    return (
        f"source features: not kept, they take {takes} and the budget is {budget // MIB} MiB; Edit "
        "runs its source rows as usual"
    )
