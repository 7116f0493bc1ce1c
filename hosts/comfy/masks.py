"""Masks as ComfyUI's wires carry them, and in the cells of a latent."""

from __future__ import annotations

import torch
from torch import Tensor

from ...pipelines.errors import PalimpsestError


def latent_mask(mask: Tensor, origin: Tensor) -> Tensor:
    """[b, 1, h, w] of a MASK: a cell may change if any of its pixels may.

    Args:
        mask: [b, H, W] in 0..1.
        origin: [B, C, h, w] latent it is meant for.
    """
    size = origin.shape[-2:]
    mask = mask.float().unsqueeze(1).clamp(0, 1)
    if mask.shape[-2] < size[0] or mask.shape[-1] < size[1]:
        return torch.nn.functional.interpolate(mask, size=size, mode="nearest")
    return torch.nn.functional.adaptive_max_pool2d(mask, size)


def check_mask_count(mask: Tensor, pictures: int) -> None:
    """Refuse a MASK [b, H, W] that is neither for all pictures nor one for each."""
    if len(mask) not in (1, pictures):
        raise PalimpsestError(
            f"The mask holds {len(mask)} pictures, {pictures} shall be edited: give one mask, or "
            "one for each picture."
        )
