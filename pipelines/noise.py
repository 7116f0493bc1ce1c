"""Where randomness comes from: drawn noise is an argument, never a global state."""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

#: Standard normal noise of a tensor's shape, dtype and device.
Draw = Callable[[Tensor], Tensor]

#: What the seeds of two draws differ by where pictures have numbers; odd, so that all differ.
STRIDE = 0x9E3779B97F4A7C15


def seeded(seed: int, pictures: Sequence[int] | None = None) -> Draw:
    """Noise that depends on the seed and the order of the draws alone.

    It is drawn in float32 on the CPU, so that every machine and every device sees the same bits.

    Args:
        seed: 0 to 2**64 - 1.
        pictures: Number of every picture of the batch, from 0: its noise then is that of its
            number, whatever else is in the batch. Otherwise a batch draws its noise in one go, and
            a picture alone has other noise than in it.
    """
    if pictures is not None:
        return _numbered(seed, pictures)
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    return draw


def _numbered(seed: int, pictures: Sequence[int]) -> Draw:
    """Noise by the numbers of pictures: the first draw is the one of ComfyUI's samplers for them.

    Every draw has a seed of its own, since how far one goes depends on who is in the batch.
    """
    turns = count()

    def draw(like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed((seed + next(turns) * STRIDE) % 2**64)
        drawn = {}
        for number in range(max(pictures) + 1):
            noise = torch.randn(like.shape[1:], generator=generator, dtype=torch.float32)
            if number in pictures:
                drawn[number] = noise
        return torch.stack([drawn[number] for number in pictures]).to(like)

    return draw
