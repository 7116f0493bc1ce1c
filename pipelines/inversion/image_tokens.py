"""Tokens of a picture, as wide as a text embedding: what StyleDiffusion's mapping is made from."""

import math

import torch
from torch import Tensor

from ..noise import seeded

#: Patches of a latent per side, at most: about as many as the published image encoder has.
GRID = 16

#: Of the one projection between two widths.
_SEED = 0


def fit_width(tokens: Tensor, width: int) -> Tensor:
    """Bring tokens to the width of a text embedding.

    Of the same width they stay as they are, as published. Otherwise they go through a fixed
    projection with orthonormal rows or columns, which keeps what tells them apart as far as the
    narrower side can hold it, and is scaled to keep the size of an entry.

    Args:
        tokens: [B, E, width of the image encoder].
        width: Of the text embedding.

    Returns:
        [B, E, width] float32.
    """
    own = tokens.shape[-1]
    tokens = tokens.float()
    if own == width:
        return tokens
    return tokens @ _projection(own, width).to(tokens) * math.sqrt(max(1.0, width / own))


def _projection(own: int, width: int) -> Tensor:
    """[own, width] with orthonormal rows or columns, whichever are fewer; always the same."""
    drawn = seeded(_SEED)(torch.empty(max(own, width), min(own, width))).double()
    q, r = torch.linalg.qr(drawn)
    # The signs are the library's choice otherwise.
    q = q * r.diagonal().sign()
    return (q if own >= width else q.T).float()


def latent_tokens(latent: Tensor) -> Tensor:
    """Tokens of a picture without an image encoder: patches of its latent, at most 16 x 16.

    Args:
        latent: [B, C, h, w].

    Returns:
        [B, patches, C * cells of a patch], row by row; patches over the edge are filled with 0.
    """
    height, width = latent.shape[-2:]
    side = math.ceil(max(height, width) / GRID)
    padded = torch.nn.functional.pad(latent, (0, -width % side, 0, -height % side))
    return torch.nn.functional.unfold(padded, side, stride=side).transpose(1, 2)
