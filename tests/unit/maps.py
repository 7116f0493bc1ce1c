"""Prompt-to-Prompt as it was published: full attention maps, edited by a controller.

A' = R * alpha + A_t * (1 - alpha) per target token, with R made by Replace (A_s times a matrix),
by Refine (columns of A_s, or of A_t for new tokens), and by Reweight (a factor per token on top).
Restated from the paper and from the sheet of the published code; shares nothing with `pipelines/`.
"""

from dataclasses import dataclass
from typing import Any

import torch


def attention_maps(q, k, heads):
    """[B, heads, P, S] softmax maps of queries [B, P, C] and keys [B, S, C]."""
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


def look(maps, v):
    """[B, P, C] what the maps gather from values [B, S, C]."""
    v = v.unflatten(-1, (maps.shape[1], -1)).transpose(1, 2)
    return (maps @ v).transpose(1, 2).flatten(2)


def attention(qkv, heads):
    """Attention through its maps."""
    return look(attention_maps(qkv[0], qkv[1], heads), qkv[2])


@dataclass
class Replace:
    mapper: torch.Tensor  # [S, N]

    def __call__(self, source, target):
        return torch.einsum("bhps,sn->bhpn", source, self.mapper.to(source))


@dataclass
class Refine:
    mapper: list  # source position of every target token, -1 where it is new

    def __call__(self, source, target):
        old = torch.tensor([float(m != -1) for m in self.mapper]).to(source)
        return source[..., self.mapper] * old + target * (1 - old)


@dataclass
class Reweight:
    factors: torch.Tensor
    first: Any = None

    def __call__(self, source, target):
        base = source if self.first is None else self.first(source, target)
        return base * self.factors.to(source)


def cross_alpha(steps, count, default, words=()):
    """[steps + 1, count] 1 where a target token reads the source; words come after the default."""
    alpha = torch.zeros(steps + 1, count)
    for positions, bounds in [(range(count), default), *words]:
        first, last = (0.0, bounds) if isinstance(bounds, float) else bounds
        alpha[:, list(positions)] = 0
        alpha[int(first * (steps + 1)) : int(last * (steps + 1)), list(positions)] = 1
    return alpha


def controlled(target, source, heads, rewrite, alpha):
    """[B, P, C] cross-attention of the target rows under a controller, through its maps."""
    own = attention_maps(target[0], target[1], heads)
    other = attention_maps(source[0], source[1], heads)
    alpha = alpha.to(own)
    return look(rewrite(other, own) * alpha + own * (1 - alpha), target[2])
