"""What an attention control says: what it reads of the source, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from ..schedule import Moment
from .hooks import QKV, ROLES, Kind, Role, Site, Term

if TYPE_CHECKING:
    from ..lending import Asked, Lender
    from ..rows import Stepping, Traced
    from .bank import Bank


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

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """Of the source's tensors those that it reads in this step, None for the others."""
        ...

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """The attention of the target rows `own`; None leaves it alone.

        Args:
            own: Their tensors.
            source: What was recorded at the site; None where the control reads nothing here.
            site: Where.
            at: The step.
        """
        ...


class InPlace:
    """What acts in the place of a control: it reads what that reads."""

    control: Control

    def source_role(self, role: Role) -> Role | None:
        """See `Control`."""
        return self.control.source_role(role)

    def active(self, at: Moment) -> bool:
        """See `Control`."""
        return self.control.active(at)

    def reads(self, site: Site, at: Moment) -> bool:
        """See `Control`."""
        return self.control.reads(site, at)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """See `Control`."""
        return self.control.kept(site, own, at)


@runtime_checkable
class FeatureControl(Protocol):
    """What a control has besides, where it also reads the features of residual blocks."""

    def feature(self, own: Tensor, source: Tensor, site: Site, at: Moment) -> Tensor:
        """What a residual block of the target adds, given what it added in the source."""
        ...


@runtime_checkable
class Moving(Protocol):
    """What a control has besides, where it moves the target's latent before every step."""

    def mover(
        self, bank: Bank, lender: Lender, target: Asked, guesses: Callable[[Asked], Traced]
    ) -> Stepping:
        """What moves the target and denoises it.

        Args:
            bank: Holds what the source's row left in a step.
            lender: Lends denoisers, of which those with `gradients` can be differentiated.
            target: What the target is denoised under.
            guesses: Makes the target's denoiser of what it is asked under.
        """
        ...


@runtime_checkable
class Sited(Protocol):
    """What a control has besides, where it acts in other places than those of a UNet."""

    @property
    def acts_in(self) -> frozenset[Kind]:
        """The sorts of places in which it acts."""
        ...


#: The sorts of places that a UNet has.
UNET: frozenset[Kind] = frozenset({"self", "cross", "features"})


def acts_in(control: Control) -> frozenset[Kind]:
    """The sorts of places in which a control acts; a UNet's, if it says nothing else."""
    return control.acts_in if isinstance(control, Sited) else UNET


def read_by_target(control: Control, site: Site, at: Moment) -> bool:
    """Whether some row of the target reads the source's rows of a site."""
    return any(
        control.source_role(role) == site.role and control.reads(site._replace(role=role), at)
        for role in ROLES
    )


def rows_read(control: Control) -> dict[Role, Role]:
    """The branches of the target that read the source, and which of its rows each does."""
    rows = {role: control.source_role(role) for role in ROLES}
    return {role: row for role, row in rows.items() if row is not None}


def source_roles(control: Control) -> tuple[Role, ...]:
    """The rows of the source that a control reads."""
    wanted = rows_read(control).values()
    return tuple(role for role in ROLES if role in wanted)
