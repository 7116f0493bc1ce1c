"""MasaCtrl: change what a thing does, keep what it looks like.

The target asks with its own queries where things shall be, and takes their looks from the source:

    self    out = SDPA(q_t, k_s, v_s)                            mutual self-attention
            out = SDPA(q_t, [k_s | k_t], [v_s | v_t])            union

in both branches of the guidance, once the layout stands (from a step on) and where it is no longer
decided (from a layer on, in the decoder). Cross-attention is the target's own.

In the joint attention of a transformer, k and v are those of the image, and text stays the target's
own: out = SDPA(q_t, [k_txt,t | k_img,s], [v_txt,t | v_img,s]), as FreeFlux and Stable Flow have it.

With the masks m_s and m_t of a thing in the source and in the target, looks are taken inside from
inside, and outside from outside, so that thing and background do not mix:

    out_i = SDPA(q_t, k_s, v_s | keys j with m_s(j) = m_t(i))

They come from the user or from words: where the word maps, summed over the steps before this one
and stretched to 0..1, exceed a threshold (published are the maps of this step; how a host splits a
batch would then decide which of them a row sees). Of a side that the source does not show, looks
are taken from the other.

References:
    Cao et al. 2023, MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image
        Synthesis and Editing, arXiv:2304.08465, sections 3.2 and 3.3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..schedule import Moment
from .hooks import QKV, Kind, OfSome, Role, Site, Term, check_part, inside_part
from .joint import around, looks_of, of_others, own_places
from .things import AboutThings, Seeker, Seeking, Things
from .watch import Begun
from .word_maps import grid_of, looked_at


@dataclass(frozen=True)
class MasaCtrl(AboutThings):
    """Self-attention that reads the source's keys and values.

    Attributes:
        steps: Part of the steps during which the source is read, as fractions of them. Published
            is from step 4 of 50.
        layers: Part of the network's transformer blocks in which it is read. Published is from the
            tenth of the 16 of SD 1.x, and from about there in SDXL's 70.
        union: Read the target's own keys and values beside the source's.
        things: What thing is told from its background; None tells none.
    """

    acts_in: ClassVar[frozenset[Kind]] = frozenset({"self", "cross", "joint"})

    steps: tuple[float, float] = (0.08, 1.0)
    layers: tuple[float, float] = (0.625, 1.0)
    union: bool = False
    things: Things | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "layers"):
            check_part(getattr(self, name), f"MasaCtrl's {name}")

    def source_role(self, role: Role) -> Role | None:
        """Each branch of the guidance reads its own."""
        return role

    def active(self, at: Moment) -> bool:
        """Whether the step is in its part of the steps."""
        return inside_part(at.step, at.steps, self.steps)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source is read here: its looks, or where its words are."""
        if not self.active(at):
            return False
        if site.kind == "features":
            return False
        return self.looks_at(site) or self.shares(site)

    def looks_at(self, site: Site) -> bool:
        """Whether words are looked for at this site."""
        return self.names_words and site.role == "cond" and looked_at(site)

    def shares(self, site: Site) -> bool:
        """Whether looks are taken from the source at this site."""
        inside = inside_part(site.layer, site.layers, self.layers)
        return site.kind in ("self", "joint") and inside

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's keys and values, and of cross-attention its queries and keys."""
        if site.kind == "joint":
            return own
        return QKV(None, own.k, own.v) if site.kind == "self" else QKV(own.q, own.k, None)

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """The controlled attention, of all keys."""
        if source is None or not self.shares(site):
            return None
        seen = [looks_of(source, site), around(own, site)]
        if self.union:
            seen.append(looks_of(own, site))
        k, v = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
        return (QKV(own.q, k, v),)

    def begun(self, size: tuple[int, int]) -> Begun:
        """Within one edit it remembers where it saw the thing."""
        if self.things is None:
            return Begun(self)
        guided = Guided(self, Seeking(self.things, size))
        return Begun(guided, onlookers=(guided,))


class Guided(Seeker):
    """MasaCtrl with masks while an edit runs."""

    control: MasaCtrl

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """The controlled attention; inside and outside apart, once it is known where they are."""
        masks = self.seeking.masks_at(at)
        if source is None or not self.control.shares(site) or masks is None:
            return self.control.terms(own, source, site, at)
        places = own_places(site)
        grid = grid_of(places.stop - places.start, self.seeking.size)
        of, to = (_per_place(mask, grid, len(own.q)) for mask in masks)
        terms = tuple(self._apart(own, source, to, of, site))
        if site.kind != "joint":
            return terms
        (whole,) = self.control.terms(own, source, site, at)
        return (*terms, of_others(whole, site))

    def _apart(self, own: QKV, source: QKV, to: Tensor, of: Tensor, site: Site) -> Iterator[OfSome]:
        """Inside from inside and outside from outside: rows with the same masks together.

        Args:
            own: The target's rows.
            source: What was recorded of the source.
            to: [B, P] bool, which queries are inside.
            of: [B, S] bool, which keys of the source are.
            site: Where.
        """
        looks, mine, text = looks_of(source, site), looks_of(own, site), around(own, site)
        first = own_places(site).start
        alike = bool((to == to[:1]).all() and (of == of[:1]).all())
        for rows in [slice(None)] if alike else [slice(i, i + 1) for i in range(len(to))]:
            inside, shown = to[rows][0], of[rows][0]
            for here, there in ((inside, shown), (~inside, ~shown)):
                if not here.any():
                    continue
                queries, keys = _places(here), _places(there if there.any() else ~there)
                seen = [[tensor[rows][:, keys] for tensor in looks], [t[rows] for t in text]]
                if self.control.union:
                    seen.append([tensor[rows][:, queries] for tensor in mine])
                k, v = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
                places = queries + first
                yield OfSome(QKV(own.q[rows][:, places], k, v), rows, places)


def _places(inside: Tensor) -> Tensor:
    """Numbers of the places of [P] bool that are inside."""
    return inside.nonzero()[:, 0]


def _per_place(mask: Tensor, grid: tuple[int, int], rows: int) -> Tensor:
    """[rows, P] bool of a mask [1 or B, 1, h, w], for a layer of h' x w' places."""
    inside = interpolate(mask.float(), grid, mode="nearest").flatten(1) > 0.5
    return inside.repeat_interleave(rows // len(inside), dim=0)
