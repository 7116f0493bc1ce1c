"""Record, then inject: how an edit reads its source's network without any map.

The source row runs first and leaves in the bank the tensors that the control will read; the target
rows run next. Where each row of the target reads that of its own branch, both may run side by side
in one call: the bank then never holds more than one place's. What a control wants of an attention
is always a sum of fused attentions

    out = SDPA(q1, k1, v1) + SDPA(q2, k2, v2) + ...

whose queries, keys and values come from either row; of a residual block it is a feature map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..denoiser import Denoiser
from ..errors import PalimpsestError
from ..schedule import Moment
from .control import Control, FeatureControl, read_by_target, source_roles
from .hooks import BESIDE, QKV, ROLES, Hooks, Kind, Role, Site, Term
from .watch import Onlooker, Watch, bounds, within

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


#: How much a bank may hold beside one call for both branches of the target, in tensors of the size
#: of the largest query. Measured: 10 are a tenth of what such a call takes on SD 1 and a little
#: more on SDXL, which keeps 32 for MasaCtrl and 42 for Plug-and-Play where SD 1 keeps 9 and 10.
ROOM = 12


def _size(recorded: Recorded) -> int:
    """Bytes of what was recorded at a site."""
    tensors = (recorded,) if isinstance(recorded, Tensor) else recorded
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class Left(Exception):
    """The source's rows have left their network: all that a step reads of them is there."""


