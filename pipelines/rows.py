"""The two rows of an edit, and what happens to them between two steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from .schedule import Moment


class Guess(NamedTuple):
    """What a denoiser says of a latent.

    Attributes:
        denoised: [B, C, ...] the posterior mean.
        changed: [B, C, ...] in 0..1, where its guidance changed anything; None where it cannot say.
    """

    denoised: Tensor
    changed: Tensor | None = None


#: A denoiser that also says where its guidance changed anything.
Traced = Callable[[Tensor, Tensor], Guess]


class Stepping(Protocol):
    """A target that is moved before it is denoised."""

    def __call__(self, x: Tensor, at: Moment) -> tuple[Tensor, Guess]:
        """Where the step goes on from, and the guess there.

        Args:
            x: [B, C, ...] the target at the level of the step.
            at: The step.
        """
        ...


class Rows(NamedTuple):
    """Both rows of an edit between two steps.

    Attributes:
        target: [B, C, ...] the edit.
        source: [B, C, ...] the source row.
        guess: What the target's denoiser said in the step that led here; None before the first.
    """

    target: Tensor
    source: Tensor
    guess: Guess | None = None


class After(Protocol):
    """What happens to the rows after a step: a mask, a pull towards the chain, a blend."""

    def reads_source(self, at: Moment) -> bool:
        """Whether it needs the source's network to have run in this step."""
        ...

    def __call__(self, rows: Rows, chain_next: Tensor, at: Moment) -> Rows:
        """The rows as the next step shall find them.

        Args:
            rows: After the step.
            chain_next: [B, C, ...] the recorded chain where they are now.
            at: The step that was taken.
        """
        ...
