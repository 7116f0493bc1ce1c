"""LATENTs as core's samplers take them, and the pictures that are in them."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor


def samples_of(model: ModelPatcher, latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT in the shape that core's samplers give a model.

    An empty latent gets the model's channels and cells, and a picture for a model of videos the
    one frame that it is. What does not fit even so is left as it is: `check_samples` refuses it.

    Args:
        model: Who is going to sample it.
        latent: From the wire.

    Returns:
        [B, C, h, w], [B, C, frames, h, w] of models of videos, or [B, C, length] of models of
        sound.
    """
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )


def decode_pictures(vae: comfy.sd.VAE, samples: Tensor) -> Tensor:
    """[N, H, W, 3] what a VAE decodes: the frames of videos one after the other, as VAE Decode."""
    pictures = vae.decode(samples)
    return pictures.reshape(-1, *pictures.shape[-3:])
