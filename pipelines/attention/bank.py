"""Record, then inject: how an edit reads its source's network without any map.

The source row runs first and leaves in the bank the tensors that the control will read; the target
rows run next. Where each row of the target reads that of its own branch, both may run side by side
in one call: the bank then never holds more than one place's. A row that both branches read is run
once, and beside each of them where keeping what it leaves takes too much room (`room`). What a
control wants of an attention is always a sum of fused attentions

    out = SDPA(q1, k1, v1) + SDPA(q2, k2, v2) + ...

whose queries, keys and values come from either row; of a residual block it is a feature map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..denoiser import Denoiser
from ..errors import PalimpsestError
from ..schedule import Moment
from .control import Control, FeatureControl, read_by_target, rows_read
from .hooks import BESIDE, QKV, ROLES, Hooks, Kind, Role, Site, Term
from .room import BESIDE_BOTH, BESIDE_ONE, Recorded, Room
from .watch import Onlooker, Watch, bounds
from .way import Left, Way

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

    The source's rows leave their network after the last place that is read in the step, once a
    whole call has shown which places there are.

    Attributes:
        control: Who decides what is recorded and what is made of it.
        features: What the inversion kept already; its steps need no source row.
        watches: Who sees the attention of both rows, and bounds the edit.
        onlookers: Who only sees it.
        leaves: Whether a call of the source's rows may be left before its end, and what all have
            read be dropped.
        pairs: Whether the source's rows may run beside those of the target that read them.
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
    _room: Room = field(default_factory=Room)
    _times: Counter[Place] = field(default_factory=Counter)
    _way: Way = field(default_factory=Way)
    _asked: bool = False
    _waiting: Tensor | None = None
    _wait: set[Role] = field(default_factory=set)
    _may_wait: bool = False

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
        self._times.clear()

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
        """Run the source's rows for the step, or let those that are read wait for the target's.

        Args:
            record: They, with `recording` in them.
            x: [B, C, ...] where the source stands.
            targets: Rows of the target; side by side run as many.
        """
        beside = self.pairs and targets == len(x)
        if beside and (self._reads_own_rows or self._crowded):
            return self._let_wait(x)
        self._way.start(self._reads if self.leaves else None)
        self._may_wait = beside
        try:
            record(x, self.at.sigma)
            self._way.end()
        except Left:
            if beside and self._crowded:
                self._let_wait(x)
        finally:
            self._may_wait = False

    def _let_wait(self, x: Tensor) -> None:
        """The source's rows run beside those that read them, and leave nothing before."""
        self._stored.clear()
        self._waiting, self._wait = x, set(rows_read(self.control))

    @property
    def _reads_own_rows(self) -> bool:
        """Whether every branch of the target reads the source's row of the same branch."""
        return all(own == read for own, read in rows_read(self.control).items())

    @property
    def _crowded(self) -> bool:
        """Whether keeping what this step reads takes more room than there is."""
        return self._room.of(self.control, self.at) > BESIDE_ONE

    def beside(self, role: Role) -> tuple[Role, Tensor] | None:
        """Which row of the source waits for the target's of a branch, and where; no longer then."""
        if role not in self._wait:
            return None
        self._wait.remove(role)
        return self.control.source_role(role), self._waiting

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
        held = self.leaves and bool(self._stored)
        return held and self._room.of(self.control, self.at) > BESIDE_BOTH

    @property
    def _reads_features(self) -> bool:
        return isinstance(self.control, FeatureControl)

    def record(self, site: Site, qkv: QKV) -> None:
        """Keep the source's tensors where the control will read them."""
        self._take(site, qkv)
        self._way.go(site)

    def record_feature(self, site: Site, feature: Tensor) -> None:
        """The same for what a residual block adds."""
        self._take_feature(site, feature)
        self._way.go(site)

    def _take(self, site: Site, qkv: QKV) -> None:
        self._room.see(qkv.q)
        if self._reads(site):
            self._keep(site, self.control.kept(site, qkv, self.at))

    def _take_feature(self, site: Site, feature: Tensor) -> None:
        if self._reads(site):
            self._keep(site, feature)

    def _reads(self, site: Site) -> bool:
        """Whether something of the target reads the source's rows of a site in this step."""
        return read_by_target(self.control, site, self.at)

    def _keep(self, site: Site, recorded: Recorded) -> None:
        """Leave something for the target, unless it is going to be run beside it."""
        self._stored[place_of(site)] = recorded
        self._room.keep(site, recorded)
        if self._may_wait and self._crowded:
            raise Left

    def inject(self, site: Site, qkv: QKV) -> tuple[Term, ...] | None:
        """The controlled attention of the target rows, or None where the control is idle."""
        beside = self._beside(site)
        if beside is not None:
            return self._take(beside, qkv)
        self._asked = True
        if self.control.source_role(site.role) is None:
            return None
        source = self.source_of(site, qkv)

        def attended(values: Tensor) -> tuple[Term, ...]:
            shown = qkv._replace(v=values)
            return self.control.terms(shown, _without(source, values), site, self.at) or (shown,)

        for onlooker in (*self.watches, *self.onlookers):
            onlooker.see(qkv, source, attended, site, self.at)
        return self.control.terms(qkv, source, site, self.at)

    def _beside(self, site: Site) -> Site | None:
        """The place of a source's row that runs beside a target's; None where it is the target's.

        It stands where those of the target look for it, whatever branch it was asked in.
        """
        asked = {beside: role for role, beside in BESIDE.items()}.get(site.role)
        return asked and site._replace(role=self.control.source_role(asked))

    def source_of(self, site: Site, own: QKV) -> QKV | None:
        """What the source left for the target's rows `own`; None where the control is idle."""
        stored = self._read(site)
        return stored and QKV(*(_match_rows(tensor, own.q) for tensor in stored))

    def inject_feature(self, site: Site, feature: Tensor) -> Tensor | None:
        """What a residual block of the target adds, or None where the control is idle."""
        beside = self._beside(site)
        if beside is not None:
            return self._take_feature(beside, feature)
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
        self._times[place] += 1
        if self.leaves and self._times[place] == self._readers(site._replace(role=role)):
            del self._stored[place], self._times[place]
        return stored

    def _readers(self, site: Site) -> int:
        """How many branches of the target read a row of the source at a site, once it has run."""
        if self._waiting is not None:
            return 1
        own = [role for role in ROLES if self.control.source_role(role) == site.role]
        return sum(self.control.reads(site._replace(role=role), self.at) for role in own)


def _without(source: QKV | None, values: Tensor) -> QKV | None:
    """A source whose own values are nothing beside those that are asked for."""
    if source is None or source.v is None:
        return source
    return source._replace(v=values.new_zeros(*source.v.shape[:2], values.shape[-1]))


def _match_rows(stored: Tensor | None, like: Tensor) -> Tensor | None:
    """A source's rows for a batch of targets, where they are; one source may serve many."""
    if stored is None:
        return None
    stored = stored.to(like)
    if len(stored) == len(like):
        return stored
    return stored.repeat_interleave(len(like) // len(stored), dim=0)
