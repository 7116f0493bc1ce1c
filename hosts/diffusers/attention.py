"""Attention hooks in a diffusers UNet: processors that are there for one call and gone after it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ...pipelines.attention.hooks import (
    QKV,
    AttentionHook,
    FeatureHook,
    Hooks,
    Role,
    Site,
    attend,
    hooked_feature,
)
from ...pipelines.attention.value_mapping import value_contexts


@contextmanager
def hooked(
    unet: nn.Module,
    hooks: Hooks,
    roles: Sequence[Role],
    values: Tensor | None = None,
) -> Iterator[None]:
    """Let hooks see `unet` from inside; whatever happens, undo it after.

    Args:
        unet: A UNet2DConditionModel.
        hooks: What to call.
        roles: Branch of the guidance of each equal part of the batch, in order.
        values: [2, B, T, C] what the conditional part's values are mapped by (StyleDiffusion).
    """
    with _watched_blocks(unet, hooks.feature, roles), _processors(unet, hooks, roles, values):
        yield


@contextmanager
def _processors(
    unet: nn.Module, hooks: Hooks, roles: Sequence[Role], values: Tensor | None
) -> Iterator[None]:
    """The attention part of `hooked`."""
    if hooks.attention is None and values is None:
        yield
        return
    before = []
    try:
        blocks = transformer_blocks(unet)
        depths = depths_of(unet, "BasicTransformerBlock")
        for layer, block in enumerate(blocks):
            for kind, attention in (("self", block.attn1), ("cross", block.attn2)):
                if attention is None:  # a block may be without the one or the other
                    continue
                before.append((attention, attention.processor))
                place = Site(
                    kind, layer, "cond", layers=len(blocks), depths=depths, heads=attention.heads
                )
                own = _HookedProcessor(hooks.attention, place, tuple(roles), values)
                attention.set_processor(own)
        yield
    finally:
        for attention, processor in before:
            attention.set_processor(processor)


@contextmanager
def _watched_blocks(
    unet: nn.Module, hook: FeatureHook | None, roles: Sequence[Role]
) -> Iterator[None]:
    """The part of `hooked` that sees what residual blocks add."""
    if hook is None:
        yield
        return

    def watch(place: Site) -> Callable[..., Tensor]:
        def after(block: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
            around = inputs[0] if block.conv_shortcut is None else block.conv_shortcut(inputs[0])
            scale = block.output_scale_factor
            feature = out * scale - around
            hooked = hooked_feature(feature, place, roles, hook)
            return out if hooked is feature else (around + hooked) / scale

        return after

    blocks = residual_blocks(unet)
    handles = [
        block.register_forward_hook(watch(Site("features", layer, "cond", layers=len(blocks))))
        for layer, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def residual_blocks(unet: nn.Module) -> list[nn.Module]:
    """Residual blocks in execution order: down, middle, up."""
    return _modules(unet, "ResnetBlock2D")


def _modules(unet: nn.Module, kind: str) -> list[nn.Module]:
    return [module for module in _in_order(unet) if type(module).__name__ == kind]


def _in_order(unet: nn.Module) -> Iterator[nn.Module]:
    """Modules between the first and the last convolution, in execution order."""
    for part in ("down_blocks", "mid_block", "up_blocks"):
        if getattr(unet, part, None) is not None:
            yield from getattr(unet, part).modules()


def depths_of(unet: nn.Module, kind: str) -> tuple[int, ...]:
    """How often the picture was halved before each of the blocks of a kind."""
    depth, depths = 0, []
    for name in (type(module).__name__ for module in _in_order(unet)):
        depth += {"Downsample2D": 1, "Upsample2D": -1}.get(name, 0)
        if name == kind:
            depths.append(depth)
    return tuple(depths)


def transformer_blocks(unet: nn.Module) -> list[nn.Module]:
    """Transformer blocks in execution order: down, middle, up."""
    return _modules(unet, "BasicTransformerBlock")


class _HookedProcessor:
    """Fused attention as a sum of the terms that a hook asks for, its values perhaps mapped."""

    def __init__(
        self,
        hook: AttentionHook | None,
        place: Site,
        roles: tuple[Role, ...],
        values: Tensor | None,
    ) -> None:
        self.hook, self.place, self.roles = hook, place, roles
        self.values = values if place.kind == "cross" else None

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
            out = attend(qkv, self.place, self.roles, self.hook, sdpa)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def _sdpa(qkv: QKV, heads: int) -> Tensor:
    """Fused attention with the heads side by side in the channels: [B, P, C]."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
    return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
