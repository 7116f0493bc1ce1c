"""Attention hooks in a diffusers transformer of Flux's or SD 3's kind.

All of its processors end in PyTorch's fused attention, where they are met: a mode that is on for
one call of the network sees every such attention in order, and no processor is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ...pipelines.attention.hooks import QKV, AttentionHook, Role, Site, attend

#: Of the first arguments of PyTorch's attention.
_NAMES = ("query", "key", "value")


class Hooked(TorchFunctionMode):
    """While it is on, a hook sees the joint attentions of a network."""

    def __init__(
        self, network: nn.Module, hook: AttentionHook, role: Role, text: int, image: int
    ) -> None:
        """Made for one call of the network.

        Args:
            network: A FluxTransformer2DModel or SD3Transformer2DModel.
            hook: What to call.
            role: Branch of the guidance of all rows.
            text: Tokens of the prompt.
            image: Tokens of the picture.
        """
        super().__init__()
        self._hook, self._role, self._text, self._image = hook, role, text, image
        self._image_first = type(network).__name__ == "SD3Transformer2DModel"
        singles = getattr(network, "single_transformer_blocks", ())
        self._layers, self._layer = len(network.transformer_blocks) + len(singles), -1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        more = dict(kwargs or {})
        if func is not scaled_dot_product_attention:
            return func(*args, **more)
        q, k, v, *others = (*args, *(more.pop(name) for name in _NAMES[len(args) :]))
        if q.shape[2] != self._text + self._image:  # some blocks look at the image alone besides
            return func(q, k, v, *others, **more)
        self._layer += 1
        return self._joint(QKV(q, k, v), lambda *qkv: func(*qkv, *others, **more))

    def _joint(self, whole: QKV, plain: Callable[..., Tensor]) -> Tensor:
        """One joint attention of [B, heads, L, C] tensors."""
        heads = whole.q.shape[1]
        tokens = self._text + self._image
        place = Site(
            "joint",
            self._layer,
            self._role,
            tokens,
            self._text,
            layers=self._layers,
            heads=heads,
        )
        turned = self._text if self._image_first else 0

        def sdpa(term: QKV) -> Tensor:
            split = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in term)
            return plain(*split).transpose(1, 2).flatten(2)

        flat = QKV(*(t.transpose(1, 2).flatten(2).roll(turned, dims=1) for t in whole))
        out = attend(flat, place, [self._role], self._hook, sdpa).roll(-turned, dims=1)
        return out.unflatten(2, (heads, -1)).transpose(1, 2)
