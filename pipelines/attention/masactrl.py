"""MasaCtrl: change what a thing does, keep what it looks like.

The target asks with its own queries where things shall be, and takes their looks from the source:

    self    out = SDPA(q_t, k_s, v_s)                            mutual self-attention
            out = SDPA(q_t, [k_s | k_t], [v_s | v_t])            union

in both branches of the guidance, once the layout stands (from a step on) and where it is no longer
decided (from a layer on, in the decoder). Cross-attention is the target's own.

References:
    Cao et al. 2023, MasaCtrl: Tuning-Free Mutual Self-Attention Control for Consistent Image
        Synthesis and Editing, arXiv:2304.08465, section 3.2
"""

from dataclasses import dataclass

import torch

from ..schedule import Moment
from .hooks import QKV, Role, Site, check_part, inside_part


@dataclass(frozen=True)
class MasaCtrl:
    """Self-attention that reads the source's keys and values.

    Attributes:
        steps: Part of the steps during which the source is read, as fractions of them. Published
            is from step 4 of 50.
        layers: Part of the network's transformer blocks in which it is read. Published is from the
            tenth of the 16 of SD 1.x, and from about there in SDXL's 70.
        union: Read the target's own keys and values beside the source's.
    """

    steps: tuple[float, float] = (0.08, 1.0)
    layers: tuple[float, float] = (0.625, 1.0)
    union: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "layers"):
            check_part(getattr(self, name), f"MasaCtrl's {name}")

    def source_role(self, role: Role) -> Role:
        """Each branch of the guidance reads its own."""
        return role

    def active(self, at: Moment) -> bool:
        """Whether the step is in its part of the steps."""
        return inside_part(at.step, at.steps, self.steps)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source is read here."""
        own = site.kind == "self" and inside_part(site.layer, site.layers, self.layers)
        return own and self.active(at)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's keys and values."""
        return QKV(None, own.k, own.v)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> tuple[QKV, ...] | None:
        """The controlled attention."""
        if source is None:
            return None
        if not self.union:
            return (QKV(own.q, source.k, source.v),)
        both = (torch.cat(pair, dim=1) for pair in zip(source[1:], own[1:], strict=True))
        return (QKV(own.q, *both),)
