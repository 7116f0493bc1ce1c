"""Hooks on what residual blocks of ComfyUI's UNet add, through its own patch point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_patcher
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_base import BaseModel
from torch import Tensor

from ...pipelines.attention.hooks import FeatureHook, Site, hooked_feature
from .calls import call_of, of_ours

#: Core's patch point: pairs of a class of layers and what is called in their place.
PATCHES = "forward_timestep_embed_patch"


def feature_options(model: BaseModel, options: dict[str, Any], hook: FeatureHook) -> dict[str, Any]:
    """A copy of `options` in which a hook sees what every residual block of the UNet adds in ours.

    A handler of another node for such blocks stays: what it makes of a block is what is seen.
    """
    options = comfy.model_patcher.create_model_options_clone(options)
    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
    before = patches.get(PATCHES, [])
    blocks = {id(block): i for i, block in enumerate(residual_blocks(model.diffusion_model))}

    def handle(
        block: ResBlock, x: Tensor, emb: Tensor, context: Tensor, extra: dict, *rest: Any
    ) -> Tensor:
        out = _plain(before, block, x, emb, context, extra, *rest)
        call, roles = call_of(extra)
        if call is None or block.updown or id(block) not in blocks:
            return out  # of an `updown` block the way around is no plain connection
        around = block.skip_connection(x)
        call.check_whole(extra, extra["original_shape"][0], extra["original_shape"][2:])
        feature = out - around
        place = Site("features", blocks[id(block)], "cond", layers=len(blocks))
        hooked = hooked_feature(feature, place, roles, of_ours(hook))
        return out if hooked is feature else around + hooked

    patches[PATCHES] = [(ResBlock, handle), *before]
    return options


def _plain(
    before: list[tuple[type, Callable]], block: ResBlock, x: Tensor, emb: Tensor, *rest: Any
) -> Tensor:
    """The block as it is without us: its own, or the first handler that is meant for it."""
    for kind, handler in before:
        if isinstance(block, kind):
            return handler(block, x, emb, *rest)
    return block(x, emb)


def residual_blocks(unet: UNetModel) -> list[ResBlock]:
    """Residual blocks in execution order."""
    middle = [unet.middle_block] if unet.middle_block is not None else []
    parts = [*unet.input_blocks, *middle, *unet.output_blocks]
    return [layer for part in parts for layer in part if isinstance(layer, ResBlock)]
