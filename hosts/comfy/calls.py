"""Calls of the network that we made ourselves, and what the rows in them are.

Other nodes make calls of their own with the options that they are handed, run a call in parts, add
rows to it or lengthen its prompts. A hook acts only in a call that carries the token of the session
that made it, and asks the rows what they are: core names for every part of a batch the branch of
the guidance (`cond_or_uncond`) and the entry of the conditioning (`uuids`) that it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from torch import Tensor

from ...pipelines.attention.hooks import BESIDE, ROLES, Role, Site
from ...pipelines.errors import PalimpsestError

#: Where a call carries its token, among the options that core hands to every patch.
TOKEN = "palimpsest_call"


@dataclass(frozen=True, eq=False)
class Prompts:
    """The conditionings that we ask for, by the names that core gives them.

    Attributes:
        tokens: Tokens of the prompt of every entry, by core's index of its branch and its id.
        source: Id of the entries of a source that run beside the branches; None where none do.
    """

    tokens: Mapping[tuple[int, UUID], int]
    source: UUID | None = None

    @classmethod
    def of(
        cls,
        branches: Sequence[Sequence[Mapping[str, Any]] | None],
        source: UUID | None = None,
    ) -> Prompts:
        """Those of the branches of a call, in core's order; None is asked for nothing."""
        tokens = {
            (index, entry["uuid"]): _tokens_of(entry)
            for index, entries in enumerate(branches)
            for entry in entries or ()
        }
        return cls(tokens, source)

    def roles(self, extra: Mapping[str, Any]) -> list[Role | None]:
        """Branch of each part of a batch; None for those that are not of these prompts.

        Args:
            extra: What core hands to a patch.
        """
        return [self._role(*name) for name in _names(extra)]

    def _role(self, index: int, entry: UUID) -> Role | None:
        if (index, entry) not in self.tokens:
            return None
        return BESIDE[ROLES[index]] if entry == self.source else ROLES[index]

    def length(self, extra: Mapping[str, Any]) -> int:
        """Tokens of the text context as core made it: prompts are repeated to one length."""
        return math.lcm(*(n for name in _names(extra) if (n := self.tokens.get(name))))


@dataclass(frozen=True, eq=False)
class Call:
    """One call that we made.

    Attributes:
        prompts: What it asks for.
        rows: Rows of each branch.
        size: Cells of the latent along each of its sides.
    """

    prompts: Prompts
    rows: int
    size: tuple[int, ...]

    @classmethod
    def of(
        cls,
        branches: Sequence[Sequence[Mapping[str, Any]] | None],
        x: Tensor,
        source: UUID | None = None,
    ) -> Call:
        """The call that shows [B, C, ...] rows to each branch."""
        return cls(Prompts.of(branches, source), len(x), tuple(x.shape[2:]))

    def check_whole(self, extra: Mapping[str, Any], rows: int, size: Sequence[int]) -> None:
        """Refuse a call that reached the network in parts.

        Args:
            extra: What core hands to a patch.
            rows: Rows of the batch there.
            size: Cells of the latent there.

        Raises:
            PalimpsestError: In one sentence.
        """
        if rows != self.rows * len(extra["cond_or_uncond"]) or tuple(size) != self.size:
            raise PalimpsestError(
                "The picture is run in parts, whose attention a control cannot tie to the "
                "source's: take Set Area, Set Mask with bounds or Context Windows away from "
                "the prompts (the negative's count too) and the model, or edit without the control."
            )


def call_of(extra: Mapping[str, Any]) -> tuple[Call | None, list[Role | None]]:
    """The call of ours that a patch was called in, and what its rows are; None where none is ours.

    Args:
        extra: What core hands to a patch.
    """
    call: Call | None = extra.get(TOKEN)
    roles = [] if call is None else call.prompts.roles(extra)
    return (call, roles) if any(roles) else (None, [])


def of_ours(hook: Callable[[Site, Any], Any]) -> Callable[[Site, Any], Any]:
    """A hook that is not asked about rows of others."""
    return lambda site, seen: hook(site, seen) if site.role else None


def _names(extra: Mapping[str, Any]) -> list[tuple[int, UUID]]:
    """Index of the branch and id of the entry, of each part of a batch."""
    return list(zip(extra["cond_or_uncond"], extra["uuids"], strict=True))


def _tokens_of(entry: Mapping[str, Any]) -> int:
    """Tokens of an entry's prompt; 0 where it has none."""
    text = getattr(entry["model_conds"].get("c_crossattn"), "cond", None)
    return text.shape[1] if isinstance(text, Tensor) and text.ndim == 3 else 0
