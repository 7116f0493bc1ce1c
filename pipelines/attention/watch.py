"""Who looks on while an edit runs, and may bound it by what the attention of its rows says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..rows import After
from ..schedule import Moment
from .hooks import QKV, Site, Term

if TYPE_CHECKING:
    from .control import Control

#: The attention of the target's rows, as a control edits it, to any values [B, S, C].
Attended = Callable[[Tensor], tuple[Term, ...]]


class Onlooker(Protocol):
    """Sees the attention of both rows of one edit, step by step. Made and dropped by that edit."""

    def see(self, own: QKV, source: QKV | None, attended: Attended, site: Site, at: Moment) -> None:
        """Look at one attention of the target's rows.

        Args:
            own: Their tensors.
            source: What was recorded at the site; None where nothing is read there.
            attended: What the control makes of the attention.
            site: Where.
            at: The step.
        """
        ...


class Watch(Onlooker, After, Protocol):
    """An onlooker that bounds the edit.

    Where the edit has a loop of its own, which walks distances from the source, its cells are all
    that is asked for.
    """

    @property
    def cells(self) -> Tensor | None:
        """[1 or B, 1, h, w] in 0..1, 0 where the picture is kept after this step; None keeps none.

        After the edit it is the bound of its last step.
        """
        ...


class Begun(NamedTuple):
    """A control within one edit.

    Attributes:
        control: It, or what acts in its place there.
        watches: What bounds the edit for it.
        onlookers: Who only looks on.
    """

    control: Control
    watches: tuple[Watch, ...] = ()
    onlookers: tuple[Onlooker, ...] = ()


@runtime_checkable
class WatchingControl(Protocol):
    """What a control has besides, where it looks at an edit while that runs."""

    def begun(self, size: tuple[int, int]) -> Begun:
        """The control within one edit, made for it.

        Args:
            size: Cells of the latent, h and w.
        """
        ...


@runtime_checkable
class WordedControl(Protocol):
    """What a control has besides, where it may name words of the prompts."""

    @property
    def names_words(self) -> bool:
        """Whether it does, and so holds for the prompts that it was made for."""
        ...


def begun(control: Control, size: tuple[int, int]) -> Begun:
    """A control within one edit of a latent of h x w cells."""
    return control.begun(size) if isinstance(control, WatchingControl) else Begun(control)


def within(watches: Iterable[Watch], apart: Tensor) -> Tensor:
    """How far an edit is from its source, [B, C, h, w], cut to the bounds that were found."""
    for watch in watches:
        cells = watch.cells
        apart = apart if cells is None else over(cells, apart) * apart
    return apart


def over(cells: Tensor, latent: Tensor) -> Tensor:
    """[1 or B, 1, h, w] cells, to be multiplied with a latent; that of a video has frames too."""
    return (cells if latent.ndim == 4 else cells.unsqueeze(2)).to(latent)


def bounds(watches: Iterable[Watch]) -> Tensor | None:
    """[1 or B, 1, h, w] where all of them let the edit be; None where none bounds it."""
    found = [cells for watch in watches if (cells := watch.cells) is not None]
    return torch.stack(torch.broadcast_tensors(*found)).amin(0) if found else None
