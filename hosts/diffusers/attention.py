"""Attention hooks in a diffusers UNet: processors that are there for one call and gone after it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ...pipelines.attention.bank import QKV, AttentionHook, Kind, Role, attend
from ...pipelines.attention.value_mapping import value_contexts


@contextmanager
def hooked(
    unet: nn.Module,
    hook: AttentionHook | None,
    roles: Sequence[Role],
    values: Tensor | None = None,
) -> Iterator[None]:
    """Let `hook` see every transformer attention of `unet`; whatever happens, undo it after.

    Args:
        unet: A UNet2DConditionModel.
        hook: What to call, or None to leave the network alone.
        roles: Branch of the guidance of each equal part of the batch, in order.
        values: [2, B, T, C] what the conditional part's values are mapped by (StyleDiffusion).
    """
    if hook is None and values is None:
        yield
        return
    before = dict(unet.attn_processors)
    hooks = {
        f"{name}.processor": _HookedProcessor(hook, kind, layer, tuple(roles), values)
        for layer, block in enumerate(transformer_blocks(unet))
        for kind, name in (("self", f"{block}.attn1"), ("cross", f"{block}.attn2"))
        if f"{name}.processor" in before
    }
    unet.set_attn_processor({**before, **hooks})
    try:
        yield
    finally:
        unet.set_attn_processor(before)


def transformer_blocks(unet: nn.Module) -> list[str]:
    """Names of the transformer blocks in execution order: down, middle, up."""
    return [
        f"{part}.{name}"
        for part in ("down_blocks", "mid_block", "up_blocks")
        if getattr(unet, part, None) is not None
        for name, module in getattr(unet, part).named_modules()
        if type(module).__name__ == "BasicTransformerBlock"
    ]


class _HookedProcessor:
    """Fused attention as a sum of the terms that a hook asks for, its values perhaps mapped."""

    def __init__(
        self,
        hook: AttentionHook | None,
        kind: Kind,
        layer: int,
        roles: tuple[Role, ...],
        values: Tensor | None,
    ) -> None:
        self.hook, self.kind, self.layer, self.roles = hook, kind, layer, roles
        self.values = values if kind == "cross" else None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        below = context
        if self.values is not None:
            below = value_contexts(context, self.roles, self.values)
        qkv = QKV(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(below))

        def sdpa(term: QKV) -> Tensor:
            return _sdpa(term, attn.heads)

        if self.hook is None:
            out = sdpa(qkv)
        else:
            out = attend(qkv, self.kind, self.layer, self.roles, self.hook, sdpa)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def _sdpa(qkv: QKV, heads: int) -> Tensor:
    """Fused attention with the heads side by side in the channels: [B, P, C]."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
