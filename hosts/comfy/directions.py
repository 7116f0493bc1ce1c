"""A prompt with an edit direction added to it, as CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.sd import CLIP
from torch import Tensor

from ...pipelines.attention.pix2pix_zero import edit_direction
from ...pipelines.errors import PalimpsestError, quoted
from .guidance import Conditioning


def directed(
    clip: CLIP, source: str, before: Sequence[str], after: Sequence[str]
) -> tuple[Conditioning, Conditioning]:
    """Conditionings of a source prompt, and of it with a direction added.

    Args:
        clip: Any CLIP.
        source: The prompt.
        before: Sentences that the direction leads away from, one or more.
        after: Sentences that it leads to, one or more.

    Raises:
        PalimpsestError: If a text is a chunk longer than another, or the CLIP carries hooks.
    """
    embedding, more = _encoded(clip, source)
    rows = [[_encoded(clip, text) for text in texts] for texts in (before, after)]
    for text, (tensor, _) in zip((*before, *after), (*rows[0], *rows[1]), strict=True):
        if tensor.shape != embedding.shape:
            raise PalimpsestError(
                f"The text {quoted(text)} takes {tensor.shape[1]} tokens, the source prompt "
                f"{embedding.shape[1]}: a direction is between texts of one length; keep each of "
                "them below 75 tokens."
            )
    target = embedding + edit_direction(*(torch.cat([e for e, _ in side]) for side in rows))
    directed = dict(more)
    if isinstance(more.get("pooled_output"), Tensor):
        pooled = (torch.cat([extra["pooled_output"] for _, extra in side]) for side in rows)
        directed["pooled_output"] = more["pooled_output"] + edit_direction(*pooled)
    return [[embedding, more]], [[target, directed]]


def _encoded(clip: CLIP, text: str) -> tuple[Tensor, dict[str, Any]]:
    """The embedding of a text, and what else its conditioning holds."""
    entries = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if len(entries) != 1:
        raise PalimpsestError(
            "The CLIP carries a schedule of hooks, which a direction cannot have: connect the CLIP "
            "as it was before that node."
        )
    return entries[0][0], entries[0][1]
