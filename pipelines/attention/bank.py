"""Record, then inject: how an edit reads its source's network without any map.

The source row runs first and leaves in the bank the tensors that the control will read; the target
rows run next. What a control wants of an attention is always a sum of fused attentions

    out = SDPA(q1, k1, v1) + SDPA(q2, k2, v2) + ...

whose queries, keys and values come from either row; of a residual block it is a feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..errors import PalimpsestError
from ..schedule import Moment

Kind = Literal["self", "cross", "joint", "features"]
Role = Literal["cond", "uncond"]

#: The branches of the guidance.
ROLES: tuple[Role, ...] = ("cond", "uncond")


class Site(NamedTuple):
    """One place of the network in one call, seen for one branch of the guidance.

    Attributes:
        kind: Self-, cross- or joint attention, or the features of a residual block.
        layer: Position among the network's places of that sort in execution order, from 0:
            transformer blocks, or residual blocks.
        role: Which branch of the guidance the rows belong to.
        tokens: Queries of the attention, or cells of the feature map.
        text: How many of the keys of a joint attention, the first ones, are text.
    """

    kind: Kind
    layer: int
    role: Role
    tokens: int = 0
    text: int = 0


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


class FeatureHook(Protocol):
    """What a host calls with what every residual block adds to its input, [B, C, h, w].

    It gives what shall be added instead, or None to leave it alone.
    """

    def __call__(self, site: Site, feature: Tensor) -> Tensor | None: ...


class Hooks(NamedTuple):
    """Who sees a network from inside while it runs; None does not look."""

    attention: AttentionHook | None = None
    feature: FeatureHook | None = None


NO_HOOKS = Hooks()


def together(every: Iterable[Hooks]) -> Hooks:
    """Several observers as one: all of them look, one of them may change what it sees.

    Raises:
        ValueError: When two want to change the same place, in the call where they do.
    """
    every = list(every)
    attention = [hooks.attention for hooks in every if hooks.attention is not None]
    feature = [hooks.feature for hooks in every if hooks.feature is not None]
    return Hooks(_first_answer(attention), _first_answer(feature))


def _first_answer(hooks: list[Callable]) -> Callable | None:
    if len(hooks) < 2:
        return hooks[0] if hooks else None

    def ask(site: Site, seen: QKV | Tensor) -> tuple[QKV, ...] | Tensor | None:
        answers = [a for a in (hook(site, seen) for hook in hooks) if a is not None]
        if len(answers) > 1:
            raise ValueError(f"{len(answers)} hooks want to change {site}.")
        return answers[0] if answers else None

    return ask


class Control(Protocol):
    """An attention control: a frozen value that says what it reads and what it makes of it.

    A site's role is that of the target's rows.
    """

    def source_role(self, role: Role) -> Role | None:
        """Which rows of the source the target's rows of a role read, if any."""
        ...

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether it reads the source at this site in this step."""
        ...

    def active(self, at: Moment) -> bool:
        """Whether it reads the source anywhere in this step."""
        ...

    def kept(self, site: Site, own: QKV) -> QKV:
        """Of the source's tensors those that it reads, None for the others."""
        ...

    def terms(self, own: QKV, source: QKV, site: Site, at: Moment) -> tuple[QKV, ...]:
        """The attention of the target rows `own`, given the `source` recorded at the site."""
        ...


@runtime_checkable
class FeatureControl(Protocol):
    """What a control has besides, where it also reads the features of residual blocks."""

    def feature(self, own: Tensor, source: Tensor, site: Site, at: Moment) -> Tensor:
        """What a residual block of the target adds, given what it added in the source."""
        ...


def read_by_target(control: Control, site: Site, at: Moment) -> bool:
    """Whether some row of the target reads the source's rows of a site."""
    return any(
        control.source_role(role) == site.role and control.reads(site._replace(role=role), at)
        for role in ROLES
    )


def source_roles(control: Control) -> tuple[Role, ...]:
    """The rows of the source that a control reads."""
    wanted = {control.source_role(role) for role in ROLES}
    return tuple(role for role in ROLES if role in wanted)


#: What was recorded at a site.
Recorded = QKV | Tensor

#: Where in the network something was recorded, and of which rows; their number may differ.
Place = tuple[Kind, int, Role]


def place_of(site: Site) -> Place:
    """A site without the size of what was seen there, which source and target may differ in."""
    return site.kind, site.layer, site.role


