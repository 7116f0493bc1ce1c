"""Where a picture shows what a word says: word maps from cross-attention, none of which is stored.

The map of some words is the attention that their tokens get, and with u = 1 at these tokens and 0
at all others it is a product of the softmax with one column of values:

    map = mean over heads and layers of softmax(q k^T / sqrt(d)) u

A control that edits the softmax for the values v edits it for the column u alike, so that the map
of an edited attention is the sum of its terms with u in the place of v.

Looked at are the layers of a quarter of the latent's side, the published 16 x 16 of a 64 x 64
latent; of a small latent finer ones, which still have a place for a word. A transformer has one
size alone, and its middle blocks tell words best.

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 4 (local editing)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..errors import PalimpsestError
from .hooks import QKV, Kind, Site, Term, per_head
from .joint import image_places, source_places

#: How often the picture was halved where its words are looked for: a quarter of the side.
DEPTH = 2

#: The attentions in which an image looks at words.
WORDED: frozenset[Kind] = frozenset({"cross", "joint"})

#: Part of a transformer's layers in which its words are looked for: published for Flux are blocks
#: 11 to 18 of 57, for SD 3 4 to 9 of 24.
JOINT_LAYERS = (0.17, 0.45)

#: Places that a layer has at least where words are looked for, if there is a finer one.
PLACES = 128


def looked_at(site: Site) -> bool:
    """Whether a place is one of the attentions in which words are looked for.

    Of joint ones they are those of `JOINT_LAYERS`, one at least. Of cross-attentions they are
    those nearest to `DEPTH` halvings, of which two are equally near the finer ones, that have
    `PLACES` places; where none has, the finest.
    """
    if site.kind == "joint":
        first, end = (math.ceil(site.layers * part) for part in JOINT_LAYERS)
        first = min(first, site.layers - 1)
        return first <= site.layer < max(end, first + 1)
    if site.kind != "cross":
        return False
    depth = site.depths[site.layer]
    large = [d for d in site.depths if site.tokens * 4.0 ** (depth - d) >= PLACES]
    return depth == min(large or [min(site.depths)], key=lambda d: (abs(d - DEPTH), d))


def columns_of(groups: Sequence[Iterable[int]], count: int) -> Tensor:
    """[count, W] indicator of the tokens of every group.

    Args:
        groups: Token positions of each of the W groups.
        count: Tokens of the prompt.
    """
    columns = torch.zeros(count, len(groups))
    for column, positions in enumerate(groups):
        columns[list(positions), column] = 1
    return columns


def columns_at(columns: Tensor, keys: Tensor, site: Site) -> Tensor:
    """[B, S, W] columns [1 or B, N, W] of a prompt for all keys [B, S, C] of a site.

    Cross-attention may see a prompt several times; in joint attention other tokens follow it.
    """
    if site.kind == "joint":
        every = pad(columns, (0, 0, 0, keys.shape[1] - columns.shape[-2]))
    else:
        every = columns.repeat(1, keys.shape[1] // columns.shape[-2], 1)
    return every.to(keys.device).expand(len(keys), -1, -1)


def source_map(source: QKV, columns: Tensor, site: Site) -> Tensor:
    """[B, P, W] attention of a source's image to W columns [1, N, W] of its prompt's tokens.

    Args:
        source: What was recorded of it.
        columns: Indicators of tokens.
        site: Where, as the target sees it.
    """
    places = source_places(source, site) if site.kind == "joint" else slice(None)
    shown = QKV(source.q[:, places], source.k, columns_at(columns, source.k, site))
    return per_head(shown, site.heads).mean(1)


def target_map(terms: Iterable[Term], site: Site, rows: int) -> Tensor:
    """[B, P, W] the same of a target, as a control edits its attention.

    Args:
        terms: With the columns [B, S, W] in the place of values; they are summed.
        site: Where.
        rows: B; a term may be of some of them.
    """
    whole = sum(_gathered(term, site, rows) for term in terms)
    return whole[:, image_places(site)] if site.kind == "joint" else whole


def _gathered(term: Term, site: Site, rows: int) -> Tensor:
    """[B, P, W] what a term adds to the maps of all queries, mean of the heads."""
    if isinstance(term, QKV):
        return per_head(term, site.heads).mean(1)
    found = per_head(term.qkv, site.heads)
    if term.scale is not None:
        found = found * term.scale.unsqueeze(-1).to(found)
    whole = found.new_zeros(rows, site.tokens, found.shape[-1])
    whole[term.rows, term.queries] = found.mean(1)
    return whole


@dataclass
class Gathered:
    """Maps of many layers and steps, summed. Made and dropped by one run.

    Attributes:
        size: Cells of the latent, h and w.
    """

    size: tuple[int, int]
    _sums: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add(self, maps: Tensor) -> None:
        """Add those [B, P, W] of one layer."""
        grid = grid_of(maps.shape[1], self.size)
        maps = maps.transpose(1, 2).unflatten(2, grid)
        self._sums[grid] = self._sums[grid] + maps if grid in self._sums else maps

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._sums

    @property
    def total(self) -> Tensor:
        """[B, W, h', w'] their sum, at the size of the finest layer that was seen."""
        finest = max(self._sums)
        return sum(enlarged(maps, finest) for maps in self._sums.values())


def grid_of(places: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a layer with so many places, in a network that halves its picture.

    Args:
        places: Queries of the layer.
        size: Cells of the latent, h and w; of an odd side the larger half is taken.

    Raises:
        PalimpsestError: If no halving leads to so many.
    """
    for depth in range(max(size).bit_length() + 1):
        grid = tuple(math.ceil(n / 2**depth) for n in size)
        if math.prod(grid) == places:
            return grid
    raise PalimpsestError(
        f"Another node gives the network layers of {places} places for a latent of {size[0]} x "
        f"{size[1]} cells, in which no word can be found: take that node away, or edit without "
        "words."
    )


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, W, h', w'] at the size of the latent; every place stands for its own cells."""
    return interpolate(maps, size, mode="nearest")
