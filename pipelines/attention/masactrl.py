"""MasaCtrl: change what a thing does, keep what it looks like.

The target asks with its own queries where things shall be, and takes their looks from the source:

    self    out = SDPA(q_t, k_s, v_s)                            mutual self-attention
            out = SDPA(q_t, [k_s | k_t], [v_s | v_t])            union

in both branches of the guidance, once the layout stands (from a step on) and where it is no longer
decided (from a layer on, in the decoder). Cross-attention is the target's own.

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
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import PalimpsestError
from ..schedule import Moment
from .hooks import QKV, OfSome, Role, Site, Term, check_part, inside_part
from .masked import Cells
from .watch import Attended, Begun
from .word_maps import Gathered, enlarged, grid_of, looked_at, tiled, word_map


@dataclass(frozen=True, eq=False)
class Things:
    """Where a thing is, by its words: a mask from the user has its way before them.

    Attributes:
        words: [1, S, 1] indicator of the tokens of its words in the source prompt, and
            [prompts, N, 1] in every target prompt; None looks for no words.
        threshold: Value of a word map, stretched to 0..1, above which a place is the thing's.
        region: In 0..1, where the source shows it: of pixels, or once it is `placed`
            [1 or B, 1, h, w] of cells of the latent.
        target_region: Where the target shall show it; None where the source does, if nothing else
            says so.
    """

    words: tuple[Tensor, Tensor] | None = None
    threshold: float = 0.1
    region: Tensor | None = None
    target_region: Tensor | None = None

    def __post_init__(self) -> None:
        if self.words is None and not self.given:
            raise ValueError("A thing needs words or a mask.")
        if not 0 <= self.threshold <= 1:
            raise PalimpsestError(f"MasaCtrl's threshold is {self.threshold:g}, it must be 0 to 1.")

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The user's masks."""
        return tuple(mask for mask in (self.region, self.target_region) if mask is not None)

    @property
    def looks(self) -> bool:
        """Whether words are looked for: where some mask is not the user's."""
        return self.words is not None and len(self.given) < 2

    def placed(self, cells: Cells) -> Things:
        """The same with the user's masks on the cells of a latent."""
        on = (None if m is None else cells(m) for m in (self.region, self.target_region))
        return Things(self.words, self.threshold, *on)


@dataclass(frozen=True)
class MasaCtrl:
    """Self-attention that reads the source's keys and values.

    Attributes:
        steps: Part of the steps during which the source is read, as fractions of them. Published
            is from step 4 of 50.
        layers: Part of the network's transformer blocks in which it is read. Published is from the
            tenth of the 16 of SD 1.x, and from about there in SDXL's 70.
        union: Read the target's own keys and values beside the source's.
        things: What thing is told from its background; None tells none.
    """

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
        if site.kind == "self":
            return inside_part(site.layer, site.layers, self.layers)
        return self.names_words and site.role == "cond" and looked_at(site)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's keys and values, and of cross-attention its queries and keys."""
        return QKV(None, own.k, own.v) if site.kind == "self" else QKV(own.q, own.k, None)

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """The controlled attention, of all keys."""
        if source is None or site.kind != "self":
            return None
        if not self.union:
            return (QKV(own.q, source.k, source.v),)
        both = (torch.cat(pair, dim=1) for pair in zip(source[1:], own[1:], strict=True))
        return (QKV(own.q, *both),)

    @property
    def names_words(self) -> bool:
        """Whether words are looked for."""
        return self.things is not None and self.things.looks

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """The user's."""
        return () if self.things is None else self.things.given

    def placed(self, cells: Cells) -> MasaCtrl:
        """The same with the user's masks on the cells of a latent."""
        return self if self.things is None else replace(self, things=self.things.placed(cells))

    def begun(self, size: tuple[int, int]) -> Begun:
        """Within one edit it remembers where it saw the thing."""
        if self.things is None:
            return Begun(self)
        guided = Guided(self, size, Gathered(size), Gathered(size))
        return Begun(guided, onlookers=(guided,))


