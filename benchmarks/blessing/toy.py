"""The paper's toy in one dimension, walked with our own steps and exact denoisers.

Data are 0.5 N(-2, 0.28^2) + 0.5 N(2, 0.28^2) or one Gaussian, so that nothing but the step itself
can be wrong. Particles walk by

    x_next = c x + (1 - c) D(x, sigma) + sigma_up noise

with the numbers of `pipelines.schedule.step_down`: eta 0 is the ODE, eta 1 the SDE.

References:
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410 (the toy; theorems 3.1 and 3.2)
    Song et al. 2020, Score-Based Generative Modeling through Stochastic Differential Equations,
        arXiv:2011.13456, eq. 11 (the VP schedule, beta 0.1 to 20)
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, Uniform, kl_divergence

from ...pipelines.denoiser import Denoiser
from ...pipelines.noise import Draw, seeded
from ...pipelines.schedule import ddim_timesteps, sigma_from_alpha, step_down, vp_scale
from .laws import Gaussian, Mixture, below, bins, histogram, kl, number

TRAIN_STEPS = 1000
MIXTURE = Mixture()


# --- starting from another prior


@dataclass(frozen=True)
class Prior:
    """Where particles start, in z: the model expects N(0, 1)."""

    name: str
    law: Distribution

    @property
    def kl(self) -> float:
        """Its divergence from the prior that the model expects."""
        return float(kl_divergence(self.law, Normal(number(0), number(1))))

    def kl_in_bins(self, edges: Tensor) -> float:
        """What the exact ODE would leave of that in a histogram of its samples.

        In one dimension the flow keeps the order of particles, so it is the map between quantiles,
        x0 = F_data^-1(Phi(z)), and a bin of data receives the prior's mass between two quantiles.
        """
        expected = MIXTURE.masses(edges, number(0))
        below = self.law.cdf(torch.special.ndtri(expected.cumsum(0)[:-1]))
        received = torch.cat([below, number(1)[None]]).diff(prepend=number(0)[None])
        return kl(received, expected)

    @property
    def kl_to_keep(self) -> float:
        """What the ODE has to end with: its own divergence, as far as a histogram can show it.

        The density of the uniform prior jumps. The jump lands inside a bin of the data, and the
        histogram, which sees bins as a whole, shows 0.659 of 0.699.
        """
        return self.kl_in_bins(END_BINS) if isinstance(self.law, Uniform) else self.kl

    def draw(self, count: int, draw: Draw) -> Tensor:
        """[count] particles: the same draws for every prior, moved to its quantiles."""
        return self.law.icdf(below(draw(torch.empty(count, dtype=torch.float64))))


def _normal(mean: float, std: float) -> Distribution:
    return Normal(number(mean), number(std))


#: The one that the model expects, and four that it does not.
MATCHED = Prior("N(0, 1)", _normal(0, 1))
MISMATCHED = (
    Prior("N(1, 1)", _normal(1, 1)),
    Prior("N(0, 4)", _normal(0, 2)),
    Prior("N(0, 0.25)", _normal(0, 0.5)),
    Prior("U(-1, 3)", Uniform(number(-1), number(3), validate_args=False)),
)
PRIORS = (MATCHED, *MISMATCHED)

#: Of the last level, and of all levels: noisy particles of a wide prior lie further out.
END_BINS = bins(4, 80)
CURVE_BINS = bins(6, 120)


def toy_sigmas(steps: int) -> Tensor:
    """[steps + 1] falling levels of the VP schedule with beta 0.1 to 20, from its noisiest to 0."""
    betas = torch.linspace(0.1, 20, TRAIN_STEPS, dtype=torch.float64) / TRAIN_STEPS
    timesteps = ddim_timesteps(steps, offset=TRAIN_STEPS // steps - 1)
    rising = sigma_from_alpha((1 - betas).cumprod(0)[timesteps])
    return torch.cat([number(0)[None], rising]).flip(0)


def walk(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    eta: float,
    draw: Draw,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Take particles down falling `sigmas`; `on_step` gets the steps done and where they are."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        step = step_down(sigma, sigma_next, eta)
        x = torch.lerp(denoise(x, sigma), x, step.c)
        if step.sigma_up:
            x = x.add(draw(x), alpha=step.sigma_up)
        if on_step:
            on_step(i + 1, x)
    return x


@dataclass(frozen=True, eq=False)
class Walked:
    """Particles that started from one prior, at the end and on the way.

    Attributes:
        shares: [80] of the bins at the end.
        kl: Their divergence from the data.
        right: Share of the particles above 0; of the data it is a half.
        curve: Noise levels on the way, and the divergence from the noisy data there.
    """

    shares: Tensor
    kl: float
    right: float
    curve: list[tuple[float, float]]


def run_toy(
    prior: Prior, steps: int, eta: float, *, particles: int, points: int = 0, seed: int = 0
) -> Walked:
    """Walk particles from a prior to the data.

    Args:
        prior: Where they start.
        steps: A divisor of 1000.
        eta: 0 for the ODE, 1 for the SDE.
        particles: How many.
        points: At about how many levels the divergence is kept for a curve; 0 keeps none.
        seed: Of the particles and of their noise.
    """
    sigmas, draw, curve = toy_sigmas(steps), seeded(seed), []

    def keep(done: int, x: Tensor) -> None:
        if points and done % max(1, steps // points) == 0:
            shares = histogram(x * vp_scale(sigmas[done]), CURVE_BINS)
            expected = MIXTURE.masses(CURVE_BINS, sigmas[done])
            curve.append((float(sigmas[done]), kl(shares, expected)))

    start = prior.draw(particles, draw) / vp_scale(sigmas[0])
    keep(0, start)
    end = walk(MIXTURE, start, sigmas, eta=eta, draw=draw, on_step=keep)
    shares = histogram(end, END_BINS)
    right = float((end > 0).double().mean())
    return Walked(shares, kl(shares, MIXTURE.masses(END_BINS, number(0))), right, curve)


def floor(particles: int) -> float:
    """What as many samples of the data themselves score: no walk can end below it but by luck."""
    ideal = histogram(MIXTURE.draw(particles, seeded(1)), END_BINS)
    return kl(ideal, MIXTURE.masses(END_BINS, number(0)))


# --- the Gaussian oracle


ORACLE_DATA = Gaussian(0.5, 0.25)


def sd_sigmas(steps: int, start: float) -> Tensor:
    """[int(start * steps) + 1] rising levels of Stable Diffusion's schedule, 0 the lowest.

    The grid of DPMSolverMultistepScheduler with spacing "linspace", which the published code uses.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    grid = torch.linspace(0, TRAIN_STEPS - 1, steps + 1, dtype=torch.float64).round().long()
    sigmas = sigma_from_alpha((1 - betas).cumprod(0)[grid[1 : round(start * steps) + 1]])
    return torch.cat([number(0)[None], sigmas])


def oracle(steps: int, eta: float) -> list[tuple[float, float]]:
    """Noise level and exact KL between an edited and a true law, from t0 = 0.6 to clean.

    The true law starts at N(0.5, 0.25 + sigma^2), the edited one at N(2.5, 1.5 (0.25 + sigma^2)).
    """
    sigmas = sd_sigmas(steps, 0.6).flip(0)
    true = ORACLE_DATA.noised(float(sigmas[0]))
    edited = Gaussian(2.5, 1.5 * true.variance)
    curve = [(float(sigmas[0]), edited.kl(true))]
    for sigma, sigma_next in pairwise(sigmas):
        true, edited = (g.stepped(ORACLE_DATA, sigma, sigma_next, eta) for g in (true, edited))
        curve.append((float(sigma_next), edited.kl(true)))
    return curve
