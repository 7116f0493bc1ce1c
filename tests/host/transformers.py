"""Tiny random transformers of every family with a joint attention, and its explicit maps."""

from dataclasses import dataclass
from typing import Any

import comfy.supported_models
import torch
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


@dataclass(frozen=True)
class Family:
    """A tiny model, and what its attention is made of.

    Attributes:
        make: Makes it.
        blocks: How many it has.
        text: Tokens of text that a block sees beyond those of the prompt.
        patch: Side of the cells that are one token.
        image_first: Whether text comes after the image.
        wrapped: Whether core lets nodes wrap its network.
        pads: Whether it brings all prompts to one length.
    """

    make: Any
    blocks: int = 4
    text: int = 0
    patch: int = 2
    image_first: bool = False
    wrapped: bool = True
    pads: bool = False


FAMILIES = {
    "Flux.1": Family(make_flux),
    "Flux.2": Family(make_flux2, patch=1, pads=True),
    "Chroma": Family(make_chroma),
    "Qwen-Image": Family(make_qwen_image),
    "SD 3.5": Family(make_sd3, blocks=3, wrapped=False),
    "HiDream-I1": Family(make_hidream, text=2 * LLAMA, image_first=True),
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


def explicitly(model, image, rewrite, *, image_first=False):
    """A model whose attention is one of explicit maps, edited in the rows of the target's prompt.

    The source's prompt is the first that is shown to it.

    Args:
        model: As ComfyUI's MODEL.
        image: Tokens of the image.
        rewrite: Gives what a target's attention gives, [B, text + image, C], of its own tensors
            and its source's, each (q, k, v) of [text | image], the number of heads, and the step.
        image_first: Whether text comes after the image.
    """
    kept, state = {}, {"step": -1}

    def begin(executor, *args, **more):
        names = args[-1]["uuids"]
        state.setdefault("source", names[0])
        state["step"] += state["source"] in names
        state["layer"] = 0
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
        if tokens == image:
            return func(q, k, v, heads, mask=mask, **rest)
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
