"""What theory says of our steps, on laws whose density is known; nothing here is trained.

Nie et al. 2023, The Blessing of Randomness, arXiv:2311.01410: where two laws walk down the same
levels, the SDE lowers their divergence (theorem 3.1), the ODE keeps it (3.2), and Cycle-SDE lowers
it as the SDE does (3.3).
"""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from palimpsest.benchmarks.blessing import __main__ as blessing
from palimpsest.benchmarks.blessing import noisy_edits, toy
from palimpsest.benchmarks.blessing.laws import Gaussian, Mixture, bins, kl, number
from palimpsest.pipelines import couplings
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.schedule import sigma_from_alpha, step_down, vp_scale
from palimpsest.tests.unit import analytic
from palimpsest.tests.unit.analytic import distance, geometric, picture
from torch.distributions import Categorical, MixtureSameFamily, Normal

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-12


# --- one step, four names


def our_step(x, noise, pair, eta, fresh):
    step = step_down(*pair, eta)
    return step.c * x + (1 - step.c) * (x - pair[0] * noise) + step.sigma_up * fresh


def made(kind, **options):
    """A scheduler of diffusers on its ten levels of Stable Diffusion, in float64."""
    spacing = {"timestep_spacing": "leading", "steps_offset": 1}
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = kind(**betas, **spacing, **options)
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


DDIM = made(DDIMScheduler, clip_sample=False)
TIMESTEPS = DDIM.timesteps.tolist()
SIGMAS = sigma_from_alpha(DDIM.alphas_cumprod[DDIM.timesteps])


def ddim(i, x, noise, eta, fresh):
    """Song et al. 2020, eq. 12, in variance-preserving z."""
    z = x * vp_scale(SIGMAS[i])
    stepped = DDIM.step(noise, TIMESTEPS[i], z, eta=eta, variance_noise=fresh).prev_sample
    return stepped / vp_scale(SIGMAS[i + 1])


def euler(kind, i, x, noise, seed):
    """The samplers of k-diffusion, in x; the ancestral one draws its noise from a generator."""
    theirs = made(kind)
    assert theirs.timesteps.long().tolist() == TIMESTEPS
    theirs.sigmas = SIGMAS
    theirs.scale_model_input(x, theirs.timesteps[i])
    generator = torch.Generator().manual_seed(seed)
    return theirs.step(noise, theirs.timesteps[i], x, generator=generator).prev_sample


def dpm_solver(algorithm, i, x, noise, fresh):
    """Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, first order, in variance-preserving z."""
    theirs = made(DPMSolverMultistepScheduler, solver_order=1, algorithm_type=algorithm)
    theirs.sigmas, theirs._step_index = SIGMAS, i  # its step() computes in float32
    z, denoised = x * vp_scale(SIGMAS[i]), x - SIGMAS[i] * noise
    stepped = theirs.dpm_solver_first_order_update(denoised, sample=z, noise=fresh)
    return stepped / vp_scale(SIGMAS[i + 1])


def drawn(i):
    """A latent, a prediction and fresh noise; of float32 values, which Euler's step() rounds to."""
    x, noise, fresh = (picture(seed=3 * i + k).float().double() for k in range(3))
    return 8 * x, noise, fresh


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("i", range(9))
def test_ddim_in_z_is_the_step_in_x(i, eta):
    x, noise, fresh = drawn(i)
    ours = our_step(x, noise, SIGMAS[i : i + 2], eta, fresh)
    assert distance(ours, ddim(i, x, noise, eta, fresh)) < IDENTITY


@pytest.mark.parametrize("i", range(9))
def test_with_eta_one_it_is_euler_ancestral_and_the_first_order_sde_solver(i):
    x, noise, _ = drawn(i)
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)
    ours = our_step(x, noise, SIGMAS[i : i + 2], 1.0, fresh)
    theirs = euler(EulerAncestralDiscreteScheduler, i, x, noise, seed=i)
    assert distance(ours, theirs) < IDENTITY
    assert distance(ours, dpm_solver("sde-dpmsolver++", i, x, noise, fresh)) < IDENTITY


@pytest.mark.parametrize("i", range(9))
def test_with_eta_zero_it_is_euler_and_the_first_order_ode_solver(i):
    x, noise, fresh = drawn(i)
    ours = our_step(x, noise, SIGMAS[i : i + 2], 0.0, fresh)
    assert distance(ours, euler(EulerDiscreteScheduler, i, x, noise, seed=i)) < IDENTITY
    assert distance(ours, dpm_solver("dpmsolver++", i, x, noise, fresh)) < IDENTITY


