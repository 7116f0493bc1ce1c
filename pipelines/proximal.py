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
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .carried import Carried
from .denoiser import per_row
from .errors import PalimpsestError
from .lending import Asked, Lender
from .rows import After, Guess, Rows, Traced
from .schedule import Moment
from .trajectory import Trajectory

#: What is left of a difference.
Threshold = Literal["soft", "hard", "published l0", "published l1"]
THRESHOLDS: tuple[Threshold, ...] = ("soft", "hard", "published l0", "published l1")


@dataclass(frozen=True)
class Proximal(Carried):
    """How the guidance of a trajectory's edits is limited.

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

    name: ClassVar[str] = "proximal"

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

    def check_edit(self, cfg: float) -> None:
        """Refuse an edit without guidance that could be limited."""
        if cfg in (0, 1):
            raise PalimpsestError(
                f"Proximal Guidance limits what cfg adds, and at cfg {cfg:g} that is nothing: set "
                "Edit's cfg above 1, or take Proximal Guidance out."
            )

    def asked(self, trajectory: Trajectory, source: Asked, target: Asked) -> tuple[Asked, Asked]:
        """Both rows are guided with a limit."""
        return replace(source, mix=self.mix), replace(target, mix=self.mix)

    def traced(self, lender: Lender, target: Asked) -> Traced | None:
        """The target's denoiser, and which cells its guidance changed; only a pull reads them."""
        if not self.pull:
            return None

        def denoise(x: Tensor, sigma: Tensor) -> Guess:
            changed = None

            def mix(cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor) -> Tensor:
                nonlocal changed
                denoised, changed = self.guided(cond, uncond, cfg, sigma)
                return denoised

            denoised = lender.denoiser(replace(target, mix=mix))(x, sigma)
            return Guess(denoised, changed)

        return denoise

    def afters(self) -> tuple[After, ...]:
        """The pull towards the chain."""
        return (Pull(self),) if self.pull else ()

    def mix(self, cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor) -> Tensor:
        """Limited guidance. A `lending.Mix`."""
        return self.guided(cond, uncond, cfg, sigma).denoised

    def guided(self, cond: Tensor, uncond: Tensor, cfg: float | Tensor, sigma: Tensor) -> Guess:
        """Limited guidance, and m: which cells it changed."""
        if not isinstance(cfg, Tensor) and cfg == 1:
            return Guess(cond)  # nothing is added: the unconditional guess may not even be there
        level = per_row(sigma, cond)
        difference = (uncond - cond) / level
        lam = self.limit(difference)
        denoised = uncond - cfg * level * shrink(difference, lam, self.threshold)
        return Guess(denoised, changed_cells(difference, lam, self))


@dataclass(frozen=True)
class Pull:
    """Inversion guidance: what guidance did not change is drawn back to the chain.

    Attributes:
        settings: How far, and where on the way.
    """

    settings: Proximal

    def reads_source(self, at: Moment) -> bool:
        """The chain is enough."""
        return False

    def __call__(self, rows: Rows, chain_next: Tensor, at: Moment) -> Rows:
        settings = self.settings
        if not settings.acts_at(at.sigma):
            return rows
        # lerp is exact at both ends. Of a source row nothing is edited.
        source = rows.source.lerp(chain_next, settings.pull)
        changed = rows.guess.changed
        if changed is None:
            return rows._replace(source=source)
        target = rows.target.lerp(chain_next, settings.pull * (1 - changed))
        return rows._replace(target=target, source=source)


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
