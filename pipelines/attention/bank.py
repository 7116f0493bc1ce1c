"""Record, then inject: how an edit reads the attention of its source without any map.

The source row runs first and leaves in the bank the tensors that the control will read; the target
rows run next. What a control wants is always a sum of fused attentions

    out = SDPA(q1, k1, v1) + SDPA(q2, k2, v2) + ...

whose queries, keys and values come from either row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Kind = Literal["self", "cross"]
Role = Literal["cond", "uncond"]


class Site(NamedTuple):
    """One attention call, seen for one branch of the guidance.

    Attributes:
        kind: Self- or cross-attention.
        layer: Position among the network's transformer blocks in execution order, from 0.
        role: Which branch of the guidance the rows belong to.
    """

    kind: Kind
    layer: int
    role: Role


class QKV(NamedTuple):
    """Queries [B, P, C], keys [B, S, C] and values [B, S, C]; heads lie side by side in C.

    Of a recorded source, what no control reads may be None.
    """

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None


class AttentionHook(Protocol):
    """What a host calls at every attention: the terms of the sum, or None to leave it alone."""

    def __call__(self, site: Site, qkv: QKV) -> tuple[QKV, ...] | None: ...


class Control(Protocol):
    """An attention control: a frozen value that says what it reads and what it makes of it."""

    def reads(self, site: Site, tokens: int, step: int, steps: int) -> bool:
        """Whether it reads the source at this site in this step (`tokens` = queries)."""
        ...

    def active(self, step: int, steps: int) -> bool:
        """Whether it reads the source anywhere in this step."""
        ...

    def kept(self, qkv: QKV) -> QKV:
        """Of the source's tensors those that it reads, None for the others."""
        ...

    def terms(self, qkv: QKV, source: QKV, site: Site, step: int, steps: int) -> tuple[QKV, ...]:
        """The attention of the target rows `qkv`, given the `source` recorded at the site."""
        ...


class KeptFeatures(Protocol):
    """What an earlier run kept of the source (`features.Features`)."""

    def serve(self, control: Control, step: int, steps: int) -> bool:
        """Whether all that a control reads in a step is there."""
        ...

    def read(self, step: int) -> Mapping[Site, QKV]:
        """The features of a step."""
        ...


@dataclass
class Bank:
    """What the source row leaves for the target rows, for one step. Made and dropped by one edit.

    Attributes:
        control: Who decides what is recorded and what is made of it.
        steps: Steps of the edit.
        features: What the inversion kept already; its steps need no source row.
    """

    control: Control
    steps: int
    features: KeptFeatures | None = None
    step: int = 0
    _stored: dict[Site, QKV] = field(default_factory=dict)

    def begin(self, step: int) -> None:
        """Start a step, counted from the noisiest level, and forget the last one."""
        self.step = step
        self._stored.clear()

    def runs(self, step: int) -> bool:
        """Whether a step runs its source row: the control reads it, and it was not kept before."""
        if not self.control.active(step, self.steps):
            return False
        kept = self.features
        return kept is None or not kept.serve(self.control, step, self.steps)

    @property
    def empty(self) -> bool:
        """Whether nothing is stored."""
        return not self._stored

    def record(self, site: Site, qkv: QKV) -> None:
        """Keep the source's tensors where the control will read them."""
        if self.control.reads(site, qkv.q.shape[1], self.step, self.steps):
            self._stored[site] = self.control.kept(qkv)

    def inject(self, site: Site, qkv: QKV) -> tuple[QKV, ...] | None:
        """The controlled attention of the target rows, or None where the control is idle."""
        if not self.control.reads(site, qkv.q.shape[1], self.step, self.steps):
            return None
        if self.empty and self.features is not None and not self.runs(self.step):
            self._stored.update(self.features.read(self.step))
        source = QKV(*(_match_rows(stored, qkv.q) for stored in self._stored[site]))
        return self.control.terms(qkv, source, site, self.step, self.steps)


def _match_rows(stored: Tensor | None, like: Tensor) -> Tensor | None:
    """A source's rows for a batch of targets, where they are; one source may serve many."""
    if stored is None:
        return None
    stored = stored.to(like)
    if len(stored) == len(like):
        return stored
    return stored.repeat_interleave(len(like) // len(stored), dim=0)


def attend(
    qkv: QKV,
    kind: Kind,
    layer: int,
    roles: Sequence[Role],
    hook: AttentionHook,
    sdpa: Callable[[QKV], Tensor],
) -> Tensor:
    """One attention call of a host, with a hook in it.

    Args:
        qkv: The whole batch; equal parts of it belong to the branches of the guidance.
        kind: Self- or cross-attention.
        layer: Position among the transformer blocks.
        roles: Branch of each part, in order.
        hook: Asked for each part.
        sdpa: The host's fused attention.
    """
    parts = [QKV(*part) for part in zip(*(t.chunk(len(roles)) for t in qkv), strict=True)]
    sums = [hook(Site(kind, layer, role), part) for role, part in zip(roles, parts, strict=True)]
    if not any(sums):
        return sdpa(qkv)
    terms = [terms or (part,) for terms, part in zip(sums, parts, strict=True)]
    outs = _first_terms([t[0] for t in terms], sdpa)
    for i, own in enumerate(terms):
        for term in own[1:]:
            outs[i] = outs[i] + sdpa(term)
    return torch.cat(outs)


def _first_terms(terms: list[QKV], sdpa: Callable[[QKV], Tensor]) -> list[Tensor]:
    """The first term of every part, in one fused call where their keys are equally many."""
    if any(term.k.shape != terms[0].k.shape for term in terms):
        return [sdpa(term) for term in terms]
    joined = QKV(*(torch.cat(tensors) for tensors in zip(*terms, strict=True)))
    return list(sdpa(joined).chunk(len(terms)))