# --- two Gaussians on the same way down


@pytest.mark.parametrize(
    ("steps", "half", "one"),
    [
        (10, 0.2486, 0.03353),
        (25, 0.2134, 0.02422),
        (50, 0.1997, 0.02107),
        (200, 0.1876, 0.01838),
    ],
)
def test_the_divergence_at_the_end_is_that_of_an_independent_computation(steps, half, one):
    """Numbers that were computed for the project's notes, by other code, to the digits given."""
    ends = [toy.oracle(steps, eta)[-1][1] for eta in (0.0, 0.5, 1.0)]
    assert ends[0] == pytest.approx(0.415437, abs=5e-7)
    assert ends[1] == pytest.approx(half, abs=5e-5)
    assert ends[2] == pytest.approx(one, abs=5e-6)


@pytest.mark.parametrize("steps", [10, 200])
def test_the_ode_keeps_the_divergence_at_every_step(steps):
    values = [value for _, value in toy.oracle(steps, 0.0)]
    assert max(abs(value - values[0]) for value in values) <= IDENTITY


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 200])
def test_noise_lowers_the_divergence_at_every_step(steps, eta):
    curve = toy.oracle(steps, eta)
    falls = [later < before for (_, before), (_, later) in pairwise(curve[:-1])]
    assert len(falls) == steps * 6 // 10 - 1
    assert all(falls)
    # The last step, to sigma 0, adds no noise.
    assert curve[-1][1] == pytest.approx(curve[-2][1], rel=IDENTITY)


def fisher(edited, true):
    """E |grad log(edited / true)|^2 over the edited law, of two Gaussians."""
    slope = 1 / true.variance - 1 / edited.variance
    return edited.variance * slope**2 + ((edited.mean - true.mean) / true.variance) ** 2


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.3, 2.0, 10.0])
def test_the_divergence_falls_at_half_the_fisher_divergence_times_eta_squared(sigma, eta):
    """dKL / dsigma^2 by one step of 1e-6 sigma^2: that much is its error, and 1e-14 is rounding."""
    data = Gaussian(0.5, 0.25)
    true, edited = data.noised(sigma), Gaussian(2.5, 1.5 * (0.25 + sigma**2))
    pair = number(sigma), number(sigma * math.sqrt(1 - 1e-6))
    below = [law.stepped(data, *pair, eta) for law in (edited, true)]
    rate = (edited.kl(true) - below[0].kl(below[1])) / float(pair[0] ** 2 - pair[1] ** 2)
    assert rate == pytest.approx(eta**2 * fisher(edited, true) / 2, rel=2e-5, abs=1e-8 / sigma**2)


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("high", [1.0, 14.0])
def test_cycle_sde_shrinks_an_edit_by_the_same_factor_on_every_grid(steps, high):
    """With Gaussian data the steps telescope: what is left is variance / (variance + sigma^2)."""
    data, sigmas = analytic.Gaussian(), geometric(steps, high=high)
    chain = couplings.markov(picture(), sigmas, seeded(0))
    edit = picture(seed=1)
    end = noisy_edits.cycle_sde(data, chain, chain[-1] + edit, sigmas)
    left = data.std**2 / (data.std**2 + high**2)
    assert distance(end - chain[0], left * edit) < IDENTITY
    assert torch.equal(noisy_edits.cycle_sde(data, chain, chain[-1], sigmas), chain[0])


# --- the toy


@pytest.fixture(autouse=True)
def one_thread():
    """Arrays this small make a second thread wait more than it works."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noisy_law(sigma):
    """The mixture under noise, as torch knows it."""
    spread = (0.28**2 + sigma**2).sqrt()
    sides = Normal(torch.tensor([-2.0, 2.0], dtype=torch.float64), spread)
    return MixtureSameFamily(Categorical(torch.ones(2, dtype=torch.float64)), sides)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_the_denoiser_of_the_mixture_is_its_posterior_mean(sigma):
    """Tweedie's formula: E[x0 | x] = x + sigma^2 d/dx log p(x)."""
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(noisy_law(number(sigma)).log_prob(x).sum(), x)
    expected = (x + sigma**2 * score).detach()
    assert distance(Mixture()(x.detach(), number(sigma)), expected) < 1e-10  # sigma^2 is up to 900


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_the_bins_hold_what_the_law_holds(sigma):
    edges = bins(4, 80)
    inner = edges[1:-1] * math.sqrt(1 + sigma**2)
    below = noisy_law(number(sigma)).cdf(inner)
    expected = torch.cat([below, torch.ones(1)]).diff(prepend=torch.zeros(1))
    masses = Mixture().masses(edges, number(sigma))
    assert distance(masses, expected) < IDENTITY
    assert bool((masses > 0).all())  # also where 1 - cdf is 0: a logarithm is taken of them
    assert kl(masses, masses) == 0


