"""A diffusers transformer folder of Flux's or SD 3's kind as a ComfyUI MODEL: its own networks.

As `unet` does for UNets, only descriptions are made here: the network's shape, how it is sampled
and the latent format. Core guesses a shape from its weights, and takes every head for 128 wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.latent_formats
import comfy.model_base
import comfy.model_detection
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from torch import Tensor, nn

from ....pipelines.errors import PalimpsestError
from .config import flag, listed, number, read_config, require, whole, words, wrong_field
from .patcher import as_model
from .vae import latent_format
from .weights import read_weights

#: What is read of the config.json of a FluxTransformer2DModel.
FLUX = {
    "_class_name": words(),
    "in_channels": whole(4, 2**12, 64, step=4),
    "num_layers": whole(1, 256, 19),
    "num_single_layers": whole(1, 256, 38),
    "attention_head_dim": whole(2, 1024, 128, step=2),
    "num_attention_heads": whole(1, 256, 24),
    "joint_attention_dim": whole(1, 2**16, 4096),
    "pooled_projection_dim": whole(1, 2**16, 768),
    "guidance_embeds": flag(),
    "axes_dims_rope": listed(whole(2, 1024, step=2), [16, 56, 56], least=3, most=3),
}

#: The same of an SD3Transformer2DModel.
SD3 = {
    "_class_name": words(),
    "in_channels": whole(1, 2**12, 16),
    "patch_size": whole(1, 16, 2),
    "num_layers": whole(1, 256, 18),
    "attention_head_dim": whole(64, 64, 64),
    "num_attention_heads": whole(1, 256, 18),
    "joint_attention_dim": whole(1, 2**16, 4096),
    "pooled_projection_dim": whole(1, 2**16, 2048),
    "pos_embed_max_size": whole(1, 2**12, 96),
    "qk_norm": words(),
}

#: What is read of the scheduler of either.
SCHEDULER = {
    "_class_name": words("scheduler"),
    "shift": number(1e-3, 1e3, 1.0),
    "use_dynamic_shifting": flag(),
}


#: Core's network of each of its classes.
NETWORKS = {
    comfy.model_base.Flux: Flux,
    comfy.model_base.SD3: OpenAISignatureMMDITWrapper,
}


class Widths(NamedTuple):
    """What a transformer takes.

    Attributes:
        context: Numbers of a token of text.
        pooled: Numbers of a whole text.
        channels: Of a latent.
    """

    context: int
    pooled: int
    channels: int


def read_widths(folder: Path) -> Widths:
    """What the transformer of a pipeline folder takes."""
    config = read_config(folder / "transformer" / "config.json", FLUX)
    return Widths(
        config["joint_attention_dim"], config["pooled_projection_dim"], config["in_channels"] // 4
    )


def load_transformer(
    folder: Path, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Load the transformer of a pipeline folder as ComfyUI's loaders would.

    Args:
        folder: The pipeline folder.
        disable_dynamic: What ComfyUI asks for when it needs a copy without dynamic VRAM.

    Raises:
        PalimpsestError: If ComfyUI has no network for it, or its weights do not fit.
    """
    return _loaded(
        folder / "transformer",
        latent_format(folder, xl=False),
        read_shift(folder),
        (load_transformer, (folder,)),
        disable_dynamic,
    )


def load_bare_transformer(part: Path, disable_dynamic: bool = False) -> Any:
    """Load the folder of a transformer alone: its latents are in model scale, nothing is shifted.

    Raises:
        PalimpsestError: As `load_transformer`.
    """
    reload = (load_bare_transformer, (part,))
    return _loaded(part, PlainLatents(_shape(part)[1]), 1.0, reload, disable_dynamic)


