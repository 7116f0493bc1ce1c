"""What the ComfyUI host refuses, in one sentence each."""

from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pipelines.errors import PalimpsestError
from ...pipelines.trajectory import Trajectory
from .coordinates import coordinates_of
from .fingerprint import fingerprint, prediction, same_model, same_prediction
from .guidance import Conditioning


def check_samples(model: ModelPatcher, samples: Tensor) -> None:
    """Refuse a LATENT that the model cannot take.

    Raises:
        PalimpsestError: In one sentence.
    """
    if samples.is_nested:
        raise PalimpsestError(
            "The latent is one of pictures and sound together, of which an edit takes one: "
            "separate them, edit the pictures, and put them together again."
        )
    known = model.get_model_object("latent_format")
    if samples.ndim != known.latent_dimensions + 2 or samples.shape[1] != known.latent_channels:
        raise PalimpsestError(
            f"The latent is {tuple(samples.shape)}, this model takes {_wanted_shape(known)}: "
            "encode the picture with this model's own VAE."
        )
    if not samples.numel():
        raise PalimpsestError(
            f"The latent is {tuple(samples.shape)}, which is no picture at all: connect one of at "
            "least one picture."
        )
    if not bool(torch.isfinite(samples).all()):
        raise PalimpsestError(
            "The latent holds NaN: the VAE overflowed or an earlier node failed; "
            "encode the picture again, with the VAE in float32 or bfloat16."
        )


def _wanted_shape(known: LatentFormat) -> str:
    """The shape of a model's latents, in words."""
    cell, dimensions = known.spacial_downscale_ratio, known.latent_dimensions
    part = f"/{cell}" if cell > 1 else ""
    sides = ["length"] if dimensions == 1 else [f"height{part}", f"width{part}"]
    frames = ["frames"] if dimensions == 3 else []
    return f"[{', '.join(['batch', str(known.latent_channels), *frames, *sides])}]"


def check_has_picture(samples: Tensor, feature: str) -> None:
    """Refuse a LATENT without height and width, such as one of sound.

    Args:
        samples: [B, C, ...].
        feature: What needs them, for messages.

    Raises:
        PalimpsestError: Naming the feature.
    """
    if samples.ndim not in (4, 5):
        raise PalimpsestError(
            f"{feature} needs a picture, the latent is {tuple(samples.shape)}, which has no height "
            "and width: connect the latent of a picture or a video."
        )


def refuse_noise_mask(latent: dict[str, Any], instead: str) -> None:
    """Refuse a LATENT with a mask where it would be dropped in silence."""
    if "noise_mask" in latent:
        raise PalimpsestError(
            "The latent carries a noise mask, but this node is about the whole picture: "
            f"remove Set Latent Noise Mask and give the mask to {instead}."
        )


def check_trajectory(model: ModelPatcher, trajectory: Trajectory) -> None:
    """Refuse a trajectory of another model.

    Raises:
        PalimpsestError: In one sentence.
    """
    check_samples(model, trajectory.origin)
    made = trajectory.recipe.model
    if made and not same_model(made, fingerprint(model)):
        raise PalimpsestError(
            "The trajectory was made with another model than the one connected: connect the model "
            "that inverted the picture, or invert again with this one."
        )
    flow = trajectory.recipe.noise_scale
    if flow is not None and coordinates_of(model, "A trajectory").noise_scale != flow:
        raise PalimpsestError(
            "The trajectory was made with a flow model (or one of another noise scale), the model "
            "connected is none: connect the model that inverted the picture."
        )
    if made and not same_prediction(made, fingerprint(model)):
        raise PalimpsestError(
            "The trajectory was made when the model was said to predict something else than "
            f"{prediction(model)}: connect the same ModelSampling node to both, or invert again."
        )


def check_one_entry(conditioning: Conditioning, role: str) -> None:
    """Refuse several prompts where a control reads the attention of one."""
    if len(conditioning) != 1:
        raise PalimpsestError(
            f"The {role} conditioning has {len(conditioning)} entries, a control takes one: "
            "combine or area nodes cannot be used with it."
        )


def check_owner(own: Tensor, conditioning: Conditioning, role: str) -> None:
    """Refuse a conditioning that the control's words do not belong to."""
    check_one_entry(conditioning, role)
    given = conditioning[0][0]
    if given.shape != own.shape or not torch.equal(given.cpu(), own.cpu()):
        raise PalimpsestError(
            f"The {role} conditioning is not the one this control was made for: connect that "
            "output of the same Prompt-to-Prompt node (ControlNet may stand between), or a "
            "conditioning of the same text."
        )


def require_variance_preserving(model: ModelPatcher, feature: str) -> None:
    """Refuse models that are not eps- or v-prediction models.

    Raises:
        PalimpsestError: Naming the model and the feature.
    """
    sampling = model.get_model_object("model_sampling")
    known = isinstance(sampling, comfy.model_sampling.EPS) and sampling.sigma_data == 1.0
    if not known or isinstance(sampling, comfy.model_sampling.X0):
        raise PalimpsestError(
            f"{feature} takes models that predict noise or v (SD 1.x, SD 2.x, SDXL), this "
            f"{type(model.model).__name__} model predicts something else: load such a checkpoint."
        )
