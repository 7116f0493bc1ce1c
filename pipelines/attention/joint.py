"""Joint attention of a transformer, in which text and picture share one softmax.

The tokens are [text | image | references]. Source s and target t may have other numbers of text
tokens; the places of the image are the same, and so are the references. Controlled are the image's
queries alone: those of the text, and of pictures that the model is shown, stay the target's own.

With T, D_s and D_t as in cross-attention (`prompt_to_prompt`), and m the share of the source's
image columns, an edit of the map of the image's queries is the sum of two fused attentions:

    out = SDPA(q_s, [k_txt,s | k_img,s | k_ref,s], [T D_s v_txt | m v_img | 0])
        + SDPA(q_t, [k_txt,t | k_img,t | k_ref,t], [D_t v_txt | (1 - m) v_img | v_ref])

A row of the edited map no longer sums to 1: what the source's image leaves to its words, the
target's image takes from its own. With 1 in the place of v the same sum tells what a row sums to,
by which the output may be divided.

References:
    Esser et al. 2024, Scaling Rectified Flow Transformers for High-Resolution Image Synthesis,
        arXiv:2403.03206, section 4 (joint attention)
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 3.2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .hooks import QKV, OfSome, Site, per_head


def image_places(site: Site) -> slice:
    """Which tokens of a place are the image's, in the rows that it is of."""
    return slice(site.text, site.tokens - site.references)


def source_places(source: QKV, site: Site) -> slice:
    """The same in the source's tensors, at a target's site."""
    at, more = image_places(site), source.k.shape[1] - site.tokens
    return slice(at.start + more, at.stop + more)


def own_places(site: Site) -> slice:
    """Which tokens are the image's at a site of either sort, in the rows that it is of."""
    return image_places(site) if site.kind == "joint" else slice(0, site.tokens)


def looks_of(qkv: QKV, site: Site) -> tuple[Tensor, Tensor]:
    """Keys and values of the image's tokens, of a source or of the target itself."""
    places = source_places(qkv, site) if site.kind == "joint" else slice(None)
    return qkv.k[:, places], qkv.v[:, places]


def around(own: QKV, site: Site) -> tuple[Tensor, Tensor]:
    """Keys and values of all other tokens; of self-attention none."""
    at = own_places(site)
    return tuple(torch.cat([t[:, : at.start], t[:, at.stop :]], dim=1) for t in own[1:])


def with_image(own: Tensor, image: Tensor, site: Site) -> Tensor:
    """A target's queries, keys or values with others [B, I, C] at the image's tokens."""
    at = image_places(site)
    return torch.cat([own[:, : at.start], image, own[:, at.stop :]], dim=1)


def of_image(qkv: QKV, site: Site, scale: Tensor | None = None) -> OfSome:
    """An attention of the image's queries alone, as a term; `qkv.q` are theirs."""
    at = image_places(site)
    places = torch.arange(at.start, at.stop, device=qkv.q.device)
    return OfSome(qkv, slice(None), places, scale)


def of_others(own: QKV, site: Site) -> OfSome:
    """The target's own attention of all other queries, as a term."""
    at = image_places(site)
    every = torch.arange(site.tokens, device=own.q.device)
    others = torch.cat([every[: at.start], every[at.stop :]])
    return OfSome(QKV(own.q[:, others], own.k, own.v), slice(None), others)


@dataclass(frozen=True, eq=False)
class MapEdit:
    """How the map of the image's queries is edited.

    Attributes:
        from_source: [S, N] T D_s: what tokens of the target's prompt get of the source's.
        from_target: [N] D_t: what they keep of their own. Tokens beyond N keep all.
        share: m, the share of the source's image columns, 0 to 1.
        normalise: Whether rows of the edited map are made to sum to 1.
    """

    from_source: Tensor
    from_target: Tensor
    share: float
    normalise: bool = False

    def terms(self, own: QKV, source: QKV | None, site: Site) -> tuple[OfSome, ...]:
        """The edited attention of a target; without a source what it keeps of its own."""
        sums, scale = self._sums(own, source, site), None
        if self.normalise:
            ones = own._replace(v=torch.ones_like(own.v[..., :1]))
            rows = sum(per_head(term, site.heads) for term in self._sums(ones, source, site))
            scale = 1 / rows[..., 0]
        return of_others(own, site), *(of_image(term, site, scale) for term in sums)

    def _sums(self, own: QKV, source: QKV | None, site: Site) -> list[QKV]:
        at = image_places(site)
        kept = QKV(own.q[:, at], own.k, own.v * self._kept(site).to(own.v)[:, None])
        if source is None:
            return [kept]
        given = QKV(
            source.q[:, source_places(source, site)], source.k, self._given(own.v, source, site)
        )
        return [given, kept] if self._keeps_any(site) else [given]

    def _given(self, values: Tensor, source: QKV, site: Site) -> Tensor:
        """[B, P_s, C] the source's columns of a target's values."""
        there, (known, count) = source_places(source, site), self.from_source.shape
        words = self.from_source.to(values) @ values[:, :count]
        image = self.share * values[:, image_places(site)]
        return pad(
            torch.cat([pad(words, (0, 0, 0, there.start - known)), image], dim=1),
            (0, 0, 0, site.references),
        )

    def _kept(self, site: Site) -> Tensor:
        """[P] the share of its own columns that the target keeps."""
        at = image_places(site)
        kept = torch.ones(site.tokens, dtype=torch.float64)
        kept[: len(self.from_target)] = self.from_target.double()
        kept[at] = 1 - self.share
        return kept

    def _keeps_any(self, site: Site) -> bool:
        """Whether that is anything; asked on the CPU, where no device has to be waited for."""
        return bool(self._kept(site).any())
