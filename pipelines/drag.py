"""SDE-Drag: move what is at one point of a picture to another, a little at a time.

One drag step noises the current result to t0 along a Markov chain, copies the region R around
every handle p to its next place q (`copy_paste`), and walks back along the chain in the delta form
of Cycle-SDE (`editing`). The next drag step starts from what came out, not from the picture.

References:
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, section 4.2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .copy_paste import Brush, Cell, Move, Regions, copy_paste
from .correction import CYCLE
from .couplings import OnStep
from .editing import Branches, Edit
from .errors import PalimpsestError
from .kept_region import outside
from .noise import Draw
from .points import DragPoints, Point
from .trajectory import Trajectory


def cells_of(points: DragPoints, cell: int, size: Cell | None = None) -> list[tuple[Cell, Cell]]:
    """Handle and target of every pair as latent cells.

    Args:
        points: In pixels.
        cell: Pixels per latent cell.
        size: Cells across and down, where the latent is of the middle of a picture whose sides are
            no multiples of `cell`; pixels that were cut off count to the nearest cell.

    Raises:
        PalimpsestError: If there is no pair, or one does not leave its cell.
    """
    if not points.pairs:
        raise PalimpsestError(
            "There is no drag: click on the picture in Drag Points and pull to where it shall go."
        )
    width, height = size or (math.ceil(n / cell) for n in points.size)
    offset = [
        max(0, n - cells * cell) // 2 for n, cells in zip(points.size, (width, height), strict=True)
    ]

    def place(point: Point) -> Cell:
        x, y = (int(at - cut) // cell for at, cut in zip(point, offset, strict=True))
        return min(max(x, 0), width - 1), min(max(y, 0), height - 1)

    pairs = [(place(handle), place(target)) for handle, target in points.pairs]
    for number, ((handle, target), pixels) in enumerate(zip(pairs, points.pairs, strict=True), 1):
        if handle == target:
            raise PalimpsestError(
                f"Drag {number} goes from {_text(pixels[0])} to {_text(pixels[1])}, which is one "
                f"and the same latent cell of {cell} x {cell} pixels: pull its target further."
            )
    return pairs


def nearest_cells(pixels: int, cell: int) -> int:
    """A length in latent cells: the nearest whole number, halves up, at least 1."""
    return max(1, (2 * pixels + cell) // (2 * cell))


def radius_of(points: DragPoints, cell: int) -> int:
    """The radius that points carry, in latent cells.

    Args:
        points: In pixels.
        cell: Pixels per latent cell.

    Raises:
        PalimpsestError: If they carry none, or its square does not fit into their picture.
    """
    if points.radius is None:
        raise PalimpsestError(
            "The radius is 0, which means as set on Drag Points, and there it counts latent cells: "
            "set unit on Drag Points to pixels, or set the radius here."
        )
    radius, most = nearest_cells(points.radius, cell), min(n // cell for n in points.size) // 2
    if radius > most:
        cure = f"use at most {most * cell}" if most else "paint what moves as a region instead"
        raise PalimpsestError(
            f"The radius on Drag Points is {points.radius} pixels, so that a square of "
            f"{2 * radius * cell} x {2 * radius * cell} is copied, larger than the picture of "
            f"{points.size[0]} x {points.size[1]}: {cure}."
        )
    return radius


def plan(
    pairs: Sequence[tuple[Cell, Cell]],
    stride: int = 2,
    *,
    early_stop: bool = False,
    still: bool = False,
) -> list[list[Move]]:
    """Cut drags into steps of about `stride` cells.

    Args:
        pairs: Handles and targets in latent cells.
        stride: Cells per step, 1 or more.
        early_stop: Every pair walks at the stride and is left alone when it has arrived. Otherwise
            all arrive together, as published, and short drags crawl.
        still: Keep moves of no length, as published; they only scale what is there by alpha.

    Returns:
        The moves of every drag step, pairs in order.

    Raises:
        PalimpsestError: If the stride is below 1.
    """
    if stride < 1:
        raise PalimpsestError(f"The stride must be 1 latent cell or more, got {stride}: raise it.")
    counts = [_step_count(_squared_length(*pair), stride) for pair in pairs]
    longest = max(counts, default=0)
    own = counts if early_stop else [longest] * len(pairs)
    steps = []
    for i in range(longest):
        moves = [
            Move(number, _on_the_way(*pair, i, count), _on_the_way(*pair, i + 1, count))
            for number, (pair, count) in enumerate(zip(pairs, own, strict=True))
            if i < count
        ]
        steps.append([move for move in moves if still or move.handle != move.target])
    return [moves for moves in steps if moves]


def _squared_length(handle: Cell, target: Cell) -> int:
    return (target[0] - handle[0]) ** 2 + (target[1] - handle[1]) ** 2


def _step_count(squared: int, stride: int) -> int:
    """The m whose mean stride D / m is nearest to `stride`, in integers; the smaller m on a tie."""
    m = math.isqrt(squared) // stride
    if m == 0:
        return 1
    # D / m - stride > stride - D / (m + 1), times m (m + 1), squared
    nearer = squared * (2 * m + 1) ** 2 > (2 * stride * m * (m + 1)) ** 2
    return m + 1 if nearer else m


def _on_the_way(handle: Cell, target: Cell, i: int, steps: int) -> Cell:
    """The handle after `i` of `steps`; fractions of a cell are cut toward the handle."""
    x, y = (
        a + (i * abs(b - a) // steps) * (1 if b > a else -1)
        for a, b in zip(handle, target, strict=True)
    )
    return x, y


def check_mask(mask: Tensor, pairs: Sequence[tuple[Cell, Cell]]) -> None:
    """Refuse a mask that keeps what shall be dragged away.

    Args:
        mask: [1 or B, 1, h, w], 0 where the picture is kept.
        pairs: Handles and targets in latent cells.

    Raises:
        PalimpsestError: Naming the drag.
    """
    for number, pair in enumerate(pairs, 1):
        for name, (x, y) in zip(("handle", "target"), pair, strict=True):
            if not bool((mask[..., y, x] > 0).all()):
                raise PalimpsestError(
                    f"The mask keeps the {name} of drag {number} as it is (it is black there): "
                    "paint it white over handle, target and the way between."
                )


#: Gives a latent its chain down to noise, source guesses included.
ChainOf = Callable[[Tensor], Trajectory]

#: Called after each drag step with (drag steps done, result so far).
OnDrag = Callable[[int, Tensor], None]


def drag(
    x0: Tensor,
    steps: Sequence[Sequence[Move]],
    *,
    chain_of: ChainOf,
    step: DragStep,
    on_step: OnStep | None = None,
    on_drag: OnDrag | None = None,
) -> Tensor:
    """Drag a picture along its plan.

    Args:
        x0: [B, C, h, w] the picture at the lowest level.
        steps: From `plan`.
        chain_of: Called once a drag step with the result so far.
        step: How a drag step is taken.
        on_step: Progress of the walk in each drag step.
        on_drag: Progress callback.
    """
    x = x0
    for i, moves in enumerate(steps, 1):
        x = step.take(chain_of(x), moves, on_step)
        if on_drag:
            on_drag(i, x)
    return x


@dataclass(frozen=True, eq=False)
class DragStep:
    """How every step of a drag is taken: copy at the noisiest level, and walk down.

    Attributes:
        branches: The guided denoisers of source and target, which are mostly one.
        eta: Of the step down.
        brush: How regions are copied.
        draw: Noise of the copying.
        mask: [1 or B, 1, h, w] in 0..1; where it is 0 the picture is kept.
        regions: The user's own regions; the brush's square if not given.
        mask_start: Whether the mask already holds for what was pasted, before the first call of
            the model. The published code lets content outside the mask into that call.
    """

    branches: Branches
    eta: float
    brush: Brush
    draw: Draw
    mask: Tensor | None = None
    regions: Regions | None = None
    mask_start: bool = True

    def take(
        self, trajectory: Trajectory, moves: Sequence[Move], on_step: OnStep | None = None
    ) -> Tensor:
        """[B, C, h, w] the picture after one step.

        Args:
            trajectory: The picture's chain, with its source's guesses.
            moves: What is copied where.
            on_step: Progress of the walk.
        """
        kept = outside(self.mask, trajectory)
        start = copy_paste(
            trajectory.start,
            moves,
            float(trajectory.sigmas[-1]),
            brush=self.brush,
            draw=self.draw,
            regions=None if self.regions is None else self.regions.at(moves),
        )
        if self.mask_start:
            for region in kept:
                start = region.within(start, trajectory.start)
        whole = Edit(trajectory, self.branches, CYCLE, self.eta, after=kept)
        return whole.run(on_step, start=start).latent


def _text(point: Point) -> str:
    return f"({point[0]:g}, {point[1]:g})"
