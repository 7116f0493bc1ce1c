"""Prompt-to-Prompt: rewrite words, keep the layout.

With the source's queries and keys q_s, k_s, the target's q_t, k_t, v_t, and its published rule for
the maps, A' = R * alpha + A_t * (1 - alpha) with R = (A_s T * a + A_t * (1 - a)) * e per target
token, the output A' v_t is linear in both softmax maps, so that no map is needed:

    cross   out = SDPA(q_s, k_s, T D_s v_t) + SDPA(q_t, k_t, D_t v_t)
            D_s = a e alpha           D_t = (1 - a) e alpha + (1 - alpha)
    self    out = SDPA(q_s, k_s, v_t)
    joint   both at once (`joint`): the image looks at words as in cross-attention, and at itself as
            in self-attention

    T       alignment [S, N]              a       1 where a target token has a source
    e       weight of a target token      alpha   1 while the token's cross window is open

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 3.2 (Replace, Refine, Re-weight)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..schedule import Moment
from .hooks import QKV, Kind, Role, Site, Term
from .joint import MapEdit
from .tokens import Alignment, PromptTokens, positions_of, refine_tokens, replace_words, same_words

Mode = Literal["auto", "replace", "refine"]

#: Self-attention is injected up to this many pixels, the published limit of 32 x 32.
SELF_PIXELS = 32**2


@dataclass(frozen=True, eq=False)
class PromptToPrompt:
    """Attention of an edited prompt, tied to that of its source.

    Attributes:
        alignment: Which source token each target token reads.
        weights: [N] factor on each target token's attention; 1 leaves it alone.
        cross_windows: [N, 2] fraction of the steps, 0..1, during which each token reads the
            source's cross-attention.
        self_window: Fraction of the steps during which the source's self-attention is used.
        self_pixels: Largest feature map, in pixels, whose self-attention is replaced.
        weights_always: Let the weights act in every step; published they act only while a token
            reads the source.
        normalise: Let the rows of an edited joint map sum to 1.
    """

    acts_in: ClassVar[frozenset[Kind]] = frozenset({"self", "cross", "joint"})

    alignment: Alignment
    weights: Tensor
    cross_windows: Tensor
    self_window: tuple[float, float] = (0.0, 0.6)
    self_pixels: int = SELF_PIXELS
    weights_always: bool = False
    normalise: bool = False

    def open_tokens(self, step: int, steps: int) -> Tensor:
        """[N] bool, which target tokens read the source in this step.

        Bounds count `steps + 1` rows, as the published schedule does: 0.4 of 50 steps ends after
        step 19, 1.0 never ends.
        """
        bounds = (self.cross_windows.double() * (steps + 1)).to(torch.int64)
        return (bounds[:, 0] <= step) & (step < bounds[:, 1])

    def source_role(self, role: Role) -> Role | None:
        """Only where the guidance sees the prompt is there anything to read."""
        return role if role == "cond" else None

    def active(self, at: Moment) -> bool:
        """Whether any window is open."""
        return at.inside(self.self_window) or self._cross_open(at)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source is read here."""
        if site.kind == "self":
            return site.tokens <= self.self_pixels and at.inside(self.self_window)
        if site.kind == "joint":
            return self.active(at)
        return site.kind == "cross" and self._cross_open(at)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's queries and keys; its values are never read."""
        return QKV(own.q, own.k, None)

    def terms(
        self, own: QKV, source: QKV | None, site: Site, at: Moment
    ) -> tuple[Term, ...] | None:
        """The controlled attention, as one or two fused attentions."""
        if source is None:
            return self._weighted(own, site)
        if site.kind == "joint":
            share = float(at.inside(self.self_window))
            return MapEdit(*self._value_maps(at), share, self.normalise).terms(own, source, site)
        if site.kind == "self":
            return (QKV(source.q, source.k, own.v),)
        from_source, from_target = self._value_maps(at)
        values = _once(own.v, len(self.weights))
        terms = (QKV(source.q, _once(source.k, len(from_source)), from_source.to(values) @ values),)
        if not bool(from_target.any()):  # asked on the CPU, where no device has to be waited for
            return terms
        return (*terms, _scaled(own, from_target))

    def _weighted(self, own: QKV, site: Site) -> tuple[Term, ...] | None:
        """The target's own attention with the weights of its words, where they always act."""
        idle = not self.weights_always or bool((self.weights == 1).all())
        if idle or site.kind not in ("cross", "joint"):
            return None
        if site.kind == "joint":
            nothing = torch.zeros_like(self.alignment.mapping)
            return MapEdit(nothing, self.weights, 0.0, self.normalise).terms(own, None, site)
        return (_scaled(own, self.weights),)

    def _cross_open(self, at: Moment) -> bool:
        return bool(self.open_tokens(at.step, at.steps).any())

    def _value_maps(self, at: Moment) -> tuple[Tensor, Tensor]:
        """T D_s [S, N] and the diagonal of D_t [N]."""
        alpha = self.open_tokens(at.step, at.steps).to(self.weights.dtype)
        aligned = self.alignment.aligned
        from_source = self.alignment.mapping * (aligned * self.weights * alpha)
        after = (1 - alpha) * (self.weights if self.weights_always else 1)
        from_target = (1 - aligned) * self.weights * alpha + after
        return from_source, from_target


