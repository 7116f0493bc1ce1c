"""What an edit asks of a host, and what a host lends to it.

A pipeline never sees a prompt: it names the branch it wants, what a method has put in the place of
parts of it, and who looks on. The host knows the prompts and gives back a denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from .attention.hooks import NO_HOOKS, Hooks, Role
from .attention.value_mapping import ValuesAt
from .denoiser import Denoiser, Guidance
from .schedule import Scale

#: One of the two prompts of an edit.
Whose = Literal["source", "target"]


class Mix(Protocol):
    """Guidance: one denoised guess of the conditional and the unconditional one."""

    def __call__(
        self, cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Asked:
    """What a branch of an edit is denoised under.

    Attributes:
        prompt: Whose prompt it follows.
        guidance: Scale at every level; None takes the edit's own.
        negative: Gives the [B or 1, tokens, channels] embedding that stands for the negative prompt
            at a 0-d level; None leaves the negative prompt itself.
        values: Gives the mapping of cross-attention's values at a level; None leaves them alone.
        mix: Guides in the place of the plain sum; None takes that.
        hooks: Who sees the network from inside.
        conditional: [B, C, ...] what the conditional row is shown in the place of x; its noise is
            taken over to x. None shows it x.
        gradients: Whether they flow from what the hooks see to x; of a recorder.
        beside: Source whose rows may run in one call with those of a branch of the guidance, and
            are seen first by the hooks, in the role that `hooks.BESIDE` has for that branch. Only
            where the lender `pairs`.
    """

    prompt: Whose
    guidance: Guidance | None = None
    negative: Callable[[Tensor], Tensor] | None = None
    values: ValuesAt | None = None
    mix: Mix | None = None
    hooks: Hooks = NO_HOOKS
    conditional: Tensor | None = None
    gradients: bool = False
    beside: Beside | None = None


@dataclass(frozen=True, eq=False)
class Beside:
    """A source whose rows may run in one call with the target's.

    Attributes:
        source: What they are denoised under.
        place: Asked once a step for every branch of the guidance: which row of the source runs
            beside that branch, and where it stands, [B, C, ...]; None where none shall run.
    """

    source: Asked
    place: PlaceOf


#: See `Beside.place`.
PlaceOf = Callable[[Role], tuple[Role, Tensor] | None]


class Lender(Protocol):
    """A host with a model loaded and the prompts of an edit in hand."""

    @property
    def scale(self) -> Scale:
        """How the model family scales its input."""
        ...

    @property
    def cfg(self) -> float:
        """Guidance scale of the edit."""
        ...

    @property
    def alone(self) -> bool:
        """Whether no one else takes part in the calls, and each branch of the target is run once.

        A call of the source may then be left, and what the target has read be dropped.
        """
        ...

    def pairs(self, source: Asked, target: Asked, rows: Mapping[Role, Role]) -> bool:
        """Whether rows of the source can run in one call with the target's that read them.

        Args:
            source: What the source is denoised under.
            target: What the target is.
            rows: For branches of the target, which row of the source each of them reads.
        """
        ...

    def denoiser(self, asked: Asked) -> Denoiser:
        """The guided denoiser of a branch."""
        ...

    def recorder(self, asked: Asked, roles: Sequence[Role]) -> Denoiser:
        """Some rows of a branch, for what its hooks see in them; guidance and mix are not read.

        Args:
            asked: The branch.
            roles: Which of its rows, one or both.
        """
        ...

    def one_row(self, asked: Asked) -> bool:
        """Whether both rows of a branch are shown the same; False where that cannot be told."""
        ...

    def key(self, asked: Asked) -> str:
        """What tells the branch's guided prediction from others, as text; "" where nothing does."""
        ...

    def features_key(self) -> str:
        """What the source's features depend on besides the chain; "" where that has no name."""
        ...