def test_the_prior_keeps_its_divergence_but_for_what_bins_hide():
    for prior, known in zip(toy.MISMATCHED, (0.5, 0.807, 0.318, 0.699), strict=True):
        assert prior.kl == pytest.approx(known, abs=5e-4)
        assert 0.9 * prior.kl < prior.kl_in_bins(toy.END_BINS) < prior.kl
    assert toy.MATCHED.kl == 0
    assert toy.MATCHED.kl_in_bins(toy.END_BINS) == pytest.approx(0, abs=IDENTITY)


STEPS, PARTICLES = 250, 20_000

#: A histogram of the true law scores at most this on average, and varies by a seventh of it.
HISTOGRAM = 80 / (2 * PARTICLES)


@pytest.fixture(scope="module")
def unavoidable():
    """What the SDE's own steps leave, from the right start."""
    return toy.run_toy(toy.MATCHED, STEPS, 1.0, particles=PARTICLES).kl


@pytest.mark.parametrize("prior", toy.MISMATCHED, ids=lambda prior: prior.name)
def test_the_sde_forgets_a_wrong_start_and_the_ode_does_not(prior, unavoidable):
    """In a quarter of the benchmark's steps, so the ODE, of first order, has four times its 5 %."""
    ode, sde = (toy.run_toy(prior, STEPS, eta, particles=PARTICLES).kl for eta in (0.0, 1.0))
    assert abs(ode - prior.kl_to_keep) < 4 * blessing.KEPT * prior.kl_to_keep
    assert sde < unavoidable + HISTOGRAM
    assert sde < blessing.KEPT * prior.kl


def test_with_few_steps_and_the_right_start_the_ode_is_the_better():
    row = blessing.measure(toy.MATCHED, blessing.FEW, particles=PARTICLES)
    assert blessing.broken_bounds([row]) == []
    assert 2 * row.ode.kl < row.sde.kl


def walked(value):
    return toy.Walked(torch.zeros(80), value, 0.5, [])


def row(prior, steps, ode, sde):
    return blessing.Row(prior, steps, walked(ode), walked(sde))


SHIFTED = toy.MISMATCHED[0]  # its divergence is 0.5


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (row(SHIFTED, 1000, 0.48, 0.0019), []),
        (row(SHIFTED, 1000, 0.47, 0.0019), ["not within 5 % of 0.5000"]),
        (row(SHIFTED, 1000, 0.53, 0.0021), ["not within 5 % of 0.5000", "not below 0.002"]),
        (row(SHIFTED, 1000, math.nan, math.nan), ["ODE ends at nan", "SDE ends at nan"]),
        (row(SHIFTED, 25, 0.3, 0.1), []),
        (row(toy.MATCHED, 25, 0.02, 0.06), []),
        (row(toy.MATCHED, 25, 0.06, 0.06), ["at 25 steps the ODE's 0.0600 is not the lower"]),
        (row(toy.MATCHED, 1000, 0.06, 0.02), []),
    ],
)
def test_a_bound_that_is_not_kept_is_named(measured, words):
    broken = blessing.broken_bounds([measured])
    assert len(broken) == len(words)
    for word, sentence in zip(words, broken, strict=True):
        assert word in sentence
        assert sentence.startswith(measured.prior.name)


def test_an_edit_by_cycle_sde_that_is_no_better_is_named():
    good, bad = noisy_edits.Ended(0.01, 0.1), noisy_edits.Ended(0.02, 0.2)
    held = {"edit": {"ODE": bad, "Cycle-SDE": good, "SDE": bad}}
    broken = {"edit": {"ODE": good, "Cycle-SDE": bad, "SDE": good}}
    assert blessing.broken_edits(held) == []
    assert [s.rsplit(" ", 1)[1] for s in blessing.broken_edits(broken)] == ["ODE.", "SDE."]


def test_cycle_sde_is_nearer_to_the_data_and_to_the_source():
    source = noisy_edits.make_source(PARTICLES, steps=50)
    shifted = {edit.name: source.edits(edit) for edit in noisy_edits.NOISY_EDITS[1:2]}
    assert blessing.broken_edits(shifted) == []
