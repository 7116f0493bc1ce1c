"""LocalBlend: an edit stays where the words are that it is about.

After every step from `start` on, with M_s and M_t the maps of the blend words in both prompts,
summed over the steps so far (`word_maps`; M_t after the control has edited the attention):

    m = [pool(M_s) > threshold max pool(M_s)]  or  [pool(M_t) > threshold max pool(M_t)]
    m = m and not [the same of the words to leave out, without pool]
    x_next <- x_src_next + m (x_next - x_src_next)

pool is the largest of 3 x 3 places, and max that of each map by itself.

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 4 (local editing), and the code released with Null-text inversion
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from ..errors import PalimpsestError
from ..rows import Rows
from ..schedule import Moment
from .hooks import QKV, Kind, Role, Site
from .masked import Cells, of_picture
from .tokens import PromptTokens, find_word, require_words
from .watch import Attended, Begun, over
from .word_maps import (
    WORDED,
    Gathered,
    columns_at,
    columns_of,
    enlarged,
    looked_at,
    source_map,
    target_map,
)

#: How a mask from the user joins the one that was found.
Join = Literal["intersection", "union", "replace"]


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Which words bound the edit. A control that reads the source's maps and changes none.

    Attributes:
        source: [1, S, 2] indicator of the source's tokens: of the blend words, and of those to
            leave out.
        target: [prompts, N, 2] the same of every target prompt.
        threshold: Part of a map's largest value above which a place is taken, 0..1.
        out_threshold: The same of the words to leave out.
        start: Part of the steps before the first that is blended, 0..1.
        region: In 0..1, a mask from the user: of pixels, or once it is `placed` [1 or B, 1, h, w]
            of cells of the latent; None for none.
        join: What becomes of both masks; "replace" looks for no words.
    """

    acts_in: ClassVar[frozenset[Kind]] = WORDED

    source: Tensor
    target: Tensor
    threshold: float = 0.3
    out_threshold: float = 0.3
    start: float = 0.2
    region: Tensor | None = None
    join: Join = "intersection"

    def __post_init__(self) -> None:
        for name in ("threshold", "out_threshold", "start"):
            if not 0 <= getattr(self, name) <= 1:
                raise PalimpsestError(
                    f"LocalBlend's {name} is {getattr(self, name):g}, it must be 0 to 1."
                )

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """The user's."""
        return () if self.region is None else (self.region,)

    def placed(self, cells: Cells) -> LocalBlend:
        """The same with the user's mask on the cells of a latent."""
        return self if self.region is None else replace(self, region=of_picture(self.region, cells))

    @property
    def looks(self) -> bool:
        """Whether it looks for its words at all."""
        return self.region is None or self.join != "replace"

    @property
    def names_words(self) -> bool:
        """Whether it looks for any."""
        return self.looks

    def source_role(self, role: Role) -> Role | None:
        """Only where the guidance sees the prompt are there words."""
        return role if role == "cond" else None

    def active(self, at: Moment) -> bool:
        """In every step: maps are summed from the first."""
        return self.looks

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether words are looked for here."""
        return self.looks and looked_at(site)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's queries and keys."""
        return QKV(own.q, own.k, None)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> None:
        """It leaves all attention alone."""

    def begun(self, size: tuple[int, int]) -> Begun:
        """With the blend of one edit."""
        return Begun(self, (Blending(self, Gathered(size), Gathered(size)),))


@dataclass(eq=False)
class Blending:
    """LocalBlend while an edit runs, as a `watch.Watch`.

    Attributes:
        blend: What was asked for.
        source: Maps of the source's words so far.
        target: Maps of the target's.
        at: The step that was seen last.
    """

    blend: LocalBlend
    source: Gathered
    target: Gathered
    at: Moment | None = None

    def see(self, own: QKV, source: QKV | None, attended: Attended, site: Site, at: Moment) -> None:
        """Add the maps of one attention."""
        self.at = at
        if source is None or not self.blend.reads(site, at) or site.role != "cond":
            return
        self.source.add(source_map(source, self.blend.source, site))
        columns = columns_at(self.blend.target, own.k, site)
        self.target.add(target_map(attended(columns), site, len(own.q)))

    @property
    def cells(self) -> Tensor | None:
        """[B, 1, h, w] 0 where the source is put back after the step that was seen last."""
        blend, at = self.blend, self.at
        if at is None or not at.inside((blend.start, 1.0)):
            return None
        if not blend.looks:
            return blend.region
        if self.source.empty:
            return None  # so far only rows without words ran
        found = self._found()
        if blend.region is None:
            return found
        joined = torch.minimum if blend.join == "intersection" else torch.maximum
        return joined(*torch.broadcast_tensors(found, blend.region.to(found)))

    def _found(self) -> Tensor:
        """[B, 1, h, w] where the words are, 0 or 1."""
        size = self.source.size
        masks = [
            tuple(enlarged(places.float(), size) > 0 for places in self._places(of))
            for of in (self.source, self.target)
        ]
        (source, source_out), (target, target_out) = masks
        return ((source | target) & ~(source_out | target_out)).float()

    def _places(self, gathered: Gathered) -> tuple[Tensor, Tensor]:
        """[B, 1, h', w'] where the blend words are, and the words to leave out."""
        words, out = gathered.total.split(1, dim=1)
        pooled = max_pool2d(words, 3, stride=1, padding=1)
        return above(pooled, self.blend.threshold), above(out, self.blend.out_threshold)

    def reads_source(self, at: Moment) -> bool:
        """The control says so already."""
        return False

    def __call__(self, rows: Rows, chain_next: Tensor, at: Moment) -> Rows:
        """Put the source back outside the words."""
        cells = self.cells
        if cells is None:
            return rows
        kept = rows.source if self.blend.looks else chain_next
        return rows._replace(target=kept + over(cells, kept) * (rows.target - kept))


def above(maps: Tensor, threshold: float) -> Tensor:
    """[B, 1, h, w] bool, which places of a map exceed a part of its largest value."""
    return maps > threshold * maps.amax(dim=(-2, -1), keepdim=True)


def blend_columns(
    prompts: Sequence[PromptTokens], words: Sequence[str], leave_out: Sequence[str], *, role: str
) -> Tensor:
    """[prompts, N, 2] indicator of the tokens of the blend words, and of those to leave out.

    Args:
        prompts: Source prompt, or target prompts.
        words: Each must be in one of the prompts; it counts in those that have it.
        leave_out: Those that are in none are passed over.
        role: What a prompt is called in messages, for example "target prompt".

    Raises:
        PalimpsestError: If a word is in none of the prompts.
    """
    require_words(words, prompts, role=role)
    longest = max(len(prompt.ids) for prompt in prompts)
    columns = []
    for prompt in prompts:
        groups = [[p for word in of for p in find_word(word, prompt)] for of in (words, leave_out)]
        own = columns_of(groups, len(prompt.ids))
        columns.append(pad(own, (0, 0, 0, longest - len(own))))
    return torch.stack(columns)
