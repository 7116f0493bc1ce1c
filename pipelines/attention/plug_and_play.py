"""Plug-and-Play: keep the structure of a picture, paint everything else anew.

The target reads what the source's network found out about the layout, and nothing of its looks:

    self    out = SDPA(q_s, k_s, v_t)        in the decoder, while the attention window is open
    feature of one residual block, before its input is added: that of the source, while the feature
            window is open

One source row, conditional, serves both branches of the guidance.

References:
    Tumanyan et al. 2022, Plug-and-Play Diffusion Features for Text-Driven Image-to-Image
        Translation, arXiv:2211.12572, section 4
"""

from dataclasses import dataclass

from torch import Tensor

from ..errors import PalimpsestError
from ..schedule import Moment
from .hooks import QKV, Role, Site, check_part, inside_part


@dataclass(frozen=True)
class PlugAndPlay:
    """The source's self-attention maps, and the features of one residual block.

    Attributes:
        attention_window: Part of the steps during which the source's maps are used.
        feature_window: Part of the steps during which its features are.
        layers: Part of the transformer blocks whose maps are; published is from the ninth of the 16
            of SD 1.x and 2.x.
        block: Which residual block, counted as a fraction of all of them; published is the
            fifteenth of the 22 of SD 1.x and 2.x.
    """

    attention_window: tuple[float, float] = (0.0, 0.5)
    feature_window: tuple[float, float] = (0.0, 0.8)
    layers: tuple[float, float] = (0.5, 1.0)
    block: float = 0.64

    def __post_init__(self) -> None:
        for name in ("attention_window", "feature_window", "layers"):
            check_part(getattr(self, name), f"Plug-and-Play's {name.replace('_', ' ')}")
        if not 0 <= self.block < 1:
            raise PalimpsestError(
                f"Plug-and-Play's block is {self.block:g}, it must be a fraction from 0 to below 1."
            )

    def source_role(self, role: Role) -> Role:
        """One row for both branches."""
        return "cond"

    def active(self, at: Moment) -> bool:
        """Whether any window is open."""
        return at.inside(self.attention_window) or at.inside(self.feature_window)

    def reads(self, site: Site, at: Moment) -> bool:
        """Whether the source is read here."""
        if site.kind == "features":
            chosen = site.layer == int(site.layers * self.block)
            return chosen and at.inside(self.feature_window)
        inside = site.kind == "self" and inside_part(site.layer, site.layers, self.layers)
        return inside and at.inside(self.attention_window)

    def kept(self, site: Site, own: QKV, at: Moment) -> QKV:
        """The source's queries and keys."""
        return QKV(own.q, own.k, None)

    def terms(self, own: QKV, source: QKV | None, site: Site, at: Moment) -> tuple[QKV, ...] | None:
        """The controlled attention."""
        return None if source is None else (QKV(source.q, source.k, own.v),)

    def feature(self, own: Tensor, source: Tensor, site: Site, at: Moment) -> Tensor:
        """What the residual block adds."""
        return source
