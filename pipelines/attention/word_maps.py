"""Where a picture shows what a word says: word maps from cross-attention, none of which is stored.

The map of some words is the attention that their tokens get, and with u = 1 at these tokens and 0
at all others it is a product of the softmax with one column of values:

    map = mean over heads and layers of softmax(q k^T / sqrt(d)) u

A control that edits the softmax for the values v edits it for the column u alike, so that the map
of an edited attention is the sum of its terms with u in the place of v.

Looked at are the layers of a quarter of the latent's side, the published 16 x 16 of a 64 x 64
latent; of a small latent finer ones, which still have a place for a word.

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 4 (local editing)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from ..errors import PalimpsestError
from .hooks import QKV, Site

#: How often the picture was halved where its words are looked for: a quarter of the side.
DEPTH = 2

#: Places that a layer has at least where words are looked for, if there is a finer one.
PLACES = 128


def looked_at(site: Site) -> bool:
    """Whether a place is one of the cross-attentions in which words are looked for.

    They are those nearest to `DEPTH` halvings, of which two are equally near the finer ones, that
    have `PLACES` places; where none has, the finest.
    """
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


def tiled(columns: Tensor, keys: Tensor) -> Tensor:
    """[B, S, W] columns [1 or B, N, W] for keys [B, S, C] of a prompt that may be repeated."""
    copies = keys.shape[1] // columns.shape[-2]
    return columns.to(keys.device).repeat(1, copies, 1).expand(len(keys), -1, -1)


def word_map(terms: Iterable[QKV], heads: int) -> Tensor:
    """[B, P, W] attention that W columns of tokens get, mean of the heads; float32 or finer.

    Args:
        terms: Queries [B, P, C], keys [B, S, C] and the columns [B, S, W] as values; summed.
        heads: How many lie side by side in C.
    """
    return sum(_gathered(term, heads) for term in terms)


def _gathered(term: QKV, heads: int) -> Tensor:
    finest = torch.promote_types(term.q.dtype, torch.float32)
    q, k = (t.to(finest).unflatten(-1, (heads, -1)).transpose(1, 2) for t in term[:2])
    columns = term.v.to(finest)[:, None].expand(-1, heads, -1, -1)
    return scaled_dot_product_attention(q, k, columns).mean(1)


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
