"""Attention by two matrix products: on a CPU its gradient is quicker than the fused one."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn


class PlainAttention:
    """Takes the place of a UNet's attention."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        return attn.to_out[0](_attend(q * attn.scale, k, v))


class PlainJointAttention:
    """Takes the place of Flux's attention, in its double blocks and in its single ones."""

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        layers, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        q, k, v = _heads(hidden_states, layers, norms, attn.heads)
        words = 0
        if encoder_hidden_states is not None:
            words = encoder_hidden_states.shape[1]
            layers = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
            norms = attn.norm_added_q, attn.norm_added_k
            text = _heads(encoder_hidden_states, layers, norms, attn.heads)
            q, k, v = (torch.cat(pair, 2) for pair in zip(text, (q, k, v), strict=True))
        q, k = (apply_rotary_emb(x, image_rotary_emb) for x in (q, k))
        out = _attend(q * q.shape[-1] ** -0.5, k, v)
        if not words:
            return out
        return attn.to_out[0](out[:, words:]), attn.to_add_out(out[:, :words])


def attend_plainly(transformer: nn.Module) -> None:
    """Give every attention of a transformer of Flux's kind the plain one."""
    for module in transformer.modules():
        if isinstance(module, FluxAttention):
            module.set_processor(PlainJointAttention())


def _heads(x: Tensor, layers: tuple, norms: tuple, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, normed, and values of tokens `[B, N, C]`, each `[B, heads, N, C/heads]`."""
    q, k, v = (layer(x).unflatten(-1, (heads, -1)) for layer in layers)
    q, k = (norm(y.float()).to(v.dtype) for norm, y in zip(norms, (q, k), strict=True))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention `[B, N, C]` of queries that are scaled already, `[B, heads, N, C/heads]`."""
    scores = q @ k.transpose(-1, -2)
    with torch.autocast(scores.device.type, enabled=False):
        weights = scores.softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)
