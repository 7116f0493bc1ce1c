"""Attention hooks in ComfyUI's UNet, through its own patch points."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_patcher
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    Downsample,
    ResBlock,
    UNetModel,
    Upsample,
)
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ...pipelines.attention.hooks import QKV, AttentionHook, Kind, Site, attend
from ...pipelines.errors import PalimpsestError
from .calls import Call, call_of, of_ours

#: ComfyUI's replacement of one attention: (q, k, v, extra options) -> out, before `to_out`.
Replacement = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]

#: Its names of the two attentions of a transformer block.
PATCH_NAMES: dict[str, Kind] = {"attn1": "self", "attn2": "cross"}


def require_unet(model: BaseModel, feature: str, *, instead: str = "") -> None:
    """Refuse models without a UNet's cross-attention.

    Args:
        model: From the wire.
        feature: What needs it, for messages.
        instead: What can be done with the model as it is, for messages.

    Raises:
        PalimpsestError: Naming the model and the feature.
    """
    if not isinstance(model.diffusion_model, UNetModel):
        raise PalimpsestError(
            f"{feature} needs a UNet with cross-attention (SD 1.x, SD 2.x, SDXL), the model is "
            f"{type(model).__name__}: load such a checkpoint{instead and f', or {instead}'}."
        )


def hooked_options(model: BaseModel, options: dict[str, Any], hook: AttentionHook) -> dict:
    """A copy of `options` in which `hook` sees every attention of the UNet in calls of ours.

    Replacements that other nodes put there before stay: what they add to the plain attention is
    added to the controlled one.
    """
    if "multigpu_clones" in options:
        raise PalimpsestError(
            "Attention control runs on one GPU, this model is split over several: "
            "remove the multi-GPU node."
        )
    options = comfy.model_patcher.create_model_options_clone(options)
    transformer = options.setdefault("transformer_options", {})
    replaced = transformer.setdefault("patches_replace", {})
    blocks = transformer_blocks(model.diffusion_model)
    depths = depths_of(model.diffusion_model)
    for name, kind in PATCH_NAMES.items():
        before = replaced.get(name, {})
        replaced[name] = before | {
            (block, number, index): _replacement(
                hook,
                Site(kind, layer, "cond", layers=len(blocks), depths=depths),
                before.get((block, number, index), before.get((block, number))),
            )
            for layer, (block, number, index) in enumerate(blocks)
        }
    return options


def transformer_blocks(unet: UNetModel) -> list[tuple[str, int, int]]:
    """(block, number, index) of every transformer block, in execution order."""
    return [
        (block, number, index)
        for block, number, layer in _transformers(unet)
        for index in range(len(layer.transformer_blocks))
    ]


def depths_of(unet: UNetModel) -> tuple[int, ...]:
    """How often the picture was halved before each of them."""
    depth, depths = 0, []
    for _, _, layer in _in_order(unet):
        depth += _halvings(layer)
        if isinstance(layer, SpatialTransformer):
            depths += [depth] * len(layer.transformer_blocks)
    return tuple(depths)


def _halvings(layer: nn.Module) -> int:
    """How often a layer halves the picture; -1 where it doubles it."""
    moved = layer.h_upd if isinstance(layer, ResBlock) and layer.updown else layer
    return int(isinstance(moved, Downsample)) - int(isinstance(moved, Upsample))


def _transformers(unet: UNetModel) -> list[tuple[str, int, SpatialTransformer]]:
    """(block, number, transformer) in execution order."""
    return [place for place in _in_order(unet) if isinstance(place[2], SpatialTransformer)]


def _in_order(unet: UNetModel) -> list[tuple[str, int, nn.Module]]:
    """(block, number, layer) in execution order."""
    parts: Sequence[tuple[str, Sequence[nn.Module]]] = (
        ("input", list(unet.input_blocks)),
        ("middle", [unet.middle_block] if unet.middle_block is not None else []),
        ("output", list(unet.output_blocks)),
    )
    return [
        (block, number, layer)
        for block, modules in parts
        for number, module in enumerate(modules)
        for layer in module
    ]


def _replacement(hook: AttentionHook, place: Site, previous: Replacement | None) -> Replacement:
    """The attention of one place, with the hook in it for the rows of our own calls."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        def sdpa(term: QKV) -> Tensor:
            return optimized_attention(
                *term,
                extra["n_heads"],
                attn_precision=extra["attn_precision"],
                transformer_options=extra,
            )

        def left_alone() -> Tensor:
            return sdpa(whole) if previous is None else previous(q, k, v, extra)

        whole = QKV(q, k, v)
        call, roles = call_of(extra)
        if call is None:
            return left_alone()
        call.check_whole(extra, extra["original_shape"][0], extra["original_shape"][2:])
        own = _own_tokens(whole, place.kind, call, extra)
        here = place._replace(heads=extra["n_heads"])
        asked: list[Any] = []

        def ask(site: Site, part: QKV) -> tuple[QKV, ...] | None:
            asked.append(of_ours(hook)(site, part))
            return asked[-1]

        out = attend(own, here, roles, ask, sdpa)
        if previous is None and own is whole:
            return out
        return out + (left_alone() - sdpa(own)) if any(asked) else left_alone()

    return replace


def _own_tokens(qkv: QKV, kind: Kind, call: Call, extra: dict[str, Any]) -> QKV:
    """What a control may read: the picture's own queries, and the prompt's own tokens.

    Tokens that another node appended to a prompt (pictures, for example) are no words of it: they
    add to the controlled attention what they add to the plain one.

    Raises:
        PalimpsestError: Where another node cut or merged the tokens, in one sentence.
    """
    rows, cells = extra["activations_shape"][0], math.prod(extra["activations_shape"][2:])
    length = cells if kind == "self" else call.prompts.length(extra)
    if qkv.q.shape[:2] != (rows, cells) or len(qkv.k) != rows or qkv.k.shape[1] < length:
        raise PalimpsestError(
            "Another node on the model cuts or merges the tokens of attention (HyperTile or "
            "Tome Patch Model, for example), which a control then cannot tie to the source's: "
            "take that node away, or edit without the control."
        )
    if qkv.k.shape[1] == length:
        return qkv
    return QKV(qkv.q, qkv.k[:, :length], qkv.v[:, :length])
