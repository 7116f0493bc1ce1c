"""A diffusers VAE folder as ComfyUI's own VAE, and the latent format that goes with it.

On ComfyUI's wires a LATENT holds what the autoencoder gives; the model multiplies by its scale.
diffusers multiplies in the pipeline. So the `scaling_factor` of the VAE's config becomes the
scale of the *model's* latent format, and the VAE object itself knows nothing of it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.ldm.models.autoencoder
import comfy.sd
import comfy.taesd.taesd
import torch
from torch import Tensor

from .config import listed, number, read_config, require, whole, words, wrong_field
from .weights import load_weights, read_weights
from .widths import multipliers

WEIGHTS = "diffusion_pytorch_model"

#: What ComfyUI's AutoencoderKL computes, whatever a config says.
KL = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}

#: What ComfyUI's TAESD computes.
TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
}

#: What is read of the config.json of either.
FIELDS = {
    "_class_name": words("AutoencoderKL"),
    "block_out_channels": listed(whole(32, 8192, step=32), [64]),
    "latent_channels": whole(1, 1024, 4),
    "layers_per_block": whole(1, 32, 1),
    "scaling_factor": number(1e-6, 1e6),
    "shift_factor": number(-1e6, 1e6),
    "latents_mean": listed(number(-1e6, 1e6), most=1024),
    "latents_std": listed(number(1e-6, 1e6), most=1024),
}


def load_vae(folder: Path) -> comfy.sd.VAE:
    """Load the autoencoder of a pipeline folder.

    Raises:
        PalimpsestError: If ComfyUI has no module for it, or its weights do not fit.
    """
    config = read_vae_config(folder)
    vae = (_load_tiny if _is_tiny(config) else _load_kl)(folder, config)
    vae.latent_channels = config["latent_channels"]
    vae.downscale_ratio = vae.upscale_ratio = _downscale(config)
    vae.patcher.cached_patcher_init = (reload_vae, (folder,))
    return vae


def read_vae_config(folder: Path) -> dict[str, Any]:
    """Read the config of a pipeline folder's autoencoder.

    Raises:
        PalimpsestError: If one of its fields holds what it must not.
    """
    path = folder / "vae" / "config.json"
    config = read_config(path, FIELDS)
    for key in ("latents_mean", "latents_std"):
        if config[key] is not None and len(config[key]) != config["latent_channels"]:
            raise wrong_field(path, key, config[key], "a list of one number a latent channel")
    return config


def _is_tiny(config: Mapping[str, Any]) -> bool:
    return config["_class_name"] == "AutoencoderTiny"


def reload_vae(folder: Path, disable_dynamic: bool = False) -> Any:
    """Load only the patcher of the VAE again; what ComfyUI calls for a copy on another device."""
    return load_vae(folder).patcher


def latent_format(folder: Path, *, xl: bool) -> comfy.latent_formats.LatentFormat:
    """The latent format of a model that was trained on a folder's VAE.

    Args:
        folder: The pipeline folder.
        xl: Whether previews take the colours of SDXL's latents instead of SD 1.x's.
    """
    return FolderLatents(read_vae_config(folder), xl=xl)


class FolderLatents(comfy.latent_formats.LatentFormat):
    """Latents scaled as a VAE's config says."""

    def __init__(self, config: Mapping[str, Any], *, xl: bool) -> None:
        tiny, scale = _is_tiny(config), config["scaling_factor"]
        # The default is that of the classes: the first SD 1.x folders did not write it down.
        self.scale_factor = scale or (1.0 if tiny else 0.18215)
        self.latent_channels = config["latent_channels"]
        self.spacial_downscale_ratio = _downscale(config)
        self.mean = _per_channel(config["latents_mean"] or config["shift_factor"] or None)
        self.std = _per_channel(config["latents_std"])
        if not tiny and self.latent_channels == 4:
            known = comfy.latent_formats.SDXL() if xl else comfy.latent_formats.SD15()
            self.latent_rgb_factors = known.latent_rgb_factors
            self.latent_rgb_factors_bias = known.latent_rgb_factors_bias
            self.taesd_decoder_name = known.taesd_decoder_name

    def process_in(self, latent: Tensor) -> Tensor:
        """From a LATENT to the model's own numbers, [B, C, H, W]."""
        if self.mean is not None:
            latent = latent - self.mean.to(latent)
        scaled = latent * self.scale_factor
        return scaled if self.std is None else scaled / self.std.to(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        """From the model's own numbers to a LATENT, [B, C, H, W]."""
        scaled = latent if self.std is None else latent * self.std.to(latent)
        latent = scaled / self.scale_factor
        return latent if self.mean is None else latent + self.mean.to(latent)


def preview_colors(vae: comfy.sd.VAE, latents: FolderLatents) -> None:
    """Give a latent format the linear colours that core previews with, read off the decoder.

    Nobody publishes such colours for a small autoencoder, but it is quick to ask: plain latents of
    one channel each are decoded, and their mean colours differenced.

    Args:
        vae: The autoencoder.
        latents: The format of its latents; its preview colours are set.
    """
    channels, side = latents.latent_channels, 4
    probes = torch.cat([torch.zeros(1, channels), torch.eye(channels), -torch.eye(channels)])
    plain = probes[:, :, None, None].expand(-1, -1, side, side)
    means = vae.decode(latents.process_out(plain)).mean((1, 2)) * 2 - 1  # previews are in -1..1
    above, below = means[1:].chunk(2)
    latents.latent_rgb_factors = ((above - below) / 2).tolist()
    latents.latent_rgb_factors_bias = means[0].tolist()


def _per_channel(values: float | list[float] | None) -> Tensor | None:
    return (
        None if values is None else torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
    )


def _downscale(config: Mapping[str, Any]) -> int:
    """Pixels per latent cell along one side: every level but the last halves the picture."""
    tiny = TINY["encoder_block_out_channels"]
    widths = tiny if _is_tiny(config) else config["block_out_channels"]
    return 2 ** (len(widths) - 1)


def _load_kl(folder: Path, config: Mapping[str, Any]) -> comfy.sd.VAE:
    widths = config["block_out_channels"]
    levels = len(widths)
    require("vae", config, KL)
    require(
        "vae",
        config,
        {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
    )
    channels = config["latent_channels"]
    params = {
        "embed_dim": channels,
        "ddconfig": {
            "double_z": True,
            "z_channels": channels,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": widths[0],
            "ch_mult": multipliers(widths),
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
    }
    weights = kl_weights(read_weights(folder / "vae", WEIGHTS), levels)
    with torch.device("meta"):
        rehearsal = comfy.ldm.models.autoencoder.AutoencoderKL(**params)
    # comfy.sd.VAE only logs what does not fit.
    load_weights(rehearsal, weights, part="vae", assign=True)
    return comfy.sd.VAE(sd=weights, config={"params": params})


def kl_weights(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename the weights of diffusers' AutoencoderKL to those of ComfyUI's.

    ComfyUI's own renaming knows four levels of two layers; this one knows any number.

    Args:
        weights: By diffusers' names.
        levels: Number of resolutions.
    """

    def up(level: str) -> str:
        return f"up.{levels - 1 - int(level)}"

    rules = (
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (
            r"up_blocks\.(\d+)\.resnets\.(\d+)",
            lambda m: f"{up(m[1])}.block.{m[2]}",
        ),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"{up(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.(?:to_out\.0|proj_attn)", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.(?:to_)?([qkv])(?:uery|ey|alue)?\.", r"mid.attn_1.\1."),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )
    renamed = {}
    for key, weight in weights.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        linear = ".mid.attn_1." in key and weight.ndim == 2
        renamed[key] = weight[:, :, None, None] if linear else weight
    return renamed


def _load_tiny(folder: Path, config: Mapping[str, Any]) -> comfy.sd.VAE:
    require("vae", config, TINY)
    weights = tiny_weights(read_weights(folder / "vae", WEIGHTS))
    with torch.device("meta"):
        rehearsal = comfy.taesd.taesd.TAESD(latent_channels=config["latent_channels"])
    load_weights(rehearsal, weights, part="vae", assign=True)
    return comfy.sd.VAE(sd=weights)


def tiny_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of diffusers' AutoencoderTiny to those of ComfyUI's TAESD.

    Both put pictures of [-1, 1] into the same layers; ComfyUI's decoder counts its input clamp as
    a layer. Its own scale and shift are 1 and 0: the model's latent format scales.
    """
    renamed = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    for key, weight in weights.items():
        key = re.sub(r"^encoder\.layers\.", "taesd_encoder.", key)
        key = re.sub(r"^decoder\.layers\.(\d+)", lambda m: f"taesd_decoder.{int(m[1]) + 1}", key)
        renamed[key] = weight
    return renamed
