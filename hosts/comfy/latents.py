"""LATENTs as core's samplers take them, and the pictures that are in them."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pipelines.errors import PalimpsestError, quoted

#: The last picture of a batch whose noise is drawn by its number: that of all before it is drawn.
LAST_PICTURE = 65_535


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


def batch_index_of(latent: dict[str, Any]) -> tuple[int, ...] | None:
    """Numbers of a LATENT's pictures in the batch that they were taken from; None without any.

    Core's samplers draw the noise of every picture by its number: Latent From Batch and its like
    write them down, so that one picture is painted as it was in its batch.

    Raises:
        PalimpsestError: If they are not one number for each picture.
    """
    found = latent.get("batch_index")
    if found is None:
        return None
    numbers = tuple(found) if isinstance(found, list | tuple) else (found,)
    fits = all(type(n) is int and 0 <= n <= LAST_PICTURE for n in numbers)
    pictures = len(latent["samples"])
    if not fits or len(numbers) != pictures:
        raise PalimpsestError(
            f"The latent's batch_index is {quoted(found)}, it must be a number from 0 to "
            f"{LAST_PICTURE} for each of its {pictures} pictures: take it from Latent From Batch, "
            "or encode the pictures again."
        )
    return numbers


def with_samples(latent: dict[str, Any] | None, samples: Tensor) -> dict[str, Any]:
    """A LATENT with other samples, all else as core's samplers leave it.

    Args:
        latent: What was edited; None where that was no LATENT.
        samples: What it has become.
    """
    sizes = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # of an empty latent
    kept = {key: value for key, value in (latent or {}).items() if key not in sizes}
    return {**kept, "samples": samples}


def decode_pictures(vae: comfy.sd.VAE, samples: Tensor) -> Tensor:
    """[N, H, W, 3] what a VAE decodes: the frames of videos one after the other, as VAE Decode."""
    pictures = vae.decode(samples)
    return pictures.reshape(-1, *pictures.shape[-3:])
