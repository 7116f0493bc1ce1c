"""Noise levels, the coefficients of one step, and conversions to a model's own coordinates.

Every algorithm here works on x = x0 + sigma * noise (variance exploding, VE). Models were
trained on

    variance preserving, VP   z = sqrt(abar) x0 + sqrt(1 - abar) noise   z = x / sqrt(1 + sigma^2)
    rectified flow            z = (1 - t) x0 + t noise                   z = x / (1 + sigma)

with sigma = sqrt((1 - abar) / abar) and sigma = t / (1 - t). First-order steps are the same in all
of them, second-order steps are not.

References:
    Song et al. 2020, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 12 (eta)
    Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models,
        arXiv:2206.00364, table 1 (VP as a scaling of VE)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import PalimpsestError

#: z = scale(sigma) * x: how a model family scales what it is shown.
Scale = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """How the latents of a model family relate to x.

    Attributes:
        scale: What its network is shown: z = scale(sigma) x.
        straight: y = straight(sigma) x, in which it moves on a straight line in the time
            straight(sigma) sigma: x itself for eps and v prediction, z for rectified flow.
    """

    scale: Scale
    straight: Scale


#: Pure noise (t = 1) has no finite sigma: flow schedules stop here.
FLOW_T_MAX = 0.9995


class Moment(NamedTuple):
    """Where an edit stands: at the beginning of one of its steps.

    Attributes:
        step: Counts from the noisiest level, from 0.
        steps: Of the whole edit.
        sigma: 0-d, the level that the step leaves.
    """

    step: int
    steps: int
    sigma: Tensor

    def inside(self, window: tuple[float, float]) -> bool:
        """Whether the step lies in a window of fractions, cut to whole steps as published codes do.

        0.4 of 50 steps ends before step 20.
        """
        start, end = (int(self.steps * bound) for bound in window)
        return start <= self.step < end

    @property
    def last(self) -> bool:
        """Whether the step ends at the lowest level."""
        return self.step == self.steps - 1


def moment_at(sigmas: Tensor, step: int) -> Moment:
    """The beginning of a step, counted from the noisiest of the [N+1] rising levels."""
    steps = len(sigmas) - 1
    return Moment(step, steps, sigmas[steps - step])


def moment_of(sigmas: Tensor, sigma: Tensor) -> Moment:
    """The step that begins at a 0-d level, which is one of the levels 1 to N of `sigmas`.

    For what a host asks by level alone: it tells a network the level, not the step.
    """
    level = 1 + int((sigmas[1:] - float(sigma)).abs().argmin())
    return moment_at(sigmas, len(sigmas) - 1 - level)


@dataclass(frozen=True)
class Step:
    """The numbers of one step down: `mean = c * x + (1 - c) * D`, noise of size `sigma_up`."""

    c: float
    sigma_down: float
    sigma_up: float


def step_down(sigma: Tensor, sigma_next: Tensor, eta: float = 0.0) -> Step:
    """Coefficients of the step from `sigma` to the lower `sigma_next`.

    Args:
        sigma: 0-d, above 0.
        sigma_next: 0-d, at most `sigma`.
        eta: 0 is DDIM (Euler on the ODE), 1 is DDPM (the SDE).

    Raises:
        PalimpsestError: If the levels do not fall or `eta` is outside 0..1.
    """
    high, low = float(sigma), float(sigma_next)
    if not (0 <= low <= high and high > 0 and 0 <= eta <= 1):
        raise PalimpsestError(
            f"A step must go down with eta in 0..1, got sigma {high:.4g} -> {low:.4g}, eta {eta}."
        )
    up = eta * low * math.sqrt((high - low) * (high + low)) / high
    # sqrt(low^2 - up^2) without the difference, of which rounding would leave little.
    down = low * math.hypot(math.sqrt((1 - eta) * (1 + eta)), eta * low / high)
    return Step(down / high, down, up)


def vp_scale(sigma: Tensor) -> Tensor:
    """Scale of eps- and v-prediction models: 1 / sqrt(1 + sigma^2)."""
    return (1 + sigma**2).rsqrt()


def flow_scale(sigma: Tensor) -> Tensor:
    """Scale of rectified-flow models: 1 / (1 + sigma) = 1 - t."""
    return 1 / (1 + sigma)


#: Eps and v prediction.
VP = Family(vp_scale, torch.ones_like)

#: Rectified flow whose noise has size 1.
FLOW = Family(flow_scale, flow_scale)


def sigma_from_alpha(alpha_cumprod: Tensor) -> Tensor:
    """Noise level of a cumulative alpha (abar) in (0, 1]."""
    return ((1 - alpha_cumprod) / alpha_cumprod).sqrt()


def sigma_from_t(t: Tensor) -> Tensor:
    """Noise level of a flow time in [0, 1]; times above `FLOW_T_MAX` are cut there."""
    t = t.clamp(max=FLOW_T_MAX)
    return t / (1 - t)


def t_from_sigma(sigma: Tensor) -> Tensor:
    """Flow time of a noise level."""
    return sigma / (1 + sigma)


def ddim_timesteps(steps: int, *, train_steps: int = 1000, offset: int = 1) -> Tensor:
    """The grid of the published codes: [steps] training timesteps, rising, `offset` the lowest.

    Raises:
        PalimpsestError: If `steps` is not in 1..train_steps.
    """
    if not 1 <= steps <= train_steps:
        raise PalimpsestError(f"Steps must be 1 to {train_steps}, got {steps}.")
    return torch.arange(steps) * (train_steps // steps) + offset


def check_falling(sigmas: Tensor) -> None:
    """Refuse a sampling schedule that does not fall to 0.

    Args:
        sigmas: [N+1], as core's scheduler nodes give them.

    Raises:
        PalimpsestError: If it has no step, does not fall strictly, or ends above 0.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise PalimpsestError(
            f"The sigmas must hold at least two levels, got {sigmas.numel()}: "
            "set steps to 1 or more, or connect a scheduler node."
        )
    if not bool((sigmas.diff() < 0).all()) or float(sigmas[-1]) != 0:
        raise PalimpsestError(
            f"The sigmas must fall from noise to 0, got {float(sigmas[0]):.4g} -> "
            f"{float(sigmas[-1]):.4g}: connect a scheduler node directly, without Flip Sigmas "
            "and without cutting off its end."
        )


def check_rising(sigmas: Tensor) -> None:
    """Refuse levels that do not climb strictly; a trajectory keeps them in that order."""
    if sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas.diff() > 0).all()):
        levels = sigmas.flatten().tolist()[:6]
        raise PalimpsestError(f"A trajectory needs two or more rising noise levels, got {levels}.")
