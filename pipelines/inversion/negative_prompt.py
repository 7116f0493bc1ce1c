"""Negative-prompt inversion: the source prompt in the place of the negative one.

Null-text inversion learns, step by step, the unconditional embedding under which guidance returns
along the chain of DDIM inversion. Negative-prompt inversion says what it learns without learning
it: the embedding of the source prompt itself. Then both halves of the source row's guidance are
equal, whatever the scale, and

    source    n = n(x, c_source)                                       DDIM at guidance 1
    target    n = n(x, c_source) + cfg (n(x, c_target) - n(x, c_source))

so that only what the two prompts tell apart is pushed. Between the two there is the great circle
from the source's embedding to that of the negative prompt, taken over all tokens and channels as
one vector: interpolation 0 is the published method, 1 the negative prompt alone.

The chain is that of DDIM inversion at guidance 1 under the source prompt: the method costs nothing
beyond it, and its source row is one row, not two.

References:
    Miyake et al. 2023, Negative-prompt Inversion: Fast Image Inversion for Editing with
        Text-guided Diffusion Models, arXiv:2305.16807, section 3 (the embedding)
    Han et al. 2023, Improving Tuning-Free Real Image Editing with Proximal Guidance,
        arXiv:2306.05414 (the interpolation, in its code)
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import PalimpsestError
from ..trajectory import Trajectory
from .negative_embedding import NegativeEmbedding


def negative_prompt(
    chain: Trajectory, source: Tensor, null: Tensor | None = None, interpolation: float = 0.0
) -> Trajectory:
    """A trajectory whose edits take the source prompt for their negative one.

    Args:
        chain: By DDIM inversion under the source prompt at guidance 1.
        source: [1 or B, tokens, channels] embedding of the source prompt.
        null: [1 or B, tokens, channels] that of the negative prompt; only read above
            interpolation 0.
        interpolation: 0..1, how far to go from the one to the other.

    Raises:
        PalimpsestError: If the interpolation is outside 0..1 or lacks its other end.
    """
    if not 0 <= interpolation <= 1:
        raise PalimpsestError(f"The interpolation must be 0 to 1, got {interpolation}.")
    if interpolation and null is None:
        raise PalimpsestError(
            f"The interpolation is {interpolation}, which needs a negative: connect one, or set it "
            "to 0."
        )
    uncond = source if not interpolation else slerp(interpolation, *match_tokens(source, null))
    recipe = replace(
        chain.recipe,
        method="negative-prompt",
        # The two halves of the source's guidance are one: no scale moves it.
        source_cfg=None if interpolation else 1.0,
    )
    embedding = NegativeEmbedding(uncond.unsqueeze(0).to(chain.latents))
    return replace(chain, recipe=recipe).with_carried(embedding)


def slerp(weight: float, low: Tensor, high: Tensor) -> Tensor:
    """Great circle from `low` (weight 0) to `high` (1), [B, ...] each; a row is one vector.

    Their lengths go over linearly in the two sines; vectors of one direction are blended linearly.
    """
    a, b = (t.flatten(1).double() for t in (low, high))
    a, b = torch.broadcast_tensors(a, b)
    unit_a, unit_b = (normalize(t, dim=1) for t in (a, b))
    # Of the chord: the arc cosine loses half the digits where the angle is small.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    angle = angle.unsqueeze(1)
    straight = angle.sin().abs() < 1e-7
    sine = torch.where(straight, torch.ones_like(angle), angle.sin())
    arc = ((1 - weight) * angle).sin() / sine * a + (weight * angle).sin() / sine * b
    line = (1 - weight) * a + weight * b
    between = torch.where(straight, line, arc)
    return between.view(-1, *low.shape[1:]).to(low)


def match_tokens(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two embeddings [B, tokens, channels] with equally many tokens.

    Each is repeated as a whole until they meet, which no attention notices: the same keys and
    values twice have the same softmax.

    Raises:
        PalimpsestError: If their channels differ.
    """
    if a.shape[-1] != b.shape[-1]:
        raise PalimpsestError(
            f"The positive has {a.shape[-1]} channels and the negative {b.shape[-1]}: encode both "
            "with the CLIP of the model."
        )
    tokens = math.lcm(a.shape[1], b.shape[1])
    repeated = [t.repeat(1, tokens // t.shape[1], 1) for t in (a, b)]
    return repeated[0], repeated[1]
