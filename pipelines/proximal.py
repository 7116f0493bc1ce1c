"""Proximal guidance: what the prompt hardly changes is not changed at all.

Guidance adds cfg times the difference of two predictions. Where that difference is small it is
noise rather than meaning, and it is what wears the background of an edit away. So it is passed
through a threshold lam first, in units of the predicted noise n(x) = (x - D(x)) / sigma:

    d = n_cond - n_uncond = -(D_cond - D_uncond) / sigma
    D = D_uncond - cfg * sigma * shrink(d, lam)

    hard            d where |d| > lam, else 0                the paper's l0
    soft            sign(d) max(|d| - lam, 0)                the paper's l1
    published l0    soft; in the mask below |d| > 2 lam      the released code of that name
    published l1    soft, and lam off once more: not odd     the released code of that name

lam is a quantile of |d|, or a number. For one model family d means the same at every level and for
every family the same, as n does: a number needs no conversion.

Inversion guidance goes with it. Where d was small all around, the step is drawn back to the
recorded chain, in the less noisy part of the way:

    m = max-pool of [|d| > lam] over 2 r + 1 cells
    x_next <- x_next - pull (x_next - chain_next) (1 - m)

The published code names that part by a timestep, t < 400. Here it is the noise's share in x,

    sigma / (1 + sigma) < below

the flow time that belongs to the level, so that it means the same under every schedule.

References:
    Han et al. 2023, Improving Tuning-Free Real Image Editing with Proximal Guidance,
        arXiv:2306.05414, section 3 (proximal guidance, inversion guidance)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .denoiser import per_row
from .errors import PalimpsestError

#: What is left of a difference.
Threshold = Literal["soft", "hard", "published l0", "published l1"]
THRESHOLDS: tuple[Threshold, ...] = ("soft", "hard", "published l0", "published l1")


class Mix(Protocol):
    """Guidance: one denoised guess of the conditional and the unconditional one."""

    def __call__(
        self, cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor
    ) -> Tensor: ...


@dataclass(frozen=True)
class Proximal:
    """How guidance is limited.

    Attributes:
        threshold: What is left of a difference.
        quantile: Part of the differences that lies below lam, 0..1. By the default half of them.
        fixed: lam itself, in units of the noise; 0 takes the quantile.
        pull: Inversion guidance, 0..1; 0 is off.
        below: It acts where the noise's share in x is less than this. The default is t < 400 of
            Stable Diffusion's schedule, on the published grids of up to 200 steps.
        dilate: r, in cells of the latent.
        over_source: Take the quantile over the target and as many zeros, as the published code
            does: there they are the source row of Negative-prompt inversion.
    """

    threshold: Threshold = "soft"
    quantile: float = 0.5
    fixed: float = 0.0
    pull: float = 0.1
    below: float = 0.535
    dilate: int = 1
    over_source: bool = False

    def __post_init__(self) -> None:
        if self.threshold not in THRESHOLDS:
            raise PalimpsestError(
                f"The threshold must be one of {', '.join(THRESHOLDS)}, got {self.threshold}."
            )
        for name in ("quantile", "pull", "below"):
            if not 0 <= getattr(self, name) <= 1:
                raise PalimpsestError(f"{name} must be 0 to 1, got {getattr(self, name)}.")
        if not (math.isfinite(self.fixed) and self.fixed >= 0):
            raise PalimpsestError(
                f"The fixed threshold must be 0 (take the quantile) or more, got {self.fixed}."
            )
        if self.dilate < 0:
            raise PalimpsestError(f"dilate must be 0 cells or more, got {self.dilate}.")

    def limit(self, difference: Tensor) -> Tensor:
        """lam of every row, [B, 1, ...], for differences [B, C, ...] in units of the noise."""
        rows = difference.abs().flatten(1)
        if self.over_source:
            rows = torch.cat([rows, torch.zeros_like(rows)], dim=1)
        if self.fixed:
            lam = rows.new_full((len(rows),), self.fixed)
        else:
            lam = torch.stack([row.quantile(self.quantile) for row in rows])
        return lam.view(-1, *[1] * (difference.ndim - 1))

    def acts_at(self, sigma: Tensor) -> bool:
        """Whether a step from that 0-d level is drawn back to the chain."""
        return self.pull > 0 and float(sigma / (1 + sigma)) < self.below


def shrink(difference: Tensor, lam: Tensor, threshold: Threshold) -> Tensor:
    """What a threshold leaves of differences [B, C, ...]; `lam` broadcasts over them."""
    if threshold == "hard":
        return difference * (difference.abs() > lam)
    soft = difference - difference.clamp(-lam, lam)
    if threshold != "published l1":
        return soft
    # One after the other, as released: the second looks at what the first made.
    once = torch.where(soft > 0, soft - lam, soft)
    return torch.where(once < 0, once + lam, once)


def changed_cells(difference: Tensor, lam: Tensor, settings: Proximal) -> Tensor:
    """m: 1 where a row [B, C, ..., h, w] of differences is edited, each channel by itself."""
    seen = difference
    if settings.threshold.startswith("published"):
        seen = shrink(difference, lam, settings.threshold)
    mask = (seen.abs() > lam).to(difference)
    flat = mask.flatten(0, -3)
    r = settings.dilate
    return max_pool2d(flat, 2 * r + 1, stride=1, padding=r).view_as(mask)


@dataclass
class ProximalGuidance:
    """Proximal guidance in one edit. Made and dropped by it: it holds the last step's mask.

    Attributes:
        settings: How guidance is limited.
        changed: [B, C, ...] m of the target's last prediction; None where there was no guidance.
    """

    settings: Proximal
    changed: Tensor | None = None

    def mix(self, cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor) -> Tensor:
        """The target's guidance; remembers what it changes. A `Mix`."""
        self.changed = None
        if not isinstance(cfg, Tensor) and cfg == 1:
            return cond  # no difference is added: the unconditional guess may not even be there
        difference, lam = self._limited(cond, uncond, sigma)
        if self.settings.pull:
            self.changed = changed_cells(difference, lam, self.settings)
        return self._mixed(uncond, difference, lam, cfg, sigma)

    def mix_source(
        self, cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor
    ) -> Tensor:
        """The same guidance of any other row, which leaves no trace. A `Mix`."""
        if not isinstance(cfg, Tensor) and cfg == 1:
            return cond
        return self._mixed(uncond, *self._limited(cond, uncond, sigma), cfg, sigma)

    def pull(self, x_next: Tensor, chain_next: Tensor, sigma: Tensor) -> Tensor:
        """The target after a step from `sigma`, drawn back to the chain where it is not edited."""
        if self.changed is None or not self.settings.acts_at(sigma):
            return x_next
        # lerp is exact at both ends.
        return x_next.lerp(chain_next, self.settings.pull * (1 - self.changed))

    def pull_source(self, x_next: Tensor, chain_next: Tensor, sigma: Tensor) -> Tensor:
        """A drifting source row after a step: nothing of it is edited."""
        if not self.settings.acts_at(sigma):
            return x_next
        return x_next.lerp(chain_next, self.settings.pull)

    def _limited(self, cond: Tensor, uncond: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        difference = (uncond - cond) / per_row(sigma, cond)
        return difference, self.settings.limit(difference)

    def _mixed(
        self,
        uncond: Tensor,
        difference: Tensor,
        lam: Tensor,
        cfg: float | Tensor,
        sigma: Tensor,
    ) -> Tensor:
        kept = shrink(difference, lam, self.settings.threshold)
        return uncond - cfg * per_row(sigma, uncond) * kept


def check_guided(settings: Proximal | None, cfg: float) -> None:
    """Refuse proximal guidance where there is no guidance that it could limit.

    Raises:
        PalimpsestError: In one sentence.
    """
    if settings is not None and cfg in (0, 1):
        raise PalimpsestError(
            f"Proximal Guidance limits what cfg adds, and at cfg {cfg:g} that is nothing: set "
            "Edit's cfg above 1, or take Proximal Guidance out."
        )
