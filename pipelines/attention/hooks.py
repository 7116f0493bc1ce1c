"""Places of a network, and hooks that look into them while a host runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..errors import PalimpsestError

Kind = Literal["self", "cross", "joint", "features"]

#: Branch of the guidance; of a source's row that runs beside the target's of a branch, its own.
Role = Literal["cond", "uncond", "source cond", "source uncond"]

#: The branches of the guidance.
ROLES: tuple[Role, ...] = ("cond", "uncond")

#: The source's row beside that of each.
BESIDE: dict[Role, Role] = {"cond": "source cond", "uncond": "source uncond"}


class Site(NamedTuple):
    """One place of the network in one call, seen for one branch of the guidance.

    Attributes:
        kind: Self-, cross- or joint attention, or the features of a residual block.
        layer: Position among the network's places of that sort in execution order, from 0:
            transformer blocks, or residual blocks.
        role: Which branch of the guidance the rows belong to.
        tokens: Queries of the attention, or cells of the feature map.
        text: How many of the tokens of a joint attention, the first ones, are text.
        references: How many of them, the last ones, are of pictures that the model is shown.
        layers: How many places of that sort the network has.
        depths: How often the picture was halved before each of them, by layer; of attention alone.
        heads: Heads of the attention.
    """

    kind: Kind
    layer: int
    role: Role
    tokens: int = 0
    text: int = 0
    references: int = 0
    layers: int = 0
    depths: tuple[int, ...] = ()
    heads: int = 1


def check_part(part: tuple[float, float], what: str) -> None:
    """Refuse a part of the steps or layers that is none.

    Args:
        part: Its two ends, as fractions of the whole.
        what: Its name, for the message.

    Raises:
        PalimpsestError: If they do not rise from 0 to 1.
    """
    start, end = part
    if not 0 <= start <= end <= 1:
        raise PalimpsestError(
            f"{what}: {start:g} to {end:g} must be two rising fractions from 0 to 1."
        )


def inside_part(place: int, count: int, part: tuple[float, float]) -> bool:
    """Whether one of `count` places, counted from 0, lies in a part of them; its end does not."""
    return part[0] <= place / count < part[1]


class QKV(NamedTuple):
    """Queries [B, P, C], keys [B, S, C] and values [B, S, C]; heads lie side by side in C.

    Of a recorded source, what no control reads may be None.
    """

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None


class OfSome(NamedTuple):
    """An attention in which only some queries take part; to the others it adds nothing.

    Attributes:
        qkv: Theirs, [b, p, C], and the keys and values that they see.
        rows: Which rows of the batch.
        queries: [p] which queries of them.
        scale: [b, heads, p] factor on what each of them gets; None is 1.
    """

    qkv: QKV
    rows: slice
    queries: Tensor
    scale: Tensor | None = None


#: One attention of a sum.
Term = QKV | OfSome


class AttentionHook(Protocol):
    """What a host calls at every attention: the terms of the sum, or None to leave it alone."""

    def __call__(self, site: Site, qkv: QKV) -> tuple[Term, ...] | None: ...


class FeatureHook(Protocol):
    """What a host calls with what every residual block adds to its input, [B, C, h, w].

    It gives what shall be added instead, or None to leave it alone.
    """

    def __call__(self, site: Site, feature: Tensor) -> Tensor | None: ...


class Hooks(NamedTuple):
    """Who sees a network from inside while it runs; None does not look.

    Attributes:
        attention: Sees every attention.
        feature: Sees every residual block.
        apart: Asked before a call for several branches of the guidance: whether each of them shall
            have a call of its own. None never wants that.
    """

    attention: AttentionHook | None = None
    feature: FeatureHook | None = None
    apart: Callable[[], bool] | None = None

    @property
    def branches_apart(self) -> bool:
        """What `apart` says now."""
        return self.apart is not None and self.apart()


NO_HOOKS = Hooks()


def together(every: Iterable[Hooks]) -> Hooks:
    """Several observers as one: all of them look, one of them may change what it sees.

    Raises:
        ValueError: When two want to change the same place, in the call where they do.
    """
    every = list(every)
    attention = [hooks.attention for hooks in every if hooks.attention is not None]
    feature = [hooks.feature for hooks in every if hooks.feature is not None]
    return Hooks(_first_answer(attention), _first_answer(feature))


def _first_answer(hooks: list[Callable]) -> Callable | None:
    if len(hooks) < 2:
        return hooks[0] if hooks else None

    def ask(site: Site, seen: QKV | Tensor) -> tuple[Term, ...] | Tensor | None:
        answers = [a for a in (hook(site, seen) for hook in hooks) if a is not None]
        if len(answers) > 1:
            raise ValueError(f"{len(answers)} hooks want to change {site}.")
        return answers[0] if answers else None

    return ask


def attend(
    qkv: QKV,
    place: Site,
    roles: Sequence[Role],
    hook: AttentionHook,
    sdpa: Callable[[QKV], Tensor],
) -> Tensor:
    """One attention call of a host, with a hook in it.

    Args:
        qkv: The whole batch; equal parts of it belong to the branches of the guidance.
        place: Where it is; role and tokens are those of each part.
        roles: Branch of each part, in order.
        hook: Asked for each part.
        sdpa: The host's fused attention.
    """
    parts = [QKV(*part) for part in zip(*(t.chunk(len(roles)) for t in qkv), strict=True)]
    sums = [
        hook(place._replace(role=role, tokens=part.q.shape[1]), part)
        for role, part in zip(roles, parts, strict=True)
    ]
    if not any(sums):
        return sdpa(qkv)
    terms = [terms or (part,) for terms, part in zip(sums, parts, strict=True)]
    outs = _first_terms([t[0] for t in terms], parts, sdpa)
    for i, own in enumerate(terms):
        for term in own[1:]:
            outs[i] = outs[i] + _outcome(term, parts[i], sdpa)
    return torch.cat(outs)


def per_head(term: QKV, heads: int) -> Tensor:
    """[B, heads, P, W] an attention to values [B, S, W] that are the same for all heads.

    In float32 or finer.
    """
    finest = torch.promote_types(term.q.dtype, torch.float32)
    q, k = (t.to(finest).unflatten(-1, (heads, -1)).transpose(1, 2) for t in term[:2])
    values = term.v.to(finest)[:, None].expand(-1, heads, -1, -1)
    return scaled_dot_product_attention(q, k, values)


def _outcome(term: Term, part: QKV, sdpa: Callable[[QKV], Tensor]) -> Tensor:
    """What a term adds to every query of its part."""
    if isinstance(term, QKV):
        return sdpa(term)
    out = sdpa(term.qkv)
    if term.scale is not None:
        factors = term.scale.transpose(1, 2).unsqueeze(-1).to(out)
        out = (out.unflatten(-1, (factors.shape[2], -1)) * factors).flatten(-2)
    whole = out.new_zeros(*part.q.shape[:2], out.shape[-1])
    whole[term.rows, term.queries] = out
    return whole


def _first_terms(
    terms: list[Term], parts: list[QKV], sdpa: Callable[[QKV], Tensor]
) -> list[Tensor]:
    """The first term of every part, in one fused call where their keys are equally many."""
    alike = all(isinstance(term, QKV) for term in terms)
    if not alike or any(term.k.shape != terms[0].k.shape for term in terms):
        return [_outcome(*both, sdpa) for both in zip(terms, parts, strict=True)]
    joined = QKV(*(torch.cat(tensors) for tensors in zip(*terms, strict=True)))
    return list(sdpa(joined).chunk(len(terms)))


def hooked_feature(
    feature: Tensor, place: Site, roles: Sequence[Role], hook: FeatureHook
) -> Tensor:
    """What a residual block of a host adds to its input, with a hook in it.

    Args:
        feature: [rows, C, h, w] of the whole batch, as in `attend`.
        place: Which residual block it is of; role and tokens are those of each part.
        roles: Branch of each equal part of the batch, in order.
        hook: Asked for each part.
    """
    parts = feature.chunk(len(roles))
    cells = feature.shape[-2:].numel()
    answers = [
        hook(place._replace(role=role, tokens=cells), part)
        for role, part in zip(roles, parts, strict=True)
    ]
    if all(answer is None for answer in answers):
        return feature
    return torch.cat([p if a is None else a for a, p in zip(answers, parts, strict=True)])