@dataclass
class Bank:
    """What the source row leaves for the target rows, for one step. Made and dropped by one edit.

    The source's rows leave their network after the last place that is read in the step, once a
    whole call has shown which places there are.

    Attributes:
        control: Who decides what is recorded and what is made of it.
        features: What the inversion kept already; its steps need no source row.
        watches: Who sees the attention of both rows, and bounds the edit.
        onlookers: Who only sees it.
        leaves: Whether a call of the source's rows may be left before its end, and what all have
            read be dropped.
        pairs: Whether the source's rows may run beside the target's of the same branch.
        at: The step that it stands in; None before the first.
    """

    control: Control
    features: KeptFeatures | None = None
    watches: tuple[Watch, ...] = ()
    onlookers: tuple[Onlooker, ...] = ()
    leaves: bool = True
    pairs: bool = False
    at: Moment | None = None
    _stored: dict[Place, Recorded] = field(default_factory=dict)
    _largest: int = 0
    _reads: Counter[Place] = field(default_factory=Counter)
    _known: tuple[Site, ...] = ()
    _way: list[Site] = field(default_factory=list)
    _last: int | None = None
    _asked: bool = False
    _waiting: Tensor | None = None
    _wait: set[Role] = field(default_factory=set)

    def begin(self, at: Moment | None) -> None:
        """Start a step and forget the last one; None ends one.

        Raises:
            PalimpsestError: If the step that ends had a source, and no row of the target ran.
        """
        if at is None and self._unasked:
            raise PalimpsestError(
                "Another node skipped the network in a step in which the control acts (EasyCache "
                "or LazyCache, for example): take that node away, or edit without the control."
            )
        self.at, self._asked = at, False
        self._waiting = None
        self._wait.clear()
        self._stored.clear()
        self._reads.clear()

    @property
    def _unasked(self) -> bool:
        """Whether there is something of the source in this step, and no one came for it."""
        if self.at is None or self._asked:
            return False
        if self._stored or self._wait:
            return True
        return self.control.active(self.at) and not self.runs(self.at)

    def runs(self, at: Moment) -> bool:
        """Whether a step runs its source row: the control reads it, and it was not kept before."""
        if not self.control.active(at):
            return False
        return self.features is None or not self.features.serve(self.control, at)

    def fill(self, record: Denoiser, x: Tensor, targets: int = 0) -> None:
        """Run the source's rows for the step, or let the one that is read wait for the target's.

        Args:
            record: They, with `recording` in them.
            x: [B, C, ...] where the source stands.
            targets: Rows of the target; side by side run as many.
        """
        if self.pairs and targets == len(x):
            self._waiting, self._wait = x, set(source_roles(self.control))
            return
        known = self._known if self.leaves else ()
        read = [read_by_target(self.control, site, self.at) for site in known]
        self._last = max((i for i, is_read in enumerate(read) if is_read), default=None)
        self._way = []
        try:
            record(x, self.at.sigma)
        except Left:
            return
        self._known = tuple(self._way)

    def beside(self, role: Role) -> Tensor | None:
        """Where the source stands whose row waits for the target's of a branch; no longer then."""
        if role not in self._wait:
            return None
        self._wait.remove(role)
        self._last, self._way = None, []
        return self._waiting

    @property
    def empty(self) -> bool:
        """Whether nothing is stored."""
        return not self._stored

    @property
    def bounds(self) -> Tensor | None:
        """[1 or B, 1, h, w] where the watches let the edit be; None where none bounds it."""
        return bounds(self.watches)

    @property
    def recording(self) -> Hooks:
        """What looks at the source's rows."""
        return Hooks(self.record, self.record_feature if self._reads_features else None)

    @property
    def injecting(self) -> Hooks:
        """What changes the target's rows."""
        feature = self.inject_feature if self._reads_features else None
        return Hooks(self.inject, feature, self._needs_room)

    def _needs_room(self) -> bool:
        """Whether the branches of the target run one after another.

        Where one row of the source is read by both, all that it left stands beside them.
        """
        held = sum(_size(recorded) for recorded in self._stored.values())
        return self.leaves and held > ROOM * self._largest

    @property
    def _reads_features(self) -> bool:
        return isinstance(self.control, FeatureControl)

    def record(self, site: Site, qkv: QKV) -> None:
        """Keep the source's tensors where the control will read them."""
        self._largest = max(self._largest, qkv.q.nbytes)
        if read_by_target(self.control, site, self.at):
            self._stored[place_of(site)] = self.control.kept(site, qkv, self.at)
        self._pass(site)

    def record_feature(self, site: Site, feature: Tensor) -> None:
        """The same for what a residual block adds."""
        if read_by_target(self.control, site, self.at):
            self._stored[place_of(site)] = feature
        self._pass(site)

    def _pass(self, site: Site) -> None:
        """Leave the network after the last place that is read; not where it runs another way."""
        self._way.append(site)
        here = len(self._way) - 1
        if self._last is None or here > self._last or self._known[here] != site:
            self._last = None
        elif here == self._last:
            raise Left

    def inject(self, site: Site, qkv: QKV) -> tuple[Term, ...] | None:
        """The controlled attention of the target rows, or None where the control is idle."""
        for role, beside in BESIDE.items():
            if site.role == beside:
                self.record(site._replace(role=role), qkv)
                return None
        self._asked = True
        if self.control.source_role(site.role) is None:
            return None
        source = self.source_of(site, qkv)

        def attended(values: Tensor) -> tuple[QKV, ...]:
            shown = qkv._replace(v=values)
            return self.control.terms(shown, source, site, self.at) or (shown,)

        for onlooker in (*self.watches, *self.onlookers):
            onlooker.see(qkv, source, attended, site, self.at)
        return self.control.terms(qkv, source, site, self.at)

    def source_of(self, site: Site, own: QKV) -> QKV | None:
        """What the source left for the target's rows `own`; None where the control is idle."""
        stored = self._read(site)
        return stored and QKV(*(_match_rows(tensor, own.q) for tensor in stored))

    def inject_feature(self, site: Site, feature: Tensor) -> Tensor | None:
        """What a residual block of the target adds, or None where the control is idle."""
        stored = self._read(site)
        if stored is None:
            return None
        return self.control.feature(feature, _match_rows(stored, feature), site, self.at)

    def _read(self, site: Site) -> Recorded | None:
        """What the source left for the target's rows of a site; None where they do not read it."""
        self._asked = True
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
        stored = self._stored[place]
        self._reads[place] += 1
        if self.leaves and self._reads[place] == self._readers(site._replace(role=role)):
            del self._stored[place]
        return stored

    def _readers(self, site: Site) -> int:
        """How many branches of the target read a row of the source at a site."""
        own = [role for role in ROLES if self.control.source_role(role) == site.role]
        return sum(self.control.reads(site._replace(role=role), self.at) for role in own)


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
            bank.fill(record, x)
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
