"""How the cells of a model's latents lie on the pixels of a picture."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher


def cell_size(model: ModelPatcher) -> int:
    """Pixels along a side of one cell: 8 of most models, 16 of Flux.2, 1 of those without a VAE."""
    return model.get_model_object("latent_format").spacial_downscale_ratio


def frames_per_cell(model: ModelPatcher) -> int:
    """Frames of a video in one of its latent's, the first of which is of one frame alone."""
    return model.get_model_object("latent_format").temporal_downscale_ratio


def cut_off(pixels: int, cells: int, cell: int) -> int | None:
    """Pixels that VAE Encode cuts off before the first cell: half of what is no whole cell.

    Args:
        pixels: Along one side of the picture.
        cells: Along the same side of its latent.
        cell: Pixels of one.

    Returns:
        None if a picture of that side has another number of cells.
    """
    if pixels // cell != cells:
        return None
    return (pixels % cell) // 2
