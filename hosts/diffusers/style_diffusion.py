"""StyleDiffusion headless, on a diffusers UNet."""

from dataclasses import replace

import torch
from torch import Tensor

from ...pipelines.attention.cross_maps import CrossMaps
from ...pipelines.attention.hooks import NO_HOOKS, Hooks
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.image_tokens import fit_width, latent_tokens
from ...pipelines.inversion.style_diffusion import Fitted, Fitting, Source, carried_by, fit
from ...pipelines.trajectory import Trajectory
from .prompt import Prompt
from .unet import DiffusersUNet


def invert_style_diffusion(
    unet: DiffusersUNet,
    x0: Tensor,
    prompt: Prompt,
    negative: Prompt,
    sigmas: Tensor,
    fitting: Fitting,
    *,
    tokens: Tensor | None = None,
    value_window: float = 0.5,
    rows: RowCount | None = None,
) -> tuple[Trajectory, Fitted]:
    """Invert a latent and learn how its values are mapped.

    Args:
        unet: The model.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        prompt: Describes the picture.
        negative: The other end of the guidance.
        sigmas: [N+1] rising noise levels.
        fitting: How to learn.
        tokens: [B, E, width] of the picture from an image encoder, all of them; those of the
            latent if not given.
        value_window: Part of an edit's steps, the noisiest first, in which the target's values are
            mapped.
        rows: Counts the rows spent.
    """
    spent = RowCount()
    width = prompt.embedding.shape[-1]
    shown = fit_width(latent_tokens(x0) if tokens is None else tokens, width)
    fitted = fit(source_of(unet, prompt, negative, x0, fitting, spent), shown, x0, sigmas, fitting)
    if rows is not None:
        rows.add(spent.rows)
    recipe, values = carried_by(fitted, fitting, value_window, spent.rows)
    made = Trajectory(fitted.latents, sigmas, x0, recipe, image=x0, carried=(values,))
    return made, fitted


def source_of(
    unet: DiffusersUNet,
    prompt: Prompt,
    negative: Prompt,
    x0: Tensor,
    fitting: Fitting,
    rows: RowCount,
) -> Source:
    """What the pipeline asks of the model; see `invert_style_diffusion`."""
    maps = None
    if fitting.map_weight:
        maps = CrossMaps(x0.shape[-2:].numel())
    hooks = Hooks(maps.record) if maps else NO_HOOKS

    def mapped(x: Tensor, sigma: Tensor, values: Tensor) -> Tensor:
        above = replace(prompt, values=values)
        learns = torch.is_grad_enabled()
        return unet.denoiser(above, hooks=hooks, rows=rows, gradients=learns)(x, sigma)

    return Source(
        plain=unet.denoiser(prompt, hooks=hooks, rows=rows),
        uncond=unet.denoiser(negative, rows=rows),
        mapped=mapped,
        context=tuple(prompt.embedding.shape[1:]),
        maps=maps,
    )
