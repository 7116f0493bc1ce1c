"""Values of cross-attention computed from a mapped text embedding; keys keep the text.

    K: c        V: c * s + b

References:
    Li et al. 2023, StyleDiffusion: Prompt-Embedding Inversion for Text-Based Editing,
        arXiv:2303.15649, section 3
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .hooks import Role

#: The value mapping of a level, [2, B, T, C]; None leaves values alone.
ValuesAt = Callable[[Tensor], Tensor | None]


def value_context(context: Tensor, values: Tensor) -> Tensor:
    """What values are computed from: c * s + b.

    Args:
        context: [rows, S, C] text embeddings.
        values: [2, B, T, C] scale and shift; rows are B, or several in a row for each of B. Where S
            is not T (hosts repeat short prompts and append to long ones), token j takes j mod T.
    """
    at = torch.arange(context.shape[1], device=values.device) % values.shape[2]
    each = len(context) // values.shape[1]
    scale, shift = values.to(context).index_select(2, at).repeat_interleave(each, dim=1)
    return context * scale + shift


def value_contexts(context: Tensor, roles: Sequence[Role], values: Tensor) -> Tensor:
    """The same for a whole batch, whose unconditional parts stay as they are.

    Args:
        context: [rows, S, C]; equal parts of it belong to the branches of the guidance.
        roles: Branch of each part, in order.
        values: See `value_context`.
    """
    parts = zip(context.chunk(len(roles)), roles, strict=True)
    return torch.cat([value_context(c, values) if role == "cond" else c for c, role in parts])
