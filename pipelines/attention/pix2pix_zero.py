"""pix2pix-zero: an edit along a direction of the text embedding, led by the source's attention.

A direction leads from what a picture shows to what it shall show, and is added to the embedding of
its own prompt:

    direction = mean of CLIP(sentences of the target) - mean of CLIP(sentences of the source)
    target    = source prompt + direction

Before a step of the target the network is asked how far its cross-attention has left the source's,
and the latent follows the slope back, once, in the model's own, VP coordinates:

    L = sum over layers of |A - A_source|^2 / (2 heads)             A = softmax(q k^T / sqrt(d))
    z <- z - xa_guidance dL/dz

Each branch of the guidance does so on a copy of its own, beside the source's row of its kind. Both
predictions come from the moved copies, and the step goes on from the unconditional one:

    noise = n(z_uncond) + cfg (n(z_cond) - n(z_uncond))             z <- step down from z_uncond

As published, the negative prompt is the source's own: then one source row serves both branches, and
the unconditional copy is led back to the picture itself. A step takes four rows and two backward
passes of one row, and one or two rows of the source. No other control needs maps: here they are
computed layer by layer, and gone when the slope is known.

References:
    Parmar et al. 2023, Zero-shot Image-to-Image Translation, arXiv:2302.03027, sections 3.2 and 3.3
        (its authors' code where the two differ)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import PalimpsestError
from ..lending import Asked, Lender
from ..rows import Guess, Traced
from ..schedule import Moment
from .bank import Bank
from .cross_maps import attention_map
from .hooks import QKV, ROLES, Hooks, Role, Site


def edit_direction(source: Tensor, target: Tensor) -> Tensor:
    """[1, ...] what is added to a prompt of the source.

    Args:
        source: [sentences, tokens, channels] embeddings of what the picture shows.
        target: The same of what it shall show; as many tokens, but any number of sentences.

    Raises:
        PalimpsestError: If their tokens or channels differ.
    """
    if source.shape[1:] != target.shape[1:]:
        raise PalimpsestError(
            f"The sentences of the source are {tuple(source.shape[1:])} tokens and channels, those "
            f"of the target {tuple(target.shape[1:])}: encode both with the CLIP of the model, and "
            "keep all of them shorter than 75 tokens."
        )
    return target.mean(0, keepdim=True) - source.mean(0, keepdim=True)


@dataclass(frozen=True)
class Pix2PixZero:
    """Cross-attention that is held near the source's by moving the latent. A `control.Moving`.

    Attributes:
        xa_guidance: How far the latent follows the slope; 0.1 is published, 0 leaves it.
    """

    xa_guidance: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.xa_guidance < math.inf:
            raise PalimpsestError(
                f"pix2pix-zero's xa_guidance is {self.xa_guidance}, it must be 0 or more: 0.1 is "
                "usual."
            )

    def source_role(self, role: Role) -> Role:
        """Each branch of the guidance is compared with its own."""
        return role

    def active(self, at: Moment) -> bool:
        """At every step."""
        return self.xa_guidance > 0

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source's map is compared here."""
        return site.kind == "cross" and self.active(at)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's queries and keys."""
        return QKV(own.q, own.k, None)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> None:
        """It leaves all attention alone: what is changed is the latent."""

    def mover(
        self, bank: Bank, lender: Lender, target: Asked, guesses: Callable[[Asked], Traced]
    ) -> Mover:
        """See `control.Moving`."""
        return Mover(self, bank, lender, target, guesses)


def map_loss(own: QKV, source: QKV, heads: int) -> Tensor:
    """[B] what one layer adds to L; gradients flow to `own`.

    Args:
        own: Queries and keys of the target.
        source: Those of the source, of as many rows.
        heads: Attention heads of the layer.

    Raises:
        PalimpsestError: If the maps are not of one size.
    """
    if own.q.shape != source.q.shape or own.k.shape != source.k.shape:
        raise PalimpsestError(
            "pix2pix-zero compares attention maps, and a layer of the source has "
            f"{source.q.shape[1]} x {source.k.shape[1]} places and tokens, of the target "
            f"{own.q.shape[1]} x {own.k.shape[1]}: give source, target and negative equally long "
            "prompts (of up to 75 tokens each), and take away nodes that change the sizes."
        )
    with torch.no_grad():
        wanted = attention_map(source, heads)
    apart = attention_map(own, heads) - wanted
    return apart.square().sum((1, 2, 3)) / (len(ROLES) * heads)


@dataclass(frozen=True, eq=False)
class Mover:
    """How a target is moved and guessed. A `rows.Stepping`.

    Attributes:
        control: How far it is moved.
        bank: Holds what the source's row left in this step.
        lender: Lends rows of the target through which gradients flow.
        target: What the target is denoised under.
        guesses: Makes the target's denoiser of what it is asked under.
    """

    control: Pix2PixZero
    bank: Bank
    lender: Lender
    target: Asked
    guesses: Callable[[Asked], Traced]

    def __call__(self, x: Tensor, at: Moment) -> tuple[Tensor, Guess]:
        """Where the step goes on from, and the guess there."""
        if not self.control.active(at):
            return x, self.guesses(self.target)(x, at.sigma)
        cond = self.moved(x, at, "cond")
        if self.lender.cfg == 1:  # there is no unconditional row
            return cond, self.guesses(self.target)(cond, at.sigma)
        uncond = self.moved(x, at, "uncond")
        return uncond, self.guesses(replace(self.target, conditional=cond))(uncond, at.sigma)

    def moved(self, x: Tensor, at: Moment, role: Role) -> Tensor:
        """[B, C, ...] the copy of one branch after its step."""
        seen = _Compared(self.bank)
        asked = replace(self.target, hooks=Hooks(seen.look), gradients=True)
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            self.lender.recorder(asked, (role,))(leaf, at.sigma)
            (slope,) = torch.autograd.grad(torch.stack(seen.losses).sum(), leaf)
        # Of z = scale x: dL/dz is slope / scale, and x moves by what z does, over scale.
        rate = self.control.xa_guidance / float(self.lender.scale(at.sigma)) ** 2
        return x - rate * slope


@dataclass(eq=False)
class _Compared:
    """Looks on while one row runs, and keeps what each layer adds to the loss; for one call.

    Attributes:
        bank: Holds the source's row.
        losses: [B] of every layer.
    """

    bank: Bank
    losses: list[Tensor] = field(default_factory=list)

    def look(self, site: Site, qkv: QKV) -> None:
        """An attention hook that changes nothing."""
        source = self.bank.source_of(site, qkv)
        if source is not None:
            self.losses.append(map_loss(qkv, source, site.heads))
