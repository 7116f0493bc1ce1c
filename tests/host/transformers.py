"""Tiny random transformers of every family with a joint attention, and its explicit maps."""

from dataclasses import dataclass
from typing import Any

import comfy.supported_models
import torch
from comfy.ldm.flux.math import apply_rope1, rope
from comfy.ldm.lumina.model import NextDiT
from comfy.patcher_extension import WrappersMP
from palimpsest.tests.host import flow, shapes
from palimpsest.tests.unit.maps import attention_maps, look

CHROMA = {
    "image_model": "chroma",
    "in_channels": 4 * flow.CHANNELS,
    "out_channels": 4 * flow.CHANNELS,
    "patch_size": 2,
    "context_in_dim": flow.WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 1,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}
HIDREAM = {
    "image_model": "hidream",
    "patch_size": 2,
    "in_channels": flow.CHANNELS,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": [flow.WIDTH, flow.WIDTH],
    "text_emb_dim": flow.POOLED,
    "axes_dims_rope": (8, 12, 12),
    "llama_layers": [0, 1, 2, 3],
}
LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": flow.CHANNELS,
    "dim": 64,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "multiple_of": 32,
    "ffn_dim_multiplier": 2.0,
    "qk_norm": True,
    "cap_feat_dim": flow.WIDTH,
    "axes_dims": (8, 12, 12),
    "axes_lens": (64, 64, 64),
}
LLAMA = 5  # tokens of HiDream's second encoder


def deeper(config, **more):
    return config | {"depth": 2, "depth_single_blocks": 2} | more


def make_flux():
    return flow.make(comfy.supported_models.Flux, deeper(flow.FLUX), {"shift": 1.15})


def make_flux2():
    return flow.make(comfy.supported_models.Flux2, deeper(shapes.FLUX2), {"shift": 2.02})


def make_chroma():
    return flow.make(comfy.supported_models.Chroma, CHROMA, {"shift": 1.0})


def make_qwen_image():
    config = shapes.QWEN_IMAGE | {"num_layers": 4}
    return flow.make(comfy.supported_models.QwenImage, config, {"shift": 1.15})


def make_sd3():
    config = flow.SD3 | {"num_blocks": 3, "x_block_self_attn_layers": [1]}
    return flow.make(comfy.supported_models.SD3, config, {"shift": 3.0})


def make_hidream():
    return flow.make(comfy.supported_models.HiDream, HIDREAM, {"shift": 3.0})


def make_lumina():
    config = LUMINA | {"n_kv_heads": 1}
    return flow.make(comfy.supported_models.Lumina2, config, {"shift": 6.0})


def make_z_image():
    """Prompts and pictures are filled up to eight tokens, of 32 of the published model."""
    wide = {"dim": 256, "n_heads": 8, "n_kv_heads": 8}  # its modulation is never narrower
    more = wide | {"pad_tokens_multiple": 8, "z_image_modulation": True, "rope_theta": 256.0}
    return flow.make(comfy.supported_models.ZImage, LUMINA | more, {"shift": 3.0})


@dataclass(frozen=True)
class Family:
    """A tiny model, and what its attention is made of.

    Attributes:
        make: Makes it.
        blocks: How many it has.
        text: Tokens of text that a block sees beyond those of the prompt.
        patch: Side of the cells that are one token.
        image_first: Whether text comes after the image.
        pads: Whether it brings all prompts to one length.
        round: What prompts and pictures are filled up to a multiple of.
        refiners: Attentions before those of its blocks.
    """

    make: Any
    blocks: int = 4
    text: int = 0
    patch: int = 2
    image_first: bool = False
    pads: bool = False
    round: int = 1
    refiners: int = 0


FAMILIES = {
    "Flux.1": Family(make_flux),
    "Flux.2": Family(make_flux2, patch=1, pads=True),
    "Chroma": Family(make_chroma),
    "Qwen-Image": Family(make_qwen_image),
    "SD 3.5": Family(make_sd3, blocks=3),
    "HiDream-I1": Family(make_hidream, text=2 * LLAMA, image_first=True),
    "Lumina 2": Family(make_lumina, blocks=3, refiners=2),
    "Z-Image": Family(make_z_image, blocks=3, round=8, refiners=2),
}


def prompt(seed, tokens=flow.TOKENS):
    """A CONDITIONING of random numbers that each of them can read."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, tokens, flow.WIDTH, generator=generator)
    more = {
        "pooled_output": torch.randn(1, flow.POOLED, generator=generator),
        "conditioning_llama3": torch.randn(1, 4, LLAMA, flow.WIDTH, generator=generator),
    }
    return [[states, more]]


def turned_back(model, tokens, heads, text):
    """Queries or keys [B, L, C] as if the image stood at 0 of the first axis, by core's rotation.

    Where an image stands depends on the text before it in Lumina 2 and Z-Image: it is one behind.
    """
    network = model.model.diffusion_model
    if not isinstance(network, NextDiT):
        return tokens
    width, theta = network.axes_dims[0], network.rope_embedder.theta
    turn = rope(torch.full((1, 1), -(text + 1.0)), width, theta)[:, :, None]
    by_head = tokens.unflatten(2, (heads, -1))
    first = apply_rope1(by_head[..., :width], turn)
    return torch.cat([first.to(tokens), by_head[..., width:]], -1).flatten(2)


def explicitly(model, image, rewrite, *, image_first=False, refiners=0, round=1):
    """A model whose attention is one of explicit maps, edited in the rows of the target's prompt.

    The source's prompt is the first that is shown to it.

    Args:
        model: As ComfyUI's MODEL.
        image: Tokens of the image.
        rewrite: Gives what a target's attention gives, [B, text + image, C], of its own tensors
            and its source's, each (q, k, v) of [text | image], the number of heads, and the step.
        image_first: Whether text comes after the image.
        refiners: Attentions of every call before those that are edited.
        round: What the image is filled up to a multiple of.
    """
    kept, state = {}, {"step": -1}

    def begin(executor, *args, **more):
        names = args[-1]["uuids"]
        state.setdefault("source", names[0])
        state["step"] += state["source"] in names
        state["layer"] = -refiners
        return executor(*args, **more)

    def of_part(name, flat, heads):
        index, entry = name
        if entry == state["source"]:
            kept[state["layer"]] = flat
        elif index == 0:
            return rewrite(flat, kept[state["layer"]], heads, state["step"])
        return look(attention_maps(*flat[:2], heads), flat[2])

    def override(func, q, k, v, heads, mask=None, **rest):
        by_head = rest.get("skip_reshape", False)
        flat = [(t.transpose(1, 2) if by_head else t).flatten(2) for t in (q, k, v)]
        tokens = flat[0].shape[1]
        if state["layer"] < 0 or tokens == image:
            state["layer"] += state["layer"] < 0
            return func(q, k, v, heads, mask=mask, **rest)
        text = tokens - image - -image % round
        flat[:2] = (turned_back(model, t, heads, text) for t in flat[:2])
        turn = image if image_first else 0
        flat = [torch.cat([t[:, turn:], t[:, :turn]], 1) for t in flat]
        names = [rest["transformer_options"][key] for key in ("cond_or_uncond", "uuids")]
        parts = zip(*(t.chunk(len(names[0])) for t in flat), strict=True)
        out = torch.cat(
            [
                of_part(name, part, heads)
                for name, part in zip(zip(*names, strict=True), parts, strict=True)
            ]
        )
        state["layer"] += 1
        back = tokens - turn
        return torch.cat([out[:, back:], out[:, :back]], 1)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "explicit", begin)
    return clone
