"""Hooks on the joint attention of text and image in ComfyUI's Flux, through its patch points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.ldm.flux.model import Flux
from comfy.model_base import BaseModel
from comfy.model_patcher import create_model_options_clone
from torch import Tensor

from ...pipelines.attention.hooks import QKV, AttentionHook, Site, attend
from .calls import call_of, of_ours

#: Core's one slot for another attention: (its function, q, k, v, heads, ...) -> out.
OVERRIDE = "optimized_attention_override"


@dataclass
class _Text:
    """How many of the tokens are text, as the block that runs now says it; made for one denoiser.

    Core tells it to patches of the queries, not to the attention that comes after them.
    """

    tokens: int = 0

    def look(self, q: Tensor, k: Tensor, v: Tensor, *, extra_options: dict, **_: Any) -> dict:
        """A patch of core's that changes nothing."""
        self.tokens = extra_options["img_slice"][0]
        return {}


def joint_options(model: BaseModel, options: dict[str, Any], hook: AttentionHook) -> dict[str, Any]:
    """A copy of `options` in which `hook` sees every joint attention; layers count all blocks.

    Queries and keys are those after the rotation by position. An attention that another node put
    in the place of core's computes every term.
    """
    options = create_model_options_clone(options)
    transformer = options.setdefault("transformer_options", {})
    patches = transformer.setdefault("patches", {})
    before, text = transformer.get(OVERRIDE), _Text()
    doubles, singles = _blocks(model)

    def override(
        func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **rest: Any
    ) -> Tensor:
        extra = rest["transformer_options"]
        plain = func if before is None else lambda *qkv, **more: before(func, *qkv, **more)
        single = extra["block_type"] == "single"

        def sdpa(term: QKV) -> Tensor:
            return plain(*(_by_head(t, heads) for t in term), heads, **rest)

        call, roles = call_of(extra)
        if call is None:
            return plain(q, k, v, heads, **rest)
        call.check_whole(extra, len(q), call.size)
        qkv = QKV(*(t.transpose(1, 2).flatten(2) for t in (q, k, v)))
        layer = extra["block_index"] + (doubles if single else 0)
        place = Site("joint", layer, "cond", text=text.tokens, layers=doubles + singles)
        return attend(qkv, place, roles, of_ours(hook), sdpa)

    patches["attn1_patch"] = [*patches.get("attn1_patch", []), text.look]
    transformer[OVERRIDE] = override
    return options


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """[B, L, C] with heads side by side as the [B, heads, L, C / heads] that Flux hands on."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def _blocks(model: BaseModel) -> tuple[int, int]:
    """How many blocks it has of two streams, and of one."""
    network = model.diffusion_model
    if not isinstance(network, Flux):
        raise TypeError(f"{type(network).__name__} has no joint attention that is known here.")
    return len(network.double_blocks), len(network.single_blocks)
