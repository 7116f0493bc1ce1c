"""Where a thing is in a picture and where it shall be: by words, or by the user's masks.

From words it is where their maps, summed over the steps before this one and stretched to 0..1,
exceed a threshold. The maps of this step are not read: how a host splits a batch would then decide
which of them a row sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from ..errors import PalimpsestError
from ..schedule import Moment
from .control import Control, InPlace
from .hooks import QKV, Site
from .masked import Cells, of_picture
from .watch import Attended
from .word_maps import Gathered, columns_at, enlarged, source_map, target_map


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
            raise PalimpsestError(
                f"The threshold of a thing's words is {self.threshold:g}, it must be 0 to 1."
            )

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
        given = self.region, self.target_region
        on = (None if mask is None else of_picture(mask, cells) for mask in given)
        return Things(self.words, self.threshold, *on)


@dataclass(eq=False)
class Seeking:
    """Where a thing was seen while an edit runs; made and dropped by that edit.

    Attributes:
        things: What is sought.
        size: Cells of the latent, h and w.
        masks: [1 or B, 1, h, w] where the source shows the thing, and where the target shall, in
            the step that was seen last; None where that is not known.
        step: That step.
    """

    things: Things
    size: tuple[int, int]
    masks: tuple[Tensor, Tensor] | None = None
    step: int | None = None
    _source: Gathered = field(init=False)
    _target: Gathered = field(init=False)

    def __post_init__(self) -> None:
        self._source, self._target = Gathered(self.size), Gathered(self.size)

    def see(self, own: QKV, source: QKV, attended: Attended, site: Site, at: Moment) -> None:
        """Add the word maps of one attention; see `watch.Onlooker`."""
        self.masks_at(at)
        of_source, of_target = self.things.words
        self._source.add(source_map(source, of_source, site))
        terms = attended(columns_at(of_target, own.k, site))
        self._target.add(target_map(terms, site, len(own.q)))

    def masks_at(self, at: Moment) -> tuple[Tensor, Tensor] | None:
        """The masks of a step, settled before anything of it is seen."""
        if self.step == at.step:
            return self.masks
        self.step, things = at.step, self.things
        given = things.region, things.target_region
        if not things.looks:
            known = [mask for mask in given if mask is not None]
            self.masks = (known[0], known[-1])
        elif not self._source.empty:
            found = self._found(self._source), self._found(self._target)
            self.masks = tuple(
                own if mask is None else mask for mask, own in zip(given, found, strict=True)
            )
        return self.masks

    def _found(self, maps: Gathered) -> Tensor:
        """[B, 1, h, w] 1 where the word maps exceed the threshold, 0 elsewhere."""
        total = maps.total
        low, high = (find(total, (-2, -1), keepdim=True) for find in (torch.amin, torch.amax))
        above = total - low > self.things.threshold * (high - low)
        return enlarged(above.float(), self.size)


class AboutThings:
    """A control that may say what it is about."""

    things: Things | None

    @property
    def names_words(self) -> bool:
        """Whether words are looked for."""
        return self.things is not None and self.things.looks

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """The user's."""
        return () if self.things is None else self.things.given

    def placed(self, cells: Cells) -> Self:
        """The same with the user's masks on the cells of a latent."""
        return self if self.things is None else replace(self, things=self.things.placed(cells))


class SeekingControl(Control, Protocol):
    """A control that looks for a thing at some of the sites that it reads."""

    def looks_at(self, site: Site) -> bool:
        """Whether words are looked for at this site."""
        ...


@dataclass(eq=False)
class Seeker(InPlace):
    """A control while an edit runs in which it looks for a thing; an onlooker of its words.

    What it makes of what it reads is for those who know the thing.

    Attributes:
        control: What was asked for.
        seeking: Where the thing is.
    """

    control: SeekingControl
    seeking: Seeking

    def see(self, own: QKV, source: QKV | None, attended: Attended, site: Site, at: Moment) -> None:
        """Add the word maps of one attention."""
        if source is not None and self.control.looks_at(site) and self.control.reads(site, at):
            self.seeking.see(own, source, attended, site, at)
