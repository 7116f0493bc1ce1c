"""What a loop other than `editing.Edit` does with a bank, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..denoiser import Denoiser
from ..schedule import Moment
from .bank import Bank
from .watch import within


def kept_within(bank: Bank | None, mask: Tensor | None, apart: Tensor) -> Tensor:
    """How far an edit is from its source, [B, C, h, w], where it may be; elsewhere nothing.

    Args:
        bank: Its watches bound the edit.
        mask: [1 or B, 1, h, w] in 0..1, so does this; None does not.
        apart: [B, C, h, w] the distance.
    """
    apart = within(bank.watches, apart) if bank else apart
    return apart if mask is None else mask * apart


@contextmanager
def beside_source(
    bank: Bank | None, record: Denoiser | None, at: Moment, x: Tensor, targets: int = 0
) -> Iterator[None]:
    """A step of the target, within which the bank holds what its source leaves; after it, nothing.

    Args:
        bank: None where there is no control.
        record: The source's rows; run where the control reads them and no one kept them before.
        at: The step.
        x: [B, C, ...] where the source stands.
        targets: Rows of the target, where the source's may run beside them.
    """
    if bank is not None:
        bank.begin(at)
        if record is not None and bank.runs(at):
            bank.fill(record, x, targets)
    yield
    if bank is not None:
        bank.begin(None)
