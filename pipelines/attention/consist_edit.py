"""ConsistEdit: in a transformer, structure by the image's queries and keys, the rest by its values.

In joint attention, with s = source, t = target, I = the image's tokens and M = where the edit is
(1 there, 0 elsewhere):

    structure   q_t[I] <- A q_s[I] + (1 - A) q_t[I]    k_t[I] likewise
                A = 1 while the structure window is open, A = 1 - M after it
    content     v_t[I] <- (1 - M) v_s[I] + M v_t[I]    in all steps

The text's tokens stay the target's own: with those of the source an edit says nothing. Without an M
nothing is kept after the window. The image's values of the source alone, everywhere and in the
first steps, are the V injection of RF-Solver-Edit, FireFlow and FTEdit (which take the text's too).

Published windows are 1 for a change of colour or material and 0.3 for one of style or object; of
real pictures, whose inversion knows more of them than their prompt says, 0.1.

References:
    Yin et al. 2025, ConsistEdit: Highly Consistent and Precise Training-free Visual Editing,
        arXiv:2510.17803, section 4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ..schedule import Moment
from .hooks import QKV, Kind, Role, Site, check_part, inside_part
from .joint import image_places, source_places, with_image
from .things import AboutThings, Seeker, Seeking, Things
from .watch import Begun
from .word_maps import grid_of, looked_at


@dataclass(frozen=True, eq=False)
class ConsistEdit(AboutThings):
    """The image's queries, keys and values of a target, mixed with the source's.

    Attributes:
        structure: Part of the steps in which the queries and keys are the source's.
        values: Part of the steps in which the values are.
        layers: Part of the transformer's blocks in which it acts.
        things: Where the edit is, in the source and in the target; None does not say.
    """

    acts_in: ClassVar[frozenset[Kind]] = frozenset({"joint"})

    structure: tuple[float, float] = (0.0, 0.3)
    values: tuple[float, float] = (0.0, 0.0)
    layers: tuple[float, float] = (0.0, 1.0)
    things: Things | None = None

    def __post_init__(self) -> None:
        for name in ("structure", "values", "layers"):
            check_part(getattr(self, name), f"ConsistEdit's {name}")

    def source_role(self, role: Role) -> Role | None:
        """Each branch of the guidance reads its own."""
        return role

    def active(self, at: Moment) -> bool:
        """Whether a window is open, or something is kept in all steps."""
        return self.things is not None or at.inside(self.structure) or at.inside(self.values)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source is read here."""
        inside = site.kind == "joint" and inside_part(site.layer, site.layers, self.layers)
        return self.active(at) and (inside or self.looks_at(site))

    def looks_at(self, site: Site) -> bool:
        """Whether words are looked for here."""
        return self.names_words and site.role == "cond" and looked_at(site)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """All of the source's."""
        return own

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> tuple[QKV, ...] | None:
        """The controlled attention where nothing says what is edited."""
        return self.mixed(own, source, site, at, None)

    def mixed(
        self, own: QKV, source: QKV | None, site: Site, at: Moment, rest: Tensor | None
    ) -> tuple[QKV, ...] | None:
        """The controlled attention.

        Args:
            own: The target's tensors.
            source: The source's; None where nothing is read.
            site: Where.
            at: The step.
            rest: [1 or B, I, 1] 1 - M; None where that is not known.
        """
        if source is None or not inside_part(site.layer, site.layers, self.layers):
            return None
        structure, values = (
            1.0 if at.inside(window) else rest for window in (self.structure, self.values)
        )
        return (
            QKV(
                _mixed(own.q, source.q, structure, source, site),
                _mixed(own.k, source.k, structure, source, site),
                _mixed(own.v, source.v, values, source, site),
            ),
        )

    def begun(self, size: tuple[int, int]) -> Begun:
        """Within one edit it remembers where it saw the thing."""
        if self.things is None:
            return Begun(self)
        guided = Guided(self, Seeking(self.things, size))
        return Begun(guided, onlookers=(guided,))


class Guided(Seeker):
    """ConsistEdit while an edit runs that says what it is about."""

    control: ConsistEdit

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> tuple[QKV, ...] | None:
        """The controlled attention, with all that is known of where the edit is."""
        return self.control.mixed(own, source, site, at, self._rest(site, at, len(own.q)))

    def _rest(self, site: Site, at: Moment, rows: int) -> Tensor | None:
        """[1 or B, I, 1] 1 - M at the image's tokens; a token is edited where any of its cells is.

        The edit is where either picture shows the thing.
        """
        masks = self.seeking.masks_at(at)
        if masks is None:
            return None
        places = image_places(site)
        grid = grid_of(places.stop - places.start, self.seeking.size)
        edited = [adaptive_max_pool2d(mask.float(), grid).flatten(1) for mask in masks]
        rest = 1 - edited[0].maximum(edited[1])[..., None]
        return rest.repeat_interleave(rows // len(rest), dim=0)


def _mixed(
    own: Tensor, source: Tensor, share: float | Tensor | None, of: QKV, site: Site
) -> Tensor:
    """A target's tensors with a share of the source's at the image's tokens; None is no share.

    Args:
        own: Queries, keys or values of the target.
        source: Those of the source.
        share: 0 to 1, of all tokens or of each.
        of: All of the source.
        site: Where.
    """
    if share is None:
        return own
    theirs = source[:, source_places(of, site)]
    if isinstance(share, Tensor):
        theirs = own[:, image_places(site)].lerp(theirs, share.to(own))
    return with_image(own, theirs, site)