@dataclass(eq=False)
class Guided:
    """MasaCtrl with masks while an edit runs: a control, and a `watch.Onlooker` of its words.

    Attributes:
        control: What was asked for.
        size: Cells of the latent, h and w.
        source: Maps of the source's words so far.
        target: Maps of the target's.
        masks: [1 or B, 1, h, w] where the source shows the thing, and where the target shall, in
            the step that was seen last; None where that is not known.
        step: That step.
    """

    control: MasaCtrl
    size: tuple[int, int]
    source: Gathered
    target: Gathered
    masks: tuple[Tensor, Tensor] | None = None
    step: int | None = None

    def source_role(self, role: Role) -> Role | None:
        """See `MasaCtrl`."""
        return self.control.source_role(role)

    def active(self, at: Moment) -> bool:
        """See `MasaCtrl`."""
        return self.control.active(at)

    def reads(self, site: Site, at: Moment) -> bool:
        """See `MasaCtrl`."""
        return self.control.reads(site, at)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """See `MasaCtrl`."""
        return self.control.kept(site, own, at)

    def see(self, own: QKV, source: QKV | None, attended: Attended, site: Site, at: Moment) -> None:
        """Add the word maps of one cross-attention."""
        things = self.control.things
        if source is None or site.kind != "cross" or not self.control.reads(site, at):
            return
        self._begin(at)
        of_source, of_target = things.words
        shown = QKV(source.q, source.k, tiled(of_source, source.k))
        self.source.add(word_map([shown], site.heads))
        self.target.add(word_map(attended(tiled(of_target, own.k)), site.heads))

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """The controlled attention; inside and outside apart, once it is known where they are."""
        self._begin(at)
        if source is None or site.kind != "self" or self.masks is None:
            return self.control.terms(own, source, site, at)
        grid = grid_of(own.q.shape[1], self.size)
        of, to = (_per_place(mask, grid, len(own.q)) for mask in self.masks)
        return tuple(self._apart(own, source, to, of))

    def _begin(self, at: Moment) -> None:
        """Settle the masks of a step before anything of it is seen."""
        if self.step == at.step:
            return
        self.step, things = at.step, self.control.things
        given = things.region, things.target_region
        if not things.looks:
            known = [mask for mask in given if mask is not None]
            self.masks = (known[0], known[-1])
        elif not self.source.empty:
            found = self._found(self.source), self._found(self.target)
            self.masks = tuple(
                own if mask is None else mask for mask, own in zip(given, found, strict=True)
            )

    def _found(self, maps: Gathered) -> Tensor:
        """[B, 1, h, w] 1 where the word maps exceed the threshold, 0 elsewhere."""
        total = maps.total
        low, high = (find(total, (-2, -1), keepdim=True) for find in (torch.amin, torch.amax))
        above = total - low > self.control.things.threshold * (high - low)
        return enlarged(above.float(), self.size)

    def _apart(self, own: QKV, source: QKV, to: Tensor, of: Tensor) -> Iterator[OfSome]:
        """Inside from inside and outside from outside: rows with the same masks together.

        Args:
            own: The target's rows.
            source: What was recorded of the source.
            to: [B, P] bool, which queries are inside.
            of: [B, S] bool, which keys of the source are.
        """
        alike = bool((to == to[:1]).all() and (of == of[:1]).all())
        for rows in [slice(None)] if alike else [slice(i, i + 1) for i in range(len(to))]:
            inside, shown = to[rows][0], of[rows][0]
            for here, there in ((inside, shown), (~inside, ~shown)):
                if not here.any():
                    continue
                queries, keys = _places(here), _places(there if there.any() else ~there)
                k, v = (tensor[rows][:, keys] for tensor in source[1:])
                if self.control.union:
                    k, v = (
                        torch.cat([kept, mine[rows][:, queries]], dim=1)
                        for kept, mine in zip((k, v), own[1:], strict=True)
                    )
                yield OfSome(QKV(own.q[rows][:, queries], k, v), rows, queries)


def _places(inside: Tensor) -> Tensor:
    """Numbers of the places of [P] bool that are inside."""
    return inside.nonzero()[:, 0]


def _per_place(mask: Tensor, grid: tuple[int, int], rows: int) -> Tensor:
    """[rows, P] bool of a mask [1 or B, 1, h, w], for a layer of h' x w' places."""
    inside = interpolate(mask.float(), grid, mode="nearest").flatten(1) > 0.5
    return inside.repeat_interleave(rows // len(inside), dim=0)
