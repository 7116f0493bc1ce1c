"""StyleDiffusion on ComfyUI's MODEL, CONDITIONING, LATENT and CLIP_VISION."""

from __future__ import annotations

from dataclasses import replace

import comfy.clip_vision
import torch
from torch import Tensor

from ....pipelines.attention.cross_maps import CrossMaps
from ....pipelines.attention.hooks import NO_HOOKS, Hooks
from ....pipelines.errors import PalimpsestError
from ....pipelines.inversion.image_tokens import fit_width, latent_tokens
from ....pipelines.inversion.method import Inverted
from ....pipelines.inversion.style_diffusion import Fitted, Fitting, Source, carried_by, fit
from ....pipelines.trajectory import Trajectory
from ..cost import Spent
from ..learning.gradients import gradients, trainable
from ..learning.training import check_learned
from ..refusals import require_variance_preserving
from ..session import Session
from ..value_patch import with_values
from .picture import Picture


def invert_style_diffusion(
    picture: Picture,
    fitting: Fitting,
    *,
    tokens: Tensor | None = None,
    value_window: float = 0.5,
) -> tuple[Trajectory, Fitted, Spent]:
    """Invert a picture and learn how its values are mapped.

    Args:
        picture: The picture; its prompts are those of the source and of the edit's other end.
        fitting: How to learn.
        tokens: [B, E, width] from an image encoder (`encoded_tokens`); those of the latent if not
            given.
        value_window: Part of an edit's steps, the noisiest first, in which the target's values are
            mapped.

    Raises:
        PalimpsestError: In one sentence.
    """
    feature = picture.feature
    require_variance_preserving(picture.model, feature)
    learner = replace(picture, model=trainable(picture.model, feature))
    check_learned(picture.positive, "positive", feature)
    check_learned(picture.negative, "negative", feature)
    _check_count(tokens, len(picture.samples))

    def algorithm(session: Session) -> Fitted:
        with gradients(session, feature) as learning:
            source = source_of(learning, fitting)
            shown = latent_tokens(learning.x0) if tokens is None else tokens.to(learning.x0)
            # A clone is an ordinary tensor: autograd keeps none of inference mode.
            shown = fit_width(shown.clone(), source.context[1])
            return fit(
                source, shown, learning.x0, picture.sigmas, fitting, on_step=learning.on_step
            )

    total = len(picture.sigmas) - 1 + fitting.rounds
    fitted, spent = learner.run(algorithm, total=total)
    recipe, values = carried_by(fitted, fitting, value_window, spent.rows)
    image = picture.model.model.process_latent_in(picture.samples).to(fitted.latents)
    recorded = Inverted(fitted.latents, recipe, image=image, carried=(values,))
    return picture.trajectory(recorded, spent), fitted, spent


def source_of(session: Session, fitting: Fitting) -> Source:
    """What the pipeline asks of the model."""
    conds = session.target
    (entry,) = conds["positive"]
    maps = _maps(session) if fitting.map_weight else None
    hooks = Hooks(maps.record) if maps else NO_HOOKS

    def mapped(x: Tensor, sigma: Tensor, values: Tensor) -> Tensor:
        return with_values(session, lambda _: values).recorder(conds, hooks)(x, sigma)

    return Source(
        plain=session.recorder(conds, hooks),
        uncond=session.recorder(conds, roles=("uncond",)),
        mapped=mapped,
        context=tuple(entry["model_conds"]["c_crossattn"].cond.shape[1:]),
        maps=maps,
    )


def _maps(session: Session) -> CrossMaps:
    """A recorder of the cross-attention maps of this session's network."""
    return CrossMaps(session.x0.shape[-2:].numel())


def encoded_tokens(encoder: comfy.clip_vision.ClipVisionModel, image: Tensor) -> Tensor:
    """[B, E, width] every token of an image encoder, after its last norm.

    Args:
        encoder: CLIP_VISION.
        image: [B, H, W, 3] in 0..1; the encoder takes the middle square of it.

    Raises:
        PalimpsestError: If it is an encoder without such tokens.
    """
    tokens = encoder.encode_image(image, crop=True)["last_hidden_state"]
    vision = getattr(encoder.model, "vision_model", None)
    if tokens.ndim != 3:
        raise PalimpsestError(
            f"The clip_vision gives {tuple(tokens.shape)}, the learning needs tokens of the "
            "picture: load a CLIP, SigLIP or DINOv2 image encoder."
        )
    if vision is None or getattr(vision, "output_layernorm", True):
        return tokens.float()
    # The published encoder norms every token; core norms the class token alone.
    norm = vision.post_layernorm
    weight, bias = (p.to(tokens.device, torch.float32) for p in (norm.weight, norm.bias))
    return torch.nn.functional.layer_norm(
        tokens.float(), tokens.shape[-1:], weight, bias, eps=norm.eps
    )


def _check_count(tokens: Tensor | None, pictures: int) -> None:
    """Refuse images that are not those of the latent."""
    if tokens is not None and len(tokens) != pictures:
        raise PalimpsestError(
            f"The image holds {len(tokens)} pictures, the latent {pictures}: connect the picture "
            "that VAE Encode was given."
        )
