"""A control over a source whose two rows are shown the same: one of them says what both do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..schedule import Moment
from .control import Control, FeatureControl, InPlace
from .hooks import QKV, Role, Site, Term


@dataclass(frozen=True)
class OneRow(InPlace):
    """A control over a source whose two rows are shown the same, so that one says what both do.

    Attributes:
        control: The control.
    """

    control: Control

    def source_role(self, role: Role) -> Role | None:
        """The conditional row, wherever any is read."""
        return None if self.control.source_role(role) is None else "cond"

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """See `Control`."""
        return self.control.terms(own, source, site, at)


class _OneRowOfFeatures(OneRow):
    """The same where features of residual blocks are read as well."""

    def feature(self, own: Tensor, source: Tensor, site: Site, at: Moment) -> Tensor:
        """See `FeatureControl`."""
        return self.control.feature(own, source, site, at)


def over_one_row(control: Control) -> OneRow:
    """A control, to be used over a source whose two rows are shown the same."""
    return (_OneRowOfFeatures if isinstance(control, FeatureControl) else OneRow)(control)
