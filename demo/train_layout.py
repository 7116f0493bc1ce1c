"""What helps a network to learn places: while it trains, it also tells where each object lies.

A convolutional network does not know where in the picture a feature is, and the noise that it is
to predict hardly depends on a place in the caption: only where the picture is nearly all noise, and
there by little. It learns to read "on the left" late or never. A linear layer on the features of
its inner blocks, trained to mark the cells of the first and of the second object, asks for the same
thing aloud at every noise level. It is thrown away after training: the network keeps its shape.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import Scene
from .things import CANVAS


class LayoutHead(nn.Module):
    """Marks the objects from what some blocks made in their last call, cell by cell.

    A block gives features `[B, width, side, side]`, or, as Flux's do, a pair of text tokens and
    image tokens `[B, side * side, width]`.
    """

    def __init__(self, blocks: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, 2, 1) for _ in blocks)
        self._seen: dict[nn.Module, Tensor] = {}
        self._handles = [block.register_forward_hook(self._keep) for block in blocks]

    def _keep(
        self, block: nn.Module, _inputs: object, made: Tensor | tuple[Tensor, Tensor]
    ) -> None:
        self._seen[block] = made if isinstance(made, Tensor) else _as_map(made[1])

    def leave(self) -> None:
        """Look at the blocks no longer."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def loss(self, spots: Tensor, told: Tensor) -> Tensor:
        """Cross entropy of the marks against `spots [B, 2, 3]`, of the rows where `told [B]`.

        `spots` are of `spots_of`. The features of the call are used up.
        """
        losses = []
        for layer, features in zip(self.layers, self._seen.values(), strict=True):
            target = _marks(spots, features.shape[-1])
            found = layer(features.float())
            wrong = F.binary_cross_entropy_with_logits(found, target, reduction="none")
            losses.append(wrong.mean((1, 2, 3)))
        self._seen.clear()
        return (sum(losses) * told).mean()


def spots_of(scenes: list[Scene]) -> Tensor:
    """x, y and size of the first and the second object `[N, 2, 3]`, 1 is the picture's side.

    Where there is no second one its size is 0.
    """
    spots = torch.zeros(len(scenes), 2, 3)
    for row, scene in zip(spots, scenes, strict=True):
        for spot, thing in zip(row, scene.things, strict=False):
            spot.copy_(torch.tensor([thing.x, thing.y, thing.size]) / CANVAS)
    return spots


def _marks(spots: Tensor, side: int) -> Tensor:
    """1 in the cells `[B, 2, side, side]` whose centre lies in a disk of the object's size."""
    line = (torch.arange(side, device=spots.device) + 0.5) / side
    x, y, size = spots[..., None, None].unbind(2)
    return ((line - x) ** 2 + (line[:, None] - y) ** 2 < size**2).float()


def _as_map(tokens: Tensor) -> Tensor:
    """Image tokens `[B, side * side, C]`, row by row, as features `[B, C, side, side]`."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))