def chained(first: PromptToPrompt, second: PromptToPrompt) -> PromptToPrompt:
    """The edit of a first prompt into a last one, by way of a prompt between them.

    What a token of the last prompt reads of the one between, that one reads of the first: the
    alignments are multiplied, and so are the weights. It is read while both windows are open.

    Args:
        first: From the first prompt to the one between.
        second: From the one between to the last.
    """
    between, read = second.alignment.mapping, second.alignment.mapping.sum(0)
    share = (first.alignment.aligned @ between) / read.clamp_min(1e-12)
    mapping = (first.alignment.mapping * first.alignment.aligned) @ between
    carried = (first.weights @ between) / read.clamp_min(1e-12)
    aligned = second.alignment.aligned * share
    return PromptToPrompt(
        Alignment(mapping / torch.where(share > 0, share, 1), aligned),
        second.weights * torch.where(second.alignment.aligned > 0, carried, 1),
        torch.stack([_open_in_both(n, first, second) for n in range(len(read))]),
        _both(first.self_window, second.self_window),
        min(first.self_pixels, second.self_pixels),
        first.weights_always or second.weights_always,
        first.normalise or second.normalise,
    )


def _open_in_both(n: int, first: PromptToPrompt, second: PromptToPrompt) -> Tensor:
    """[2] the cross window of a token of the last prompt, and of all that it reads between."""
    own = second.cross_windows[n : n + 1]
    if not second.alignment.aligned[n]:
        return own[0]
    read = first.cross_windows[second.alignment.mapping[:, n] != 0]
    windows = torch.cat([own, read])
    return torch.stack([windows[:, 0].max(), windows[:, 1].min()])


def _both(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Where two windows are open; empty where they do not meet."""
    start = max(one[0], other[0])
    return start, max(start, min(one[1], other[1]))


def _scaled(own: QKV, factors: Tensor) -> QKV:
    """An attention, what every token gives in it times its factor [N]."""
    tiled = factors.repeat(own.v.shape[1] // len(factors))
    return own._replace(v=own.v * tiled[:, None].to(own.v))


def _once(tokens: Tensor, count: int) -> Tensor:
    """The first copy of a prompt that the host repeated to fill a batch of longer ones."""
    return tokens[:, :count]


def cross_windows(
    count: int, default: tuple[float, float], words: Mapping[tuple[int, ...], tuple[float, float]]
) -> Tensor:
    """[count, 2] cross window per target token.

    Args:
        count: Number of target tokens.
        default: Start and end for all tokens, as fractions of the steps.
        words: Token positions of a word, and its own window; later ones win.
    """
    windows = torch.tensor([default] * count, dtype=torch.float64)
    for positions, window in words.items():
        windows[list(positions)] = torch.tensor(window, dtype=torch.float64)
    return windows


def token_weights(count: int, words: Mapping[tuple[int, ...], float]) -> Tensor:
    """[count] factor per target token: 1, or the weight of the word it belongs to."""
    weights = torch.ones(count)
    for positions, weight in words.items():
        weights[list(positions)] = weight
    return weights


def rewrite_prompt(
    source: PromptTokens,
    target: PromptTokens,
    *,
    mode: Mode = "auto",
    cross_window: tuple[float, float] = (0.0, 0.4),
    self_window: tuple[float, float] = (0.0, 0.6),
    weights: Mapping[str, float] | None = None,
    word_windows: Mapping[str, tuple[float, float]] | None = None,
    self_pixels: int = SELF_PIXELS,
    weights_always: bool = False,
    published_tail: bool = False,
    normalise: bool = False,
) -> PromptToPrompt:
    """The control that turns the picture of one prompt into that of another.

    Args:
        source: Describes the picture as it is.
        target: Describes it after the edit.
        mode: "replace" word for word, "refine" by common tokens, or "auto": replace where the
            prompts have equally many words.
        cross_window: Fractions of the steps in which words read the source's cross-attention.
        self_window: Fractions of the steps in which the source's self-attention is kept.
        weights: Factor on the attention of words of the target prompt, while they read the source.
        word_windows: Cross windows of single words of the target prompt.
        self_pixels: See `PromptToPrompt`.
        weights_always: See `PromptToPrompt`.
        published_tail: See `replace_words`.
        normalise: See `PromptToPrompt`.

    Raises:
        PalimpsestError: If "replace" meets unequal word counts, or a word is not in the target.
    """
    if mode == "auto":
        mode = "replace" if same_words(source, target) else "refine"
    if mode == "replace":
        alignment = replace_words(source, target, published_tail=published_tail)
    else:
        alignment = refine_tokens(source, target)
    count, role = len(target.ids), "target prompt"
    factors = {positions_of(w, target, role=role): f for w, f in (weights or {}).items()}
    windows = {positions_of(w, target, role=role): b for w, b in (word_windows or {}).items()}
    return PromptToPrompt(
        alignment,
        token_weights(count, factors),
        cross_windows(count, cross_window, windows),
        self_window,
        self_pixels,
        weights_always,
        normalise,
    )
