"""Points, masks and regions in the cells of a LATENT, and Copy-Paste on it."""

from collections.abc import Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.copy_paste import Brush, Cell, Move, Regions, connected, copy_paste
from ....pipelines.drag import cells_of, radius_of
from ....pipelines.errors import PalimpsestError
from ....pipelines.noise import seeded
from ....pipelines.points import DragPoints
from ..cells import cell_size
from ..coordinates import coordinates_of
from ..masks import check_mask_fits, latent_mask, mask_pictures
from ..refusals import check_has_picture, check_samples


def _check_picture(points: DragPoints, model: ModelPatcher, samples: Tensor) -> None:
    """Refuse points that were set on a picture of another size than the latent's."""
    cell = cell_size(model)
    height, width = samples.shape[-2:]
    if tuple(n // cell for n in points.size) != (width, height):
        raise PalimpsestError(
            f"The points were set on a picture of {points.size[0]} x {points.size[1]} pixels, the "
            f"latent is of {width * cell} x {height * cell}: connect the latent of their picture, "
            "or set the points anew."
        )


def latent_cells(
    points: DragPoints, model: ModelPatcher, samples: Tensor
) -> list[tuple[Cell, Cell]]:
    """Pairs in the cells of a latent [B, C, ..., h, w] that was encoded from their picture."""
    return cells_of(points, cell_size(model), (samples.shape[-1], samples.shape[-2]))


def radius_in_cells(
    radius: int, points: DragPoints, model: ModelPatcher, region: Tensor | None
) -> int:
    """The radius of a brush, in cells of a model's latent.

    Args:
        radius: As asked for; 0 for the one that the points carry.
        points: What moves where.
        model: Whose latent it is.
        region: What moves instead of a square, which then needs no radius.

    Raises:
        PalimpsestError: If there is no radius, or its square does not fit into the picture.
    """
    if radius:
        return radius
    if region is not None:
        return 1
    return radius_of(points, cell_size(model))


def regions_of(
    region: Tensor, pairs: Sequence[tuple[Cell, Cell]], model: ModelPatcher, samples: Tensor
) -> Regions:
    """What moves with every pair: the part of a MASK that hangs together under its handle.

    It is that of the first picture, and moves alike in all of them.

    Raises:
        PalimpsestError: If it is no mask, or black under a handle.
    """
    first = mask_pictures(region)[:1]
    check_mask_fits(first, model, samples, 1)
    cells = latent_mask(first, model, samples)[0, 0] >= 0.5
    cells = cells.reshape(samples.shape[-2:]).cpu()
    handles = tuple(handle for handle, _ in pairs)
    return Regions(tuple(connected(cells, handle) for handle in handles), handles)


def paste_on_latent(
    samples: Tensor,
    points: DragPoints,
    model: ModelPatcher,
    levels: Tensor,
    *,
    brush: Brush,
    seed: int,
    region: Tensor | None = None,
    batch_index: tuple[int, ...] | None = None,
) -> Tensor:
    """Copy-Paste on a noisy LATENT, whole drags at once.

    Args:
        samples: [B, C, ..., h, w] LATENT samples with leftover noise; frames are pasted alike.
        points: What moves where.
        model: Whose latent it is.
        levels: [k+1] core's SIGMAS that will finish it; the first is its noise level.
        brush: How.
        seed: Of the noise.
        region: [b, H, W] MASK of what moves; None copies squares.
        batch_index: Numbers of the pictures that the noise is drawn by, if they have any.

    Returns:
        LATENT samples; cells that nothing was copied from or to keep their bits.
    """
    check_samples(model, samples)
    check_has_picture(samples, "Copy-Paste")
    coordinates = coordinates_of(model, "Copy-Paste")
    if not len(levels):
        raise PalimpsestError(
            "The sigmas are empty, so that the level of the latent is not known: connect those "
            "that will finish it, for example of SDEdit Noise."
        )
    _check_picture(points, model, samples)
    pairs = latent_cells(points, model, samples)
    moves = [Move(i, *pair) for i, pair in enumerate(pairs)]
    sigma = float(coordinates.sigma(levels[0].double()))
    x = model.model.process_latent_in(samples.float())
    regions = None
    if region is not None:
        regions = regions_of(region, pairs, model, samples).at(moves)
    draw = seeded(seed, batch_index)
    pasted = copy_paste(x, moves, sigma, brush=brush, draw=draw, regions=regions)
    out = model.model.process_latent_out(pasted)
    return torch.where(pasted == x, samples.float(), out)
