"""Hooks on the joint attention of text and image in ComfyUI's transformers (`families`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import create_model_options_clone
from torch import Tensor, nn

from ...pipelines.attention.hooks import QKV, AttentionHook, Role, Site, Term, attend
from ...pipelines.errors import PalimpsestError
from .calls import Call, call_of, of_ours
from .families import Block, Family, family_of, image_tokens

#: Core's one slot for another attention: (its function, q, k, v, heads, ...) -> out.
OVERRIDE = "optimized_attention_override"


def joint_options(model: BaseModel, options: dict[str, Any], hook: AttentionHook) -> dict[str, Any]:
    """A copy of `options` in which `hook` sees every joint attention; layers count all blocks.

    Queries and keys are those after the rotation by position. An attention that another node put
    in the place of core's computes every term.
    """
    network = model.diffusion_model
    family = family_of(network)
    if family is None:
        raise TypeError(f"{type(network).__name__} has no joint attention that is known here.")
    options, block = create_model_options_clone(options), Block()
    transformer = options.setdefault("transformer_options", {})
    override = _Override(hook, network, family, block, transformer.get(OVERRIDE))
    family.follow(network, transformer, block)
    transformer[OVERRIDE] = override
    return options


@dataclass(frozen=True, eq=False)
class _Override:
    """What stands in the place of core's attention, for the calls of one denoiser.

    Attributes:
        hook: Sees the rows of our own calls.
        network: The transformer.
        family: What it is.
        block: Where in it a call is.
        before: What another node put there, or None.
    """

    hook: AttentionHook
    network: nn.Module
    family: Family
    block: Block
    before: Callable[..., Tensor] | None

    def __call__(
        self,
        func: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        def plain(*qkv: Tensor, mask: Tensor | None = None) -> Tensor:
            if self.before is None:
                return func(*qkv, heads, mask=mask, **rest)
            return self.before(func, *qkv, heads, mask=mask, **rest)

        call, roles = call_of(rest["transformer_options"])
        self.block.layer += self.family.counts
        shape = _Shape(
            heads, rest.get("skip_reshape", False), rest.get("skip_output_reshape", False)
        )
        image = 0 if call is None else image_tokens(self.network, call.size)
        # Some blocks look at the image alone besides, or at the text.
        if call is None or shape.tokens(q) == image or self.block.layer < 0:
            return plain(q, k, v, mask=mask)
        call.check_whole(rest["transformer_options"], len(q), call.size)
        _check_unmasked(mask)
        place = self._place(call, rest["transformer_options"], shape, image, q, k)
        return self._hooked(QKV(q, k, v), place, roles, shape, plain)

    def _place(
        self,
        call: Call,
        extra: dict[str, Any],
        shape: _Shape,
        image: int,
        q: Tensor,
        k: Tensor,
    ) -> Site:
        """Where a call is; its tokens are those of the prompt, the picture and references.

        Raises:
            PalimpsestError: If they are not, in one sentence.
        """
        text = self.block.text
        references = sum(extra.get("reference_image_num_tokens", ())) + self.block.filled
        found = {shape.tokens(q), shape.tokens(k)}
        if found != {text + image + references} or text < call.prompts.length(extra):
            raise PalimpsestError(
                "Another node on the model cuts, merges or adds tokens of attention, or runs the "
                "picture in parts, which a control then cannot tie to the source's: take that node "
                "away, or edit without the control."
            )
        layers = self.family.layers(self.network)
        return Site(
            "joint",
            self.block.layer,
            "cond",
            text=text,
            references=references,
            layers=layers,
            heads=shape.heads,
        )

    def _settled(self, tokens: Tensor, shape: _Shape, text: int) -> Tensor:
        """Queries or keys of which the image's do not depend on the text's length."""
        by_head = tokens.unflatten(2, (shape.heads, -1))
        return self.family.settled(self.network, by_head, text).flatten(2)

    def _hooked(
        self,
        whole: QKV,
        place: Site,
        roles: Sequence[Role | None],
        shape: _Shape,
        plain: Callable[..., Tensor],
    ) -> Tensor:
        """One attention with the hook in it; untouched, another node sees it as core made it."""
        asked: list[Any] = []
        turned = place.text if self.family.image_first else 0

        def ask(site: Site, part: QKV) -> tuple[Term, ...] | None:
            asked.append(of_ours(self.hook)(site, part))
            return asked[-1]

        def sdpa(term: QKV) -> Tensor:
            given = (shape.handed(t) for t in term) if any(asked) else whole
            return shape.taken(plain(*given))

        qkv = QKV(*(_text_first(shape.flat(t), turned) for t in whole))
        if self.family.settled is not None:
            q, k = (self._settled(t, shape, place.text) for t in qkv[:2])
            qkv = QKV(q, k, qkv.v)
        out = attend(qkv, place, roles, ask, sdpa)
        if turned and any(asked):
            out = _text_first(out, out.shape[1] - turned)
        return shape.given(out)


def _text_first(tokens: Tensor, last: int) -> Tensor:
    """[B, L, C] with the last so many tokens before the others."""
    return torch.cat([tokens[:, -last:], tokens[:, :-last]], dim=1) if last else tokens


@dataclass(frozen=True)
class _Shape:
    """How core hands tokens to an attention and takes them from it; ours are [B, L, heads C].

    Attributes:
        heads: Their number.
        by_head: Whether they are [B, heads, L, C].
        out_by_head: The same of what comes out.
    """

    heads: int
    by_head: bool
    out_by_head: bool

    def tokens(self, tensor: Tensor) -> int:
        """How many there are."""
        return tensor.shape[2 if self.by_head else 1]

    def flat(self, tensor: Tensor) -> Tensor:
        """Core's as ours; the values of SD 3 are [B, L, heads, C]."""
        return (tensor.transpose(1, 2) if self.by_head else tensor).flatten(2)

    def handed(self, tensor: Tensor) -> Tensor:
        """Ours as core's."""
        return self._split(tensor) if self.by_head else tensor

    def taken(self, out: Tensor) -> Tensor:
        """What core's attention gave, as ours."""
        return out.transpose(1, 2).flatten(2) if self.out_by_head else out

    def given(self, out: Tensor) -> Tensor:
        """Ours as what core's attention gives."""
        return self._split(out) if self.out_by_head else out

    def _split(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _check_unmasked(mask: Tensor | None) -> None:
    """Refuse an attention in which some do not see all."""
    if mask is None or bool((mask if mask.dtype == torch.bool else mask == 0).all()):
        return
    raise PalimpsestError(
        "A prompt carries an attention mask (Apply Style Model with a strength, for example), "
        "which a control cannot share between source and target: encode the prompts without it, "
        "or edit without the control."
    )


def has_joint_attention(model: BaseModel) -> bool:
    """Whether a model is a transformer whose joint attention is known here."""
    return family_of(model.diffusion_model) is not None
