"""The config.json of a diffusers UNet2DConditionModel in the words of ComfyUI's UNetModel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ....pipelines.errors import PalimpsestError, quoted
from .config import (
    check_levels,
    each_level,
    either,
    flag,
    listed,
    read_config,
    require,
    whole,
    words,
    wrong_field,
)
from .widths import multipliers

#: What ComfyUI's UNetModel computes, whatever a config says.
FIXED = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": False,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}

#: The middle with attention; that of null is none.
MIDDLE = "UNetMidBlock2DCrossAttn"

WIDTH = whole(32, 16384, step=32)  # the groups of its norms
DEPTH = whole(1, 64)
CHANNELS = whole(1, 1024, 4)

#: What is read of config.json, with diffusers' defaults for what it leaves out.
FIELDS = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": listed(WIDTH, [320, 640, 1280, 1280]),
    "layers_per_block": each_level(whole(1, 32), 2),
    "down_block_types": listed(words(), ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]),
    "up_block_types": listed(words(), ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3),
    "mid_block_type": replace(words(), absent=MIDDLE),
    "transformer_layers_per_block": each_level(either(DEPTH, listed(DEPTH, most=64)), 1),
    "reverse_transformer_layers_per_block": each_level(either(DEPTH, listed(DEPTH, most=64))),
    "attention_head_dim": each_level(whole(1, 1024), 8),
    "cross_attention_dim": each_level(whole(1, 65536), 1280),
    "use_linear_projection": flag(),
    "upcast_attention": flag(),
    "addition_time_embed_dim": whole(2, 4096, 256, step=2),
    "projection_class_embeddings_input_dim": whole(1, 65536),
}

#: Lists of these have one entry for each level.
LEVELLED = (
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
)

#: Transformer blocks of the largest network that is built; SDXL has 70.
MOST_BLOCKS = 1000

#: Block types that ComfyUI's UNetModel has; True for those with attention.
DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}

#: ComfyUI's "depth" of a middle without attention: no block at all, one residual block.
BARE_MIDDLES = {None: -2, "UNetMidBlock2D": -1}

#: SDXL tells the UNet six numbers: original size, crop corner and target size.
TIME_IDS = 6

Depths = int | Sequence[int]


@dataclass(frozen=True)
class UNetShape:
    """A UNet2DConditionModel in ComfyUI's words.

    Attributes:
        unet_config: Arguments of ComfyUI's UNetModel.
        heads: Attention heads of every level, the finest first.
        uniform: Whether `unet_config` can already say them.
        time_id_width: Channels of each embedded size of an SDXL UNet, 0 for others.
    """

    unet_config: dict[str, Any]
    heads: tuple[int, ...]
    uniform: bool
    time_id_width: int

    @property
    def pooled_width(self) -> int:
        """Channels of the pooled text embedding an SDXL UNet takes, 0 for others."""
        return (self.unet_config["adm_in_channels"] or 0) - TIME_IDS * self.time_id_width


def read_shape(folder: Path) -> UNetShape:
    """Read the shape of a pipeline folder's UNet.

    Raises:
        PalimpsestError: If it has a variation that ComfyUI's UNetModel has not.
    """
    config = _read_config(folder / "unet" / "config.json")
    widths = config["block_out_channels"]
    layers = _every_level(config, "layers_per_block", widths)
    if len(set(layers)) > 1:
        # Core's map of names between the two, which LoRA files go through, counts on it.
        raise _refusal("layers_per_block", layers, "one number")
    context = _every_level(config, "cross_attention_dim", widths)
    if len(set(context)) > 1:
        raise _refusal("cross_attention_dim", context, "one number")
    heads = _every_level(config, "attention_head_dim", widths)
    heads_config = _heads_config(heads, widths)
    text_time = config.get("addition_embed_type") == "text_time"
    linear = config["use_linear_projection"]
    # Core computes the attention of every SD 2.x in float32: fp16 overflows in some of them.
    careful = config["upcast_attention"] or (linear and not text_time)
    unet_config = {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": multipliers(widths),
        "num_res_blocks": layers,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": linear,
        "context_dim": context[0],
        "adm_in_channels": config["projection_class_embeddings_input_dim"] if text_time else None,
        "num_classes": "sequential" if text_time else None,
        "use_temporal_attention": False,
        "legacy": False,
        "use_checkpoint": False,
        "attn_precision": torch.float32 if careful else None,
        **_transformer_depths(config, layers[0]),
        **(heads_config or {"num_heads": 1, "num_head_channels": -1}),
    }
    return UNetShape(
        unet_config=unet_config,
        heads=tuple(heads),
        uniform=heads_config is not None,
        time_id_width=config["addition_time_embed_dim"] if text_time else 0,
    )


def _read_config(path: Path) -> dict[str, Any]:
    """A config whose fields fit each other."""
    config = read_config(path, FIELDS)
    require("unet", config, FIXED)
    widths = config["block_out_channels"]
    check_levels(path, config, LEVELLED, len(widths))
    heads = config["attention_head_dim"]
    for width, number in zip(
        widths, _every_level(config, "attention_head_dim", widths), strict=True
    ):
        if width % number:
            said = f"numbers of heads that divide the widths {widths}"
            raise wrong_field(path, "attention_head_dim", heads, said)
    key = "projection_class_embeddings_input_dim"
    if config.get("addition_embed_type") and config[key] is None:
        raise wrong_field(path, key, None, FIELDS[key].said)
    return config


def _every_level(config: Mapping[str, Any], key: str, widths: Sequence[int]) -> list[int]:
    value = config[key]
    return list(value) if isinstance(value, list) else [value] * len(widths)


def _heads_config(heads: Sequence[int], widths: Sequence[int]) -> dict[str, int] | None:
    """One number of heads, or one width of a head, for all levels; None where neither is there.

    `attention_head_dim` is the number of heads: diffusers keeps the name for old configs.
    """
    if len(set(heads)) == 1:
        return {"num_heads": heads[0], "num_head_channels": -1}
    head_widths = {width / number for width, number in zip(widths, heads, strict=True)}
    if len(head_widths) == 1 and (only := head_widths.pop()).is_integer():
        return {"num_heads": -1, "num_head_channels": int(only)}
    return None


def _transformer_depths(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """How many transformer blocks follow each residual block."""
    levels = len(config["block_out_channels"])
    depth = config["transformer_layers_per_block"]
    down: list[Depths] = depth if isinstance(depth, list) else [depth] * levels
    back = config["reverse_transformer_layers_per_block"] or down[::-1]
    up: list[Depths] = back if isinstance(back, list) else [back] * levels
    entering = _depths(config, "down_block_types", DOWN_BLOCKS, down, layers)
    leaving = _depths(config, "up_block_types", UP_BLOCKS, up, layers + 1)
    kind, innermost = config["mid_block_type"], down[-1]
    if kind in BARE_MIDDLES:
        middle = BARE_MIDDLES[kind]
    elif kind == MIDDLE:
        middle = innermost if isinstance(innermost, int) else innermost[0]
    else:
        raise _refusal("mid_block_type", kind, MIDDLE)
    if sum(entering) + sum(leaving) + middle > MOST_BLOCKS:
        raise _refusal("transformer_layers_per_block", depth, f"{MOST_BLOCKS} blocks in all")
    return {
        "transformer_depth": entering,
        "transformer_depth_middle": middle,
        # ComfyUI takes them from the end of the list as it climbs.
        "transformer_depth_output": leaving[::-1],
    }


def _depths(
    config: Mapping[str, Any],
    key: str,
    known: Mapping[str, bool],
    depths: Sequence[Depths],
    layers: int,
) -> list[int]:
    types = config[key]
    if not set(types) <= set(known):
        raise _refusal(key, types, " or ".join(known))
    every = []
    for block, depth in zip(types, depths, strict=True):
        here = [depth] * layers if isinstance(depth, int) else list(depth)
        if len(here) != layers:
            raise _refusal("transformer_layers_per_block", depths, f"{layers} a level of {key}")
        every += here if known[block] else [0] * layers
    return every


def _refusal(key: str, value: object, allowed: str) -> PalimpsestError:
    return PalimpsestError(
        f"The unet of this folder has {key} = {quoted(value)}, ComfyUI's own has {allowed} only: "
        "choose a model without this variation."
    )
