"""Copy-Paste: move a region of a noisy latent, and forget it where it was.

In x = x0 + sigma * noise, with R the region around a handle p or its target q, F a copy of x[R(p)]
taken before, and z fresh noise:

    x[R(p)] = beta F + sqrt(1 - beta^2) sqrt(1 + sigma^2) z           the handle is forgotten
    x[R(q)] = alpha F                                                 written last: it wins

The noise has the size sqrt(1 + sigma^2) that the whole latent has where data have unit variance, in
all model families.

References:
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, eq. 12
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PalimpsestError
from .noise import Draw

#: (x, y) of a latent cell.
Cell = tuple[int, int]


@dataclass(frozen=True)
class Move:
    """What one pair does in one drag step, in latent cells.

    Attributes:
        pair: Number of the pair, from 0.
        handle: Where its handle is.
        target: Where its handle goes.
    """

    pair: int
    handle: Cell
    target: Cell


@dataclass(frozen=True)
class Brush:
    """How a region is copied.

    Attributes:
        radius: The region is a square of 2 radius x 2 radius cells, the handle right below and
            right of its middle.
        alpha: Factor of the copy; above 1 it comes out a little clearer.
        beta: Part of the signal that stays where the region was, 0 to 1; the rest is noise.
        full_border: Whether the last row and column can be copied. The published code leaves them.
    """

    radius: int = 5
    alpha: float = 1.1
    beta: float = 0.3
    full_border: bool = True

    def __post_init__(self) -> None:
        if self.radius < 1:
            raise PalimpsestError(
                f"The radius must be 1 latent cell or more, got {self.radius}: raise it."
            )
        if not 0 <= self.beta <= 1:
            raise PalimpsestError(
                f"Beta is the part of the signal that stays, 0 to 1, got {self.beta}: lower it."
            )
        if not math.isfinite(self.alpha):
            raise PalimpsestError(f"Alpha must be a number, got {self.alpha}: set it to 1.1.")


def copy_paste(
    x: Tensor,
    moves: Sequence[Move],
    sigma: float,
    *,
    brush: Brush,
    draw: Draw,
    regions: Sequence[Tensor] | None = None,
) -> Tensor:
    """Copy the region of every move to its target and forget it where it was.

    Moves act one after the other: a later one sees what an earlier one wrote. A cell is copied only
    if both ends of its way lie inside the picture.

    Args:
        x: [B, C, h, w] at noise level `sigma`.
        moves: In latent cells.
        sigma: Noise level of `x`.
        brush: How.
        draw: Asked once a move, for [B, C, cells].
        regions: [h, w] bool per pair, what moves with it now; the brush's square if not given.

    Raises:
        PalimpsestError: If a move lies outside the picture or the square does not fit into it.
    """
    height, width = x.shape[-2:]
    _check_fit(brush, moves, width, height, square=regions is None)
    x = x.clone()
    noise_size = math.sqrt(1 - brush.beta**2) * math.sqrt(1 + sigma**2)
    for move in moves:
        if regions is None:
            rows, columns = _square(move.handle, brush.radius)
        else:
            rows, columns = regions[move.pair].nonzero(as_tuple=True)
        down, right = (move.target[axis] - move.handle[axis] for axis in (1, 0))
        edge = 0 if brush.full_border else 1
        inside = _within(rows, height - edge) & _within(columns, width - edge)
        inside &= _within(rows + down, height - edge) & _within(columns + right, width - edge)
        rows, columns = (index[inside].to(x.device) for index in (rows, columns))
        copied = x[..., rows, columns]
        x[..., rows, columns] = brush.beta * copied + noise_size * draw(copied)
        x[..., rows + down, columns + right] = brush.alpha * copied
    return x


def _square(middle: Cell, radius: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells of a square, row by row."""
    rows, columns = (torch.arange(at - radius, at + radius) for at in (middle[1], middle[0]))
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return grid[0].flatten(), grid[1].flatten()


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _check_fit(
    brush: Brush, moves: Sequence[Move], width: int, height: int, *, square: bool
) -> None:
    side = 2 * brush.radius
    most = min(width, height) // 2
    if square and brush.radius > most:
        cure = f"use at most {most}" if most else "paint what moves as a region, which may be thin"
        raise PalimpsestError(
            f"The radius is {brush.radius} cells, so that a square of {side} x {side} is copied, "
            f"larger than the latent of {width} x {height}: {cure}."
        )
    for move in moves:
        for x, y in (move.handle, move.target):
            if not (0 <= x < width and 0 <= y < height):
                raise PalimpsestError(
                    f"Drag {move.pair + 1} reaches cell ({x}, {y}), outside the latent of {width} "
                    f"x {height}: move its points inside the picture."
                )


def connected(region: Tensor, start: Cell) -> Tensor:
    """The part of a region that hangs together with one cell, sides and corners alike.

    Args:
        region: [h, w] bool.
        start: A cell of it.

    Raises:
        PalimpsestError: If the cell is not in the region.
    """
    x, y = start
    if not bool(region[y, x]):
        raise PalimpsestError(
            f"The region is black at cell ({x}, {y}), where a handle is: paint what shall move "
            "around every handle, or leave the region away to copy a square."
        )
    part = torch.zeros_like(region)
    part[y, x] = True
    while True:
        grown = torch.nn.functional.max_pool2d(part[None, None].float(), 3, 1, 1)[0, 0] > 0
        grown &= region
        if torch.equal(grown, part):
            return part
        part = grown


def shifted(region: Tensor, right: int, down: int) -> Tensor:
    """A region [h, w] moved by whole cells; what leaves the picture is lost."""
    out = torch.zeros_like(region)
    rows, columns = region.nonzero(as_tuple=True)
    rows, columns = rows + down, columns + right
    inside = _within(rows, region.shape[0]) & _within(columns, region.shape[1])
    out[rows[inside], columns[inside]] = True
    return out


@dataclass(frozen=True)
class Regions:
    """The user's own regions, one a pair, where their handles are at the start.

    Attributes:
        masks: [h, w] bool per pair.
        handles: Latent cell of every pair's handle.
    """

    masks: tuple[Tensor, ...]
    handles: tuple[Cell, ...]

    def at(self, moves: Sequence[Move]) -> list[Tensor]:
        """Every pair's region where its handle is now; pairs that do not move stay."""
        now = dict(enumerate(self.handles)) | {move.pair: move.handle for move in moves}
        return [
            shifted(mask, now[i][0] - handle[0], now[i][1] - handle[1])
            for i, (mask, handle) in enumerate(zip(self.masks, self.handles, strict=True))
        ]
