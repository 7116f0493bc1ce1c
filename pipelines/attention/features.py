"""Source attention kept from the inversion, so that an edit need not run its source again.

An inversion that evaluates where it stands (convention "current") shows the network the latent and
the level of every chain entry but the noisiest. The edit's source row would show it the same once
more, to record what the control reads. Recorded while inverting, only the first step of the edit is
left to run its source.

What the control will read is known beforehand, and with the shapes of the first call so is the room
it takes: it is asked for before anything is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..schedule import Moment, moment_at, moment_of
from .control import Control, FeatureControl, read_by_target, source_roles
from .hooks import QKV, Hooks, Site

#: What one step keeps.
Kept = Mapping[Site, QKV]


class Store(Protocol):
    """Where the features of a step go: memory or a disk."""

    def write(self, step: int, kept: Kept) -> None:
        """Keep those of a step; a second time replaces the first."""
        ...

    def read(self, step: int) -> Kept:
        """Give back those of a step, on any device."""
        ...


@dataclass(frozen=True, eq=False)
class Features:
    """What an inversion left for the edits of its trajectory.

    Attributes:
        every: All attentions of the network, as the inversion saw them.
        sites: Per step, counted from the noisiest level, where something was kept, and the names of
            the tensors.
        read: Gives the features of a step.
        key: What they depend on besides the chain, as text: the source's prompt and the model.
        bytes: The room they take.
    """

    every: frozenset[Site]
    sites: Mapping[int, Mapping[Site, frozenset[str]]]
    read: Callable[[int], Kept]
    key: str
    bytes: int

    def serve(self, control: Control, at: Moment) -> bool:
        """Whether all that a control reads in a step was kept, of all rows that it reads.

        Of residual blocks nothing is kept.
        """
        if isinstance(control, FeatureControl):
            return False
        if not {site.role for site in self.every}.issuperset(source_roles(control)):
            return False
        kept = self.sites.get(at.step, {})
        return all(
            kept.get(site, frozenset()).issuperset(parts_kept(control, site, at))
            for site in self.every
            if read_by_target(control, site, at)
        )


def parts_kept(control: Control, site: Site, at: Moment) -> frozenset[str]:
    """Names of the tensors of an attention that a control reads of its source in a step."""
    shown = torch.zeros(1).expand(1, max(site.tokens, 1), 1)
    return _names(control.kept(site, QKV(shown, shown, shown), at))


def _names(part: QKV) -> frozenset[str]:
    return frozenset(name for name, t in part._asdict().items() if t is not None)


@dataclass
class FeatureRecorder:
    """Keeps features while an inversion runs; made for one inversion and dropped after it.

    Attributes:
        control: What later edits will read with.
        sigmas: [N+1] rising levels of the chain.
        budget: Bytes that may be taken.
        store: Where the features go.
        needed: Bytes that all steps take; None before the first model call.
    """

    control: Control
    sigmas: Tensor
    budget: int
    store: Store
    needed: int | None = None
    _sizes: dict[Site, dict[str, int]] = field(default_factory=dict)
    _kept: dict[int, dict[Site, frozenset[str]]] = field(default_factory=dict)
    _now: dict[Site, QKV] = field(default_factory=dict)
    _at: Moment | None = None

    @property
    def hooks(self) -> Hooks:
        """What looks into the inversion's denoiser."""
        return Hooks(self.record)

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.needed is not None and self.needed <= self.budget

    def record(self, site: Site, qkv: QKV) -> None:
        """Survey the first call; keep of the others what the control will read."""
        if self.needed is None:
            self._sizes[site] = {name: t.nbytes for name, t in qkv._asdict().items()}
        elif self.fits and read_by_target(self.control, site, self._at):
            self._now[site] = self.control.kept(site, qkv, self._at)

    def watch(self, denoise: Denoiser) -> Denoiser:
        """The inversion's denoiser, of which every call is kept; the last one of a level stays.

        The first call of an inversion belongs to no chain entry (it is made at, or for, the lowest
        level): it is where shapes are learnt.

        Args:
            denoise: Has `hooks` in it.
        """

        def watched(x: Tensor, sigma: Tensor) -> Tensor:
            self._at = moment_of(self.sigmas, sigma)
            denoised = denoise(x, sigma)
            if self.needed is None:
                self.needed = self._survey()
            elif self._now:
                self.store.write(self._at.step, self._now)
                self._kept[self._at.step] = {s: _names(qkv) for s, qkv in self._now.items()}
                self._now = {}
            return denoised

        return watched

    def _survey(self) -> int:
        """Bytes of all steps but the noisiest, which the inversion does not visit."""
        moments = [moment_at(self.sigmas, step) for step in range(1, len(self.sigmas) - 1)]
        return sum(
            sizes[name]
            for at in moments
            for site, sizes in self._sizes.items()
            if read_by_target(self.control, site, at)
            for name in parts_kept(self.control, site, at)
        )

    def result(self, key: str) -> Features | None:
        """What was kept; None where there was no room for it.

        Args:
            key: See `Features`.
        """
        if not self.fits:
            return None
        # The noisiest level is only seen on the way to it, not where the chain ends.
        sites = {step: kept for step, kept in self._kept.items() if step > 0}
        every = frozenset(self._sizes)
        return Features(every, sites, self.store.read, key, self.needed)
