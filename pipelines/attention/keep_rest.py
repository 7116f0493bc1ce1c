"""Keep the rest: what is not edited lends its keys and values to every layer, and stays as it is.

At places outside of the edit the target sees the source, in self-attention (UNets) and among the
image's tokens of joint attention (transformers), with s = source and t = target:

    k_t[out] <- k_s[out]      v_t[out] <- v_s[out]         at every layer, in every step
    x <- x_src + m (x - x_src)                             after every step

What the edit's own places are painted with then fits what lies around them, and what lies around
does not drift: its queries influence nothing, since their keys and values are replaced everywhere.
This is KV-Edit without its bookkeeping of tokens. A place of a layer is edited where any of its
cells is.

References:
    Zhu et al. 2025, KV-Edit: Training-Free Image Editing for Precise Background Preservation,
        arXiv:2502.17363, section 3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from ..rows import Rows
from ..schedule import Moment
from .hooks import QKV, Kind, Role, Site
from .joint import own_places, source_places, with_image
from .things import AboutThings, Seeker, Seeking, Things
from .watch import Attended, Begun, over
from .word_maps import grid_of, looked_at


@dataclass(frozen=True, eq=False)
class KeepRest(AboutThings):
    """What is edited; all else is kept.

    Attributes:
        things: Where that is, in the source and in the target.
    """

    acts_in: ClassVar[frozenset[Kind]] = frozenset({"self", "cross", "joint"})

    things: Things

    def source_role(self, role: Role) -> Role | None:
        """Each branch of the guidance reads its own."""
        return role

    def active(self, at: Moment) -> bool:
        """In every step."""
        return True

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source is read here."""
        return site.kind in ("self", "joint") or self.looks_at(site)

    def looks_at(self, site: Site) -> bool:
        """Whether words are looked for here."""
        return self.names_words and site.role == "cond" and looked_at(site)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """Keys and values, and where words are looked for queries too."""
        if site.kind == "self":
            return QKV(None, own.k, own.v)
        return own if site.kind == "joint" else QKV(own.q, own.k, None)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> None:
        """Outside of an edit it does not know where that is."""

    def begun(self, size: tuple[int, int]) -> Begun:
        """Within one edit it remembers where it saw the thing, and bounds the edit by that."""
        keeping = Keeping(self, Seeking(self.things, size))
        return Begun(keeping, watches=(keeping,))


@dataclass(eq=False)
class Keeping(Seeker):
    """Keep the rest while an edit runs: a control, and a `watch.Watch` of where the edit may be.

    Attributes:
        at: The step that was seen last.
    """

    at: Moment | None = None

    def see(self, own: QKV, source: QKV | None, attended: Attended, site: Site, at: Moment) -> None:
        """Add the word maps of one attention."""
        self.at = at
        super().see(own, source, attended, site, at)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> tuple[QKV, ...] | None:
        """The attention in which the rest is the source's, once it is known where that is."""
        rest = self._rest(site, at, len(own.q))
        if source is None or site.kind == "cross" or rest is None:
            return None
        k, v = (
            _kept(own_tensor, other, rest, source, site)
            for own_tensor, other in zip(own[1:], source[1:], strict=True)
        )
        return (QKV(own.q, k, v),)

    @property
    def cells(self) -> Tensor | None:
        """[1 or B, 1, h, w] where either picture shows what is edited; None until it is known."""
        masks = self.seeking.masks
        return None if masks is None else masks[0].maximum(masks[1])

    def reads_source(self, at: Moment) -> bool:
        """The control says so already."""
        return False

    def __call__(self, rows: Rows, chain_next: Tensor, at: Moment) -> Rows:
        """Put the source back around the edit."""
        self.seeking.masks_at(at)
        cells = self.cells
        if cells is None:
            return rows
        kept = over(cells, chain_next) * (rows.target - chain_next)
        return rows._replace(target=chain_next + kept)

    def _rest(self, site: Site, at: Moment, rows: int) -> Tensor | None:
        """[rows, P, 1] 1 at places outside of the edit; None where that is not known."""
        self.seeking.masks_at(at)
        edited, places = self.cells, own_places(site)
        if edited is None:
            return None
        grid = grid_of(places.stop - places.start, self.seeking.size)
        inside = adaptive_max_pool2d(edited.float(), grid).flatten(1)[..., None] > 0
        return (~inside).repeat_interleave(rows // len(inside), dim=0)


def _kept(own: Tensor, source: Tensor, rest: Tensor, of: QKV, site: Site) -> Tensor:
    """Keys or values of a target with the source's where the rest is."""
    places = own_places(site)
    there = source_places(of, site) if site.kind == "joint" else places
    mixed = source[:, there].where(rest, own[:, places])
    return with_image(own, mixed, site) if site.kind == "joint" else mixed
