"""Masks from the user that a control holds: made for pixels, bound to the cells of a latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from .control import Control

#: Brings a mask of pixels to the cells of the latent that is edited.
Cells = Callable[[Tensor], Tensor]


@runtime_checkable
class MaskedControl(Protocol):
    """What a control has besides, where it holds masks."""

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """They, as they were given."""
        ...

    def placed(self, cells: Cells) -> Control:
        """The same control with its masks on the cells of a latent, [1 or B, 1, h, w]."""
        ...


def of_picture(mask: Tensor, cells: Cells) -> Tensor:
    """A mask on the cells of a latent, [1 or B, 1, h, w]: a picture may be a video of one frame."""
    on = cells(mask)
    return on if on.ndim == 4 else on[:, :, 0]


def masks_of(control: Control) -> tuple[Tensor, ...]:
    """Every mask that a control holds."""
    return control.masks if isinstance(control, MaskedControl) else ()


def placed(control: Control, cells: Cells) -> Control:
    """A control whose masks, if it holds any, lie on the cells of a latent."""
    return control.placed(cells) if isinstance(control, MaskedControl) else control