class KeptFeatures(Protocol):
    """What an earlier run kept of the source (`features.Features`)."""

    def serve(self, control: Control, at: Moment) -> bool:
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
        features: What the inversion kept already; its steps need no source row.
        at: The step that it stands in; None before the first.
    """

    control: Control
    features: KeptFeatures | None = None
    at: Moment | None = None
    _stored: dict[Place, Recorded] = field(default_factory=dict)

    def begin(self, at: Moment | None) -> None:
        """Start a step and forget the last one; None where there is no further step."""
        self.at = at
        self._stored.clear()

    def runs(self, at: Moment) -> bool:
        """Whether a step runs its source row: the control reads it, and it was not kept before."""
        if not self.control.active(at):
            return False
        return self.features is None or not self.features.serve(self.control, at)

    @property
    def empty(self) -> bool:
        """Whether nothing is stored."""
        return not self._stored

    @property
    def recording(self) -> Hooks:
        """What looks at the source's rows."""
        return Hooks(self.record, self.record_feature if self._reads_features else None)

    @property
    def injecting(self) -> Hooks:
        """What changes the target's rows."""
        return Hooks(self.inject, self.inject_feature if self._reads_features else None)

    @property
    def _reads_features(self) -> bool:
        return isinstance(self.control, FeatureControl)

    def record(self, site: Site, qkv: QKV) -> None:
        """Keep the source's tensors where the control will read them."""
        if read_by_target(self.control, site, self.at):
            self._stored[place_of(site)] = self.control.kept(site, qkv)

    def record_feature(self, site: Site, feature: Tensor) -> None:
        """The same for what a residual block adds."""
        if read_by_target(self.control, site, self.at):
            self._stored[place_of(site)] = feature

    def inject(self, site: Site, qkv: QKV) -> tuple[QKV, ...] | None:
        """The controlled attention of the target rows, or None where the control is idle."""
        stored = self._read(site)
        if stored is None:
            return None
        source = QKV(*(_match_rows(tensor, qkv.q) for tensor in stored))
        return self.control.terms(qkv, source, site, self.at)

    def inject_feature(self, site: Site, feature: Tensor) -> Tensor | None:
        """What a residual block of the target adds, or None where the control is idle."""
        stored = self._read(site)
        if stored is None:
            return None
        return self.control.feature(feature, _match_rows(stored, feature), site, self.at)

    def _read(self, site: Site) -> Recorded | None:
        """What the source left for the target's rows of a site; None where they do not read it."""
        role = self.control.source_role(site.role)
        if role is None or not self.control.reads(site, self.at):
            return None
        if self.empty and self.features is not None and not self.runs(self.at):
            kept = self.features.read(self.at.step)
            self._stored.update({place_of(site): tensors for site, tensors in kept.items()})
        place = place_of(site._replace(role=role))
        if place not in self._stored:
            raise PalimpsestError(
                "The control reads the source's attention in a step in which the source did not "
                "run: take away what skips the network (EasyCache, for example) or a span of steps "
                "on the source prompt, or edit without the control."
            )
        return self._stored[place]


@contextmanager
def beside_source(
    bank: Bank | None, record: Denoiser | None, at: Moment, x: Tensor
) -> Iterator[None]:
    """A step of the target, within which the bank holds what its source leaves; after it, nothing.

    Args:
        bank: None where there is no control.
        record: The source's rows; run where the control reads them and no one kept them before.
        at: The step.
        x: [B, C, ...] where the source stands.
    """
    if bank is not None:
        bank.begin(at)
        if record is not None and bank.runs(at):
            record(x, at.sigma)
    yield
    if bank is not None:
        bank.begin(None)


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
    text: int = 0,
) -> Tensor:
    """One attention call of a host, with a hook in it.

    Args:
        qkv: The whole batch; equal parts of it belong to the branches of the guidance.
        kind: Self-, cross- or joint attention.
        layer: Position among the transformer blocks.
        roles: Branch of each part, in order.
        hook: Asked for each part.
        sdpa: The host's fused attention.
        text: See `Site`.
    """
    parts = [QKV(*part) for part in zip(*(t.chunk(len(roles)) for t in qkv), strict=True)]
    sums = [
        hook(Site(kind, layer, role, part.q.shape[1], text), part)
        for role, part in zip(roles, parts, strict=True)
    ]
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


def hooked_feature(feature: Tensor, layer: int, roles: Sequence[Role], hook: FeatureHook) -> Tensor:
    """What a residual block of a host adds to its input, with a hook in it.

    Args:
        feature: [rows, C, h, w] of the whole batch, as in `attend`.
        layer: Position among the residual blocks.
        roles: Branch of each equal part of the batch, in order.
        hook: Asked for each part.
    """
    parts = feature.chunk(len(roles))
    cells = feature.shape[-2:].numel()
    answers = [
        hook(Site("features", layer, role, cells), part)
        for role, part in zip(roles, parts, strict=True)
    ]
    if all(answer is None for answer in answers):
        return feature
    return torch.cat([p if a is None else a for a, p in zip(answers, parts, strict=True)])
