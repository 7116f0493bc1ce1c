"""Several controls as one.

At every attention the last of them that has something to say there has its way; what bounds an edit
bounds it together. Two Prompt-to-Prompt edits are no stack but one edit of the first prompt into
the last (`prompt_to_prompt.chained`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..schedule import Moment
from .control import Control, FeatureControl, acts_in
from .hooks import QKV, Kind, Role, Site, Term
from .masked import Cells, masks_of, placed
from .watch import Begun, begun


@dataclass(frozen=True, eq=False)
class Stack:
    """Controls that act on one edit.

    Attributes:
        controls: In the order in which they were put on it.
    """

    controls: tuple[Control, ...]

    @property
    def acts_in(self) -> frozenset[Kind]:
        """Where all of them act."""
        return frozenset.intersection(*(acts_in(control) for control in self.controls))

    def source_role(self, role: Role) -> Role | None:
        """That which any of them reads."""
        roles = [control.source_role(role) for control in self.controls]
        return next((read for read in roles if read is not None), None)

    def active(self, at: Moment) -> bool:
        """Whether any of them reads the source in this step."""
        return any(control.active(at) for control in self.controls)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether any of them reads the source at this site."""
        return bool(self._readers(site, at))

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """What all that read here want of the source."""
        every = [control.kept(site, own, at) for control in self._readers(site, at)]
        parts = zip(*every, strict=True)
        return QKV(*(next((t for t in part if t is not None), None) for part in parts))

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """Those of the last that has any."""
        readers = self._readers(site, at)
        for control in reversed(self.controls):
            terms = control.terms(own, source if control in readers else None, site, at)
            if terms is not None:
                return terms
        return None

    def begun(self, size: tuple[int, int]) -> Begun:
        """All of them within one edit."""
        every = [begun(control, size) for control in self.controls]
        return Begun(
            replace(self, controls=tuple(one.control for one in every)),
            tuple(watch for one in every for watch in one.watches),
            tuple(onlooker for one in every for onlooker in one.onlookers),
        )

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Those of all of them."""
        return tuple(mask for control in self.controls for mask in masks_of(control))

    def placed(self, cells: Cells) -> Stack:
        """The same with all masks on the cells of a latent."""
        return replace(self, controls=tuple(placed(control, cells) for control in self.controls))

    def _readers(self, site: Site, at: Moment) -> list[Control]:
        return [
            control
            for control in self.controls
            if control.source_role(site.role) is not None and control.reads(site, at)
        ]


class _FeatureStack(Stack):
    """The same where features of residual blocks are read as well."""

    def feature(self, own: Tensor, source: Tensor, site: Site, at: Moment) -> Tensor:
        """That of the last that reads here."""
        return self._readers(site, at)[-1].feature(own, source, site, at)


def parts_of(control: Control) -> tuple[Control, ...]:
    """The controls of a stack; one that is none is its only part."""
    return control.controls if isinstance(control, Stack) else (control,)


def stacked(controls: Sequence[Control]) -> Control:
    """Controls as one; one alone is itself."""
    if len(controls) == 1:
        return controls[0]
    reads_features = any(isinstance(control, FeatureControl) for control in controls)
    return (_FeatureStack if reads_features else Stack)(tuple(controls))
