"""Explicit cross-attention maps of a few layers, for losses that compare them.

A = softmax(q k^T / sqrt(d)) per head. Controls never need them (`bank`); a loss on the maps does.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import PalimpsestError
from .hooks import QKV, Site

#: A map layer has this many latent cells per query: 16 x 16 queries of a 64 x 64 latent.
CELLS_PER_QUERY = 16

#: Layers whose maps are looked at; the published SD 1.x has five of that size.
MOST_LAYERS = 8


@dataclass
class CrossMaps:
    """Cross-attention maps of the conditional rows, of the layers nearest to a quarter of the side.

    Of more than `MOST_LAYERS` such layers, that many are taken, evenly spread. Made and dropped by
    one run.

    Attributes:
        cells: Cells of the latent, h * w.
    """

    cells: int
    _seen: dict[int, tuple[QKV, int]] = field(default_factory=dict)

    def record(self, site: Site, qkv: QKV) -> None:
        """An attention hook that changes nothing."""
        if site.kind == "cross" and site.role == "cond":
            # By layer alone: a call at another size takes the place of the one before it.
            self._seen[site.layer] = (qkv, site.heads)

    def take(self) -> list[Tensor]:
        """[B, heads, P, S] float32 maps of the call that was just made; gradients flow."""
        maps = [attention_map(*self._seen[layer]) for layer in self._layers()]
        self._seen.clear()
        return maps

    def _layers(self) -> list[int]:
        """The layers whose maps count."""
        sizes = {qkv.q.shape[1] for qkv, _ in self._seen.values()}
        size = min(sizes, key=lambda n: (abs(math.log(n * CELLS_PER_QUERY / self.cells)), -n))
        layers = sorted(n for n, (qkv, _) in self._seen.items() if qkv.q.shape[1] == size)
        if len(layers) <= MOST_LAYERS:
            return layers
        return [layers[i * (len(layers) - 1) // (MOST_LAYERS - 1)] for i in range(MOST_LAYERS)]


def paired(seen: list[Tensor], wanted: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps of one call beside those of another.

    Raises:
        PalimpsestError: Where they are not of the same layers.
    """
    if [m.shape for m in seen] != [m.shape for m in wanted]:
        raise PalimpsestError(
            "Another node gives the network other sizes at one noise level than at another (Deep "
            "Shrink, for example), so that its maps cannot be compared: take that node away, let "
            "it act at all levels, or set map_weight to 0."
        )
    return zip(seen, wanted, strict=True)


def attention_map(qkv: QKV, heads: int) -> Tensor:
    """[B, heads, P, S] attention of every query to every key, in float32 at least.

    Args:
        qkv: [B, P, C] queries and [B, S, C] keys, heads side by side in C.
        heads: How many.
    """
    precision = torch.promote_types(qkv.q.dtype, torch.float32)
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2).to(precision) for t in (qkv.q, qkv.k))
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
