"""Null-text inversion without ComfyUI."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.null_text import Fitted, NullText, Variant, carried_by, fit
from ...pipelines.trajectory import Trajectory
from .prompt import Prompt
from .unet import DiffusersUNet


def invert_null_text(
    unet: DiffusersUNet,
    x0: Tensor,
    prompt: Prompt,
    negative: Prompt,
    sigmas: Tensor,
    settings: NullText,
    *,
    variant: Variant = "null-text",
    rows: RowCount | None = None,
) -> tuple[Trajectory, Fitted]:
    """Invert a latent and fit the unconditional embeddings that lead back to it.

    Args:
        unet: The model.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        prompt: Describes the picture.
        negative: Where the embeddings begin; the empty prompt is usual.
        sigmas: [N+1] rising noise levels.
        settings: How to fit.
        variant: What the edit does with them.
        rows: Counts the rows spent; inner steps have a backward pass, which is not counted.
    """
    spent, start = RowCount(), negative.embedding
    chain = unet.invert(x0, prompt, sigmas, rows=spent)

    def unconditional(x: Tensor, sigma: Tensor, u: Tensor, pictures: Sequence[int]) -> Tensor:
        below = replace(_of(negative, pictures, len(x0)), embedding=u.to(start.dtype))
        learns = torch.is_grad_enabled()
        return unet.denoiser(below, rows=spent, gradients=learns)(x, sigma)

    with _recomputed(unet.unet):
        conditional = unet.denoiser(prompt, rows=spent)
        fitted = fit(conditional, unconditional, chain.latents, sigmas, start, settings)
    if rows is not None:
        rows.add(spent.rows)
    recipe = replace(chain.recipe, rows=spent.rows)
    return carried_by(replace(chain, recipe=recipe), fitted, settings, variant), fitted


def _of(prompt: Prompt, pictures: Sequence[int], among: int) -> Prompt:
    """A prompt for some of the pictures: its other inputs may be one for each."""
    some = {
        key: tensor[list(pictures)] if len(tensor) == among > 1 else tensor
        for key, tensor in prompt.added.items()
    }
    return replace(prompt, added=some)


@contextmanager
def _recomputed(unet: nn.Module) -> Iterator[None]:
    """Compute each block again in the backward pass instead of keeping what is in it."""
    before = unet.is_gradient_checkpointing
    if not before:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            unet.disable_gradient_checkpointing()
