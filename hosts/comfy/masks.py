"""Masks as ComfyUI's wires carry them, and in the cells of a latent.

A MASK is made for the pixels of a picture, a latent has cells. VAE Encode takes the middle of a
picture whose sides are no multiple of a cell, so a mask of that picture's size is cut alike. A mask
of any other size is stretched over the latent, as core stretches noise masks. A cell may change if
any of its pixels may. Several masks are those of several pictures, or of the frames of a video.
"""

from __future__ import annotations

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d

from ...pipelines.errors import PalimpsestError
from .cells import cell_size, cut_off, frames_per_cell
from .refusals import check_has_picture


def latent_mask(mask: Tensor, model: ModelPatcher, latent: Tensor) -> Tensor:
    """A MASK in the cells of a latent, on the mask's device.

    Args:
        mask: [H, W], [b, H, W] or [b, 1, H, W] in 0..1; one that passes `check_mask_fits`.
        model: Whose latent it is; says how large a cell is.
        latent: [B, C, h, w] it is meant for, or [B, C, frames, h, w].

    Returns:
        [b, 1, h, w], or [b, 1, 1 or frames, h, w].
    """
    size = latent.shape[-2:]
    # Nodes that resize bicubically overshoot 0 and 1 a little.
    pictures = mask_pictures(mask).float().clamp(0, 1)
    pictures = _encoded(pictures, cell_size(model), size)
    if latent.ndim == 4:
        return adaptive_max_pool2d(pictures[:, None], size)
    frames = latent.shape[2]
    if frames == 1 or len(pictures) == 1:
        return adaptive_max_pool2d(pictures[:, None], size)[:, :, None]
    # The first frame is encoded alone, the others in groups, and what fills no group not at all.
    each = 1 if len(pictures) == frames else frames_per_cell(model)
    led = torch.cat([pictures[:1]] * (each - 1) + [pictures[: 1 + (frames - 1) * each]])
    return adaptive_max_pool3d(led[None, None], (frames, *size))


def pixel_mask(cells: Tensor, model: ModelPatcher) -> Tensor:
    """[b, H, W] MASK of the pixels that the cells [b, 1, h, w] of a latent stand for.

    Of a video every frame of [b, 1, frames, h, w] is one.
    """
    frames = cells.flatten(0, 1).flatten(0, -3)
    cell = cell_size(model)
    return frames.repeat_interleave(cell, -1).repeat_interleave(cell, -2)


def mask_pictures(mask: Tensor) -> Tensor:
    """[b, H, W] of a MASK: core's nodes also give, and take, [H, W] and [b, 1, H, W].

    Raises:
        PalimpsestError: If it is of another shape, or empty.
    """
    single = mask.ndim == 4 and mask.shape[1] == 1
    if not (mask.ndim in (2, 3) or single) or not mask.numel():
        raise PalimpsestError(
            f"The mask is {tuple(mask.shape)}, it must be [batch, height, width] with at least one "
            "picture: connect a MASK, such as Load Image's."
        )
    return mask.reshape(-1, *mask.shape[-2:])


def is_black(mask: Tensor) -> bool:
    """Whether a MASK leaves nothing white."""
    return not bool(mask_pictures(mask).any())


def stretched(mask: Tensor, size: tuple[int, int]) -> bool:
    """Whether a MASK is of another shape than a picture of [height, width] pixels.

    A larger or smaller one of the same shape lies on it as well; one percent is rounding.
    """
    height, width = mask_pictures(mask).shape[1:]
    return abs(height * size[1] / (width * size[0]) - 1) > max(0.01, 8 / min(size))


def check_mask_fits(mask: Tensor, model: ModelPatcher, latent: Tensor, pictures: int) -> None:
    """Refuse a MASK that says nothing about a latent.

    Args:
        mask: From the wire.
        model: Whose latent it is.
        latent: [B, C, h, w], or [B, C, frames, h, w].
        pictures: How many shall be edited; several prompts make several of one.

    Raises:
        PalimpsestError: If it is no mask, holds NaN, is of a latent that has no picture, or is
            neither for all pictures (or frames) nor one for each.
    """
    count = len(mask_pictures(mask))
    if not bool(torch.isfinite(mask).all()):
        raise PalimpsestError(
            "The mask holds NaN or infinity: the node that made it divided by zero or overflowed; "
            "mend that one."
        )
    check_has_picture(latent, "A mask")
    frames = latent.shape[2] if latent.ndim == 5 else 1
    if frames == 1 and count not in (1, pictures):
        raise PalimpsestError(
            f"The mask holds {count} pictures, {pictures} shall be edited: give one mask, or "
            "one for each picture."
        )
    each = frames_per_cell(model)
    shown = 1 + (frames - 1) * each
    if frames > 1 and count not in (1, frames, *range(shown, shown + each)):
        raise PalimpsestError(
            f"The mask holds {count} frames, the video has {shown} ({frames} in its latent): give "
            "one mask, or one for each frame."
        )


def _encoded(pictures: Tensor, cell: int, size: tuple[int, int]) -> Tensor:
    """What a VAE takes of pictures [b, H, W] of that size; pictures of another are left whole."""
    cut = [cut_off(n, cells, cell) for n, cells in zip(pictures.shape[-2:], size, strict=True)]
    if None in cut:
        return pictures
    top, left = cut
    return pictures[:, top : top + size[0] * cell, left : left + size[1] * cell]