def read_shift(folder: Path) -> float:
    """How far the times of a pipeline are shifted; one that depends on the picture is refused."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_config(path, SCHEDULER)
    require("scheduler", config, {"use_dynamic_shifting": False})
    return config["shift"]


def _loaded(
    part: Path,
    latents: comfy.latent_formats.LatentFormat,
    shift: float,
    reload: tuple,
    disable_dynamic: bool,
) -> comfy.model_patcher.ModelPatcher:
    unet_config, _, family = _shape(part)
    config = FolderTransformer(unet_config, latents, shift, family)
    weights = _read(part)
    return as_model(config, config.blank, weights, part.name, {}, reload, disable_dynamic)


def _read(part: Path) -> dict[str, Tensor]:
    """The weights of a transformer by the names of core's network; unknown ones by their own."""
    read = read_weights(part, "diffusion_pytorch_model")
    given = _count(read)
    try:
        # Core takes those that it knows out of `read`.
        weights = comfy.model_detection.convert_diffusers_mmdit(read)
    except (KeyError, IndexError, RuntimeError) as error:
        raise _foreign(part) from error
    # Core joins q, k and v, and leaves whatever memory held where one is missing.
    if not weights or _count(weights) + _count(read) != given:
        raise _foreign(part)
    return weights | read


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _foreign(part: Path) -> PalimpsestError:
    return PalimpsestError(
        f"The weights in {part} are not those of a transformer of Flux's or SD 3's kind, or some "
        "are missing or of another shape: download the folder again or choose another model."
    )


def _shape(part: Path) -> tuple[dict[str, Any], int, type]:
    """The arguments of core's network, its latent channels, and core's class of the model."""
    path = part / "config.json"
    name = read_config(path, {"_class_name": words()})["_class_name"]
    if name == "FluxTransformer2DModel":
        return _flux(path)
    if name == "SD3Transformer2DModel":
        return _sd3(path)
    raise wrong_field(path, "_class_name", name, "FluxTransformer2DModel or SD3Transformer2DModel")


def _flux(path: Path) -> tuple[dict[str, Any], int, type]:
    config = read_config(path, FLUX)
    require("transformer", config, {"patch_size": 1, "out_channels": None})
    axes, width = config["axes_dims_rope"], config["attention_head_dim"]
    if sum(axes) != width:
        said = f"three numbers whose sum is attention_head_dim {width}"
        raise wrong_field(path, "axes_dims_rope", axes, said)
    channels = config["in_channels"] // 4
    shape = {
        "image_model": "flux",
        "guidance_embed": config["guidance_embeds"],
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": 2,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["num_attention_heads"] * width,
        "mlp_ratio": 4.0,
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(axes),
        "theta": 10000,
        "qkv_bias": True,
        "txt_ids_dims": [],
    }
    return shape, channels, comfy.model_base.Flux


def _sd3(path: Path) -> tuple[dict[str, Any], int, type]:
    config = read_config(path, SD3)
    channels, depth, heads = (
        config[key] for key in ("in_channels", "num_layers", "num_attention_heads")
    )
    require("transformer", config, {"out_channels": channels, "dual_attention_layers": []})
    if depth != heads:
        # Core's network is 64 wide for each of its blocks.
        said = f"the number of its heads, {heads}"
        raise wrong_field(path, "num_layers", depth, said)
    side = config["pos_embed_max_size"]
    shape = {
        "in_channels": channels,
        "pos_embed_scaling_factor": None,
        "pos_embed_max_size": side,
        "num_patches": side * side,
        "input_size": None,
        "patch_size": config["patch_size"],
        "depth": depth,
        "num_blocks": depth,
        "adm_in_channels": config["pooled_projection_dim"],
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": config["joint_attention_dim"], "out_features": 64 * heads},
        },
    }
    if config["qk_norm"] == "rms_norm":
        shape["qk_norm"] = "rms"
    elif config["qk_norm"] is not None:
        raise wrong_field(path, "qk_norm", config["qk_norm"], "rms_norm, or absent")
    return shape, channels, comfy.model_base.SD3


class PlainLatents(comfy.latent_formats.LatentFormat):
    """Latents that a model takes as they are, in cells of 8 pixels."""

    def __init__(self, channels: int) -> None:
        self.latent_channels = channels


class FolderTransformer(comfy.supported_models.Flux):
    """What core calls a model config, read from a folder instead of guessed from weights."""

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        latents: comfy.latent_formats.LatentFormat,
        shift: float,
        family: type,
    ) -> None:
        super().__init__(dict(unet_config))
        self.latent_format = latents
        self.family = family
        # Flux's shift is an exponent, that of all other flows a factor.
        flux = family is comfy.model_base.Flux
        exponent = float(torch.tensor(shift).double().log())
        self.sampling_settings = {"shift": exponent if flux else shift}

    def blank(self) -> nn.Module:
        """Core's network alone."""
        made = NETWORKS[self.family]
        return made(**self.unet_config, operations=comfy.ops.disable_weight_init)

    def get_model(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str = "",
        device: torch.device | None = None,
    ) -> comfy.model_base.BaseModel:
        """Make the network, without weights."""
        return self.family(self, device=device)
