"""Uni-Edit: a guidance that pushes hardest where two prompts disagree most.

Of what target and source make of one latent,

    G  = denoise_tgt(x) - denoise_src(x)
    mu = mean of |G| over the channels of a token, from 0 to 1 over the tokens of each picture
    D  = denoise_src(x) + (mu + omega (1 + mu)) G

Where the two agree the source is followed, elsewhere the target with a weight of omega to
1 + 2 omega. It is a denoiser like any other, made of two. The published difference is one of
velocities, G / t: the division does not change mu.

References:
    Jiao et al. 2025, UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models,
        arXiv:2504.13109 (Uni-Edit)
"""

from torch import Tensor
from torch.nn.functional import avg_pool2d

from .denoiser import Denoiser


def disagreement(target: Tensor, source: Tensor, patch: int = 1) -> Tensor:
    """mu: where two guesses differ; 0 all over where they do nowhere.

    Args:
        target: [B, C, ..., h, w].
        source: Of that shape.
        patch: Side of the cells that are one token of the model.

    Returns:
        [B, 1, ..., h, w] in 0..1.
    """
    apart = _of_tokens((target - source).abs().mean(1, keepdim=True), patch)
    every = tuple(range(1, apart.ndim))
    low, high = apart.amin(every, keepdim=True), apart.amax(every, keepdim=True)
    span = high - low
    return (apart - low) / span.where(span > 0, 1.0)


def _of_tokens(cells: Tensor, patch: int) -> Tensor:
    """The mean of every token's cells, in each of them; tokens at the edge may have fewer."""
    if patch == 1:
        return cells
    height, width = cells.shape[-2:]
    means = avg_pool2d(cells.flatten(0, -3)[:, None], patch, ceil_mode=True)[:, 0]
    wide = means.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    return wide[:, :height, :width].reshape(cells.shape)


def uni_edit(target: Denoiser, source: Denoiser, *, omega: float = 5.0, patch: int = 1) -> Denoiser:
    """The guided denoiser.

    Args:
        target: Of the target prompt.
        source: Of the source prompt; asked at the same points.
        omega: How strongly it pushes everywhere; 5 is published.
        patch: Side of the cells that are one token: 2 of Flux, whose published code compares them.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        wanted, known = target(x, sigma), source(x, sigma)
        mu = disagreement(wanted, known, patch)
        return known + (mu + omega * (1 + mu)) * (wanted - known)

    return denoise
