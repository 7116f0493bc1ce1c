"""Where randomness comes from: drawn noise is an argument, never a global state."""

from collections.abc import Callable

import torch
from torch import Tensor

#: Standard normal noise of a tensor's shape, dtype and device.
Draw = Callable[[Tensor], Tensor]


def seeded(seed: int) -> Draw:
    """Noise that depends on the seed and the order of the draws alone.

    It is drawn in float32 on the CPU, so that every machine and every device sees the same bits.

    Args:
        seed: 0 to 2**64 - 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    return draw
