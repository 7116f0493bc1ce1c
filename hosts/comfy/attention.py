"""Attention hooks in ComfyUI's UNet, through its own patch points."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_patcher
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ...pipelines.attention.bank import QKV, AttentionHook, Kind, Role, attend
from ...pipelines.errors import PalimpsestError

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
    """A copy of `options` in which `hook` sees every transformer attention of the UNet.

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
    before = transformer.get("patches_replace", {})
    for layer, (block, number, index) in enumerate(transformer_blocks(model.diffusion_model)):
        for name, kind in PATCH_NAMES.items():
            own = before.get(name, {})
            previous = own.get((block, number, index), own.get((block, number)))
            patch = _replacement(hook, kind, layer, previous)
            comfy.model_patcher.set_model_options_patch_replace(
                options, patch, name, block, number, index
            )
    return options


def transformer_blocks(unet: UNetModel) -> list[tuple[str, int, int]]:
    """(block, number, index) of every transformer block, in execution order."""
    return [
        (block, number, index)
        for block, number, layer in _transformers(unet)
        for index in range(len(layer.transformer_blocks))
    ]


def heads_of(unet: UNetModel) -> list[int]:
    """Attention heads of every transformer block, in the same order."""
    layers = [layer for _, _, layer in _transformers(unet)]
    return [block.n_heads for layer in layers for block in layer.transformer_blocks]


def _transformers(unet: UNetModel) -> list[tuple[str, int, SpatialTransformer]]:
    """(block, number, transformer) in execution order."""
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
        if isinstance(layer, SpatialTransformer)
    ]


def _replacement(
    hook: AttentionHook, kind: Kind, layer: int, previous: Replacement | None
) -> Replacement:
    """The attention of one place, with the hook in it."""

    def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        def sdpa(term: QKV) -> Tensor:
            return optimized_attention(
                *term,
                extra["n_heads"],
                attn_precision=extra["attn_precision"],
                transformer_options=extra,
            )

        qkv = QKV(q, k, v)
        out = attend(qkv, kind, layer, roles_of(extra["cond_or_uncond"]), hook, sdpa)
        if previous is not None:
            out = out + (previous(q, k, v, extra) - sdpa(qkv))
        return out

    return replace


def roles_of(cond_or_uncond: Sequence[int]) -> list[Role]:
    """Branch of the guidance of each part of a batch: core gives indices, 0 is the prompt."""
    return ["cond" if index == 0 else "uncond" for index in cond_or_uncond]
