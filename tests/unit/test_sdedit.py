"""SDEdit beside DDPM's ancestral step, DPM-Solver++ of diffusers, and what a mask promises."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.correction import ADD_SOURCE
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.sdedit import sdedit, sigma_of_t0_ve, sigma_of_t0_vp
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, alpha_of, distance, geometric, picture

STEPS = 6
SIGMAS = geometric(STEPS, low=0.1, high=3.0)
GUIDE = picture(2, 3, 6, 8)
MASK = torch.zeros(1, 1, 6, 8)
MASK[..., 3:] = 1

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-12


class Recorded:
    """Noise of a seed, and what was drawn."""

    def __init__(self, seed=0):
        self.next, self.drawn = seeded(seed), []

    def __call__(self, like):
        self.drawn.append(self.next(like))
        return self.drawn[-1]


def painted(guide=GUIDE, draw=None, denoise=None, sigmas=SIGMAS, **options):
    model = denoise or Prompted(0.4)
    return sdedit(guide, sigmas, model, draw=draw or seeded(0), **options)


# --- the steps


def betas_of(sigmas):
    """1 - beta is the ratio of two cumulative alphas."""
    return [1 - alpha_of(high) / alpha_of(low) for low, high in pairwise(sigmas)]


def test_it_is_the_ancestral_step_of_ddpm():
    """Ho et al. 2020, algorithm 2 with the small variance, in z."""
    draw, denoise = Recorded(), Prompted(0.4)
    ours = painted(draw=draw)
    noises = iter(draw.drawn)
    z = (GUIDE + SIGMAS[-1] * next(noises)) * vp_scale(SIGMAS[-1])
    for level in range(STEPS, 0, -1):
        beta, alpha = betas_of(SIGMAS)[level - 1], alpha_of(SIGMAS[level])
        z_next = z - beta / (1 - alpha).sqrt() * denoise.noise(z, SIGMAS[level])
        z = z_next / (1 - beta).sqrt()
        if level > 1:
            variance = beta * (1 - alpha_of(SIGMAS[level - 1])) / (1 - alpha)
            z = z + variance.sqrt() * next(noises)
    assert distance(ours, z) < IDENTITY
    assert list(noises) == []


def test_at_eta_zero_it_is_the_ode_and_draws_once():
    draw, denoise = Recorded(), Prompted(0.4)
    ours = painted(draw=draw, eta=0.0)
    assert len(draw.drawn) == 1
    x = GUIDE + SIGMAS[-1] * draw.drawn[0]
    for sigma, low in pairwise(SIGMAS.flip(0)):
        x = x + (low - sigma) * denoise.noise(x * vp_scale(sigma), sigma)
    assert distance(ours, x) < IDENTITY


@pytest.mark.parametrize("eta", [1.0, 0.0, 0.5])
def test_it_begins_at_the_guides_own_level(eta):
    """A guide that has some noise already gets what is missing."""
    draw, met = Recorded(), []

    def denoise(x, sigma):
        met.append(x)
        return x

    painted(draw=draw, denoise=denoise, sigmas=SIGMAS[2:], eta=eta)
    missing = math.sqrt(float(SIGMAS[-1] ** 2 - SIGMAS[2] ** 2))
    assert distance(met[0], GUIDE + missing * draw.drawn[0]) < IDENTITY


def scheduler(algorithm, steps=STEPS):
    """Theirs takes denoised guesses and walks our levels."""
    made = DPMSolverMultistepScheduler(
        algorithm_type=algorithm, solver_order=2, solver_type="midpoint", prediction_type="sample"
    )
    made.set_timesteps(steps)
    made.sigmas = SIGMAS.flip(0)
    return made


@pytest.mark.parametrize(("algorithm", "eta"), [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
def test_order_two_is_dpm_solver_plus_plus(algorithm, eta):
    """Their updates in z and float64; their step() computes in float32 and is met below."""
    draw, denoise, theirs = Recorded(), Prompted(0.4), scheduler(algorithm)
    ours = painted(draw=draw, eta=eta, order=2)
    z = (GUIDE + SIGMAS[-1] * draw.drawn[0]) * vp_scale(SIGMAS[-1])
    noises = [*draw.drawn[1:], torch.zeros_like(GUIDE)] if eta else [None] * STEPS
    guesses = []
    for i, (sigma, fresh) in enumerate(zip(theirs.sigmas, noises, strict=False)):
        theirs._step_index = i
        guesses.append(denoise(z / vp_scale(sigma), sigma))
        if i in (0, STEPS - 1):
            z = theirs.dpm_solver_first_order_update(guesses[-1], sample=z, noise=fresh)
        else:
            z = theirs.multistep_dpm_solver_second_order_update(guesses, sample=z, noise=fresh)
    assert distance(ours, z) < IDENTITY
    assert distance(ours, painted(eta=eta)) > 1e-3  # of order 1


@pytest.mark.parametrize(("algorithm", "eta"), [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
def test_its_first_and_last_step_are_of_order_one_as_theirs(algorithm, eta):
    draw, denoise, theirs = Recorded(), Prompted(0.4), scheduler(algorithm)
    ours = painted(GUIDE.float(), draw=draw, eta=eta, order=2)
    z = (GUIDE.float() + SIGMAS[-1] * draw.drawn[0]) * vp_scale(SIGMAS[-1])
    fresh = iter([*draw.drawn[1:], torch.zeros_like(z)])
    for t, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        guess = denoise(z / vp_scale(sigma), sigma)
        noise = next(fresh) if eta else None
        z = theirs.step(guess, t, z, variance_noise=noise).prev_sample
    # float32 on values of order 10; a step of another order is 1e-3 away.
    assert distance(ours, z) < 1e-5


def test_a_second_order_step_is_nearer_to_the_ode():
    """Against 512 steps of it: on this smooth grid four times nearer and more."""

    def error(order, steps=16):
        sigmas = torch.cat([SIGMAS[:1], torch.logspace(-1, 0.5, steps, dtype=torch.float64)])
        return painted(eta=0.0, order=order, sigmas=sigmas)

    exact = error(2, 512)
    assert distance(error(2), exact) < distance(error(1), exact) / 4


def test_order_two_has_no_residual():
    chain = Trajectory(GUIDE.expand(7, -1, -1, -1, -1), SIGMAS, GUIDE, Recipe("one noise"))
    branches = Branches(Prompted(0.4), Prompted(0.4))
    with pytest.raises(PalimpsestError, match=r"^A second-order step has no residual"):
        Edit(chain, branches, ADD_SOURCE, order=2)


# --- masks


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("repeats", [1, 3])
def test_what_a_mask_keeps_comes_back_bit_for_bit(repeats, eta, order):
    guide = GUIDE.float()
    ours = painted(guide, mask=MASK, repeats=repeats, eta=eta, order=order)
    assert torch.equal(ours[..., :3], guide[..., :3])
    assert distance(ours[..., 3:], guide[..., 3:]) > 0.5


def test_what_is_kept_lies_at_every_level_under_the_one_noise_of_its_repeat():
    draw, seen = Recorded(), []
    painted(draw=draw, mask=MASK, repeats=2, on_step=lambda i, x, _: seen.append((i, x)))
    assert [i for i, _ in seen] == list(range(1, 2 * STEPS + 1))
    assert len(draw.drawn) == 2 * STEPS  # one e, and fresh noise in all steps but the last
    for i, x in seen:
        repeat, level = (i - 1) // STEPS, STEPS - 1 - (i - 1) % STEPS
        e = draw.drawn[repeat * STEPS]
        expected = GUIDE + SIGMAS[level] * e
        assert distance(x[..., :3], expected[..., :3]) < IDENTITY


def test_its_noise_has_the_variance_of_its_level():
    """16 800 cells: a standard error of .55 % for a size."""
    guide, mask, seen = picture(2, 3, 70, 80), torch.zeros(1, 1, 70, 80), []
    mask[..., 40:] = 1
    painted(guide, mask=mask, on_step=lambda _, x, __: seen.append(x))
    for x, sigma in zip(seen, SIGMAS.flip(0)[1:-1].tolist(), strict=False):
        left = (x - guide)[..., :40]
        assert float(left.std()) == pytest.approx(sigma, rel=0.025)


def test_repeats_begin_with_what_came_out_where_it_was_painted_and_else_with_the_guide():
    draw, met, ends = Recorded(), [], []
    model = Prompted(0.4)

    def denoise(x, sigma):
        if sigma == SIGMAS[-1]:
            met.append(x)
        return model(x, sigma)

    def on_step(i, x, _):
        if i % STEPS == 0:
            ends.append(x)

    ours = painted(draw=draw, denoise=denoise, mask=MASK, repeats=3, on_step=on_step)
    assert torch.equal(ends[-1], ours)
    for i, (start, result) in enumerate(zip(met, [GUIDE, *ends], strict=False)):
        begun = torch.cat([GUIDE[..., :3], result[..., 3:]], -1)
        e = draw.drawn[i * STEPS]
        assert distance(start, begun + SIGMAS[-1] * e) < IDENTITY
    assert len(met) == 3
    assert distance(draw.drawn[0], draw.drawn[STEPS]) > 1


def test_a_repeat_without_a_mask_paints_what_came_out():
    draw = seeded(0)
    once = painted(draw=draw)
    assert torch.equal(painted(once, draw=draw), painted(repeats=2))


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_ode_draws_once_a_repeat(repeats):
    draw = Recorded()
    painted(draw=draw, eta=0.0, repeats=repeats)
    assert len(draw.drawn) == repeats


def test_without_a_repeat_nothing_is_done():
    assert painted(repeats=0) is GUIDE


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=48, max_size=48))
def test_a_soft_mask_blends_after_every_step(values):
    mask, draw = torch.tensor(values, dtype=torch.float64).view(1, 1, 6, 8), Recorded()
    ours, model = painted(draw=draw, mask=mask, eta=0.0), Prompted(0.4)
    e = draw.drawn[0]
    x = GUIDE + SIGMAS[-1] * e
    for sigma, low in pairwise(SIGMAS.flip(0)):
        x = x + (low - sigma) * model.noise(x * vp_scale(sigma), sigma)
        x = mask * x + (1 - mask) * (GUIDE + low * e)
    assert distance(ours, x) < IDENTITY


def test_a_soft_mask_stays_between_the_guide_and_what_is_painted():
    """At the last blend: of a model that always says 5, 5 is painted."""
    draw, soft = seeded(0), torch.full((1, 1, 6, 8), 0.25)
    ours = painted(draw=draw, mask=soft, denoise=lambda x, sigma: torch.full_like(x, 5.0))
    assert distance(ours, 0.75 * GUIDE + 0.25 * 5) < IDENTITY


def test_every_picture_of_a_batch_may_have_its_mask():
    masks = torch.cat([torch.zeros(1, 1, 6, 8), torch.ones(1, 1, 6, 8)])
    ours = painted(mask=masks)
    assert torch.equal(ours[0], GUIDE[0])
    assert distance(ours[1], painted()[1]) < IDENTITY


# --- painting from noise alone


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_where_it_is_wiped_nothing_of_the_guide_shows_through(eta, repeats):
    other = GUIDE.clone()
    other[..., 3:] = 9 * picture(2, 3, 6, 5, seed=4)
    options = {"mask": MASK, "eta": eta, "repeats": repeats}
    wiped = [painted(guide, wipe=True, **options) for guide in (GUIDE, other)]
    assert distance(*wiped) < IDENTITY
    assert distance(*(painted(guide, **options) for guide in (GUIDE, other))) > 0.01


def test_it_is_wiped_to_noise_of_the_size_of_the_whole_latent():
    draw, met = Recorded(), []

    def denoise(x, sigma):
        met.append(x)
        return x

    painted(draw=draw, denoise=denoise, mask=MASK, wipe=True)
    e, high = draw.drawn[0], float(SIGMAS[-1])
    assert distance(met[0][..., 3:], math.sqrt(1 + high**2) * e[..., 3:]) < IDENTITY
    assert distance(met[0][..., :3], (GUIDE + high * e)[..., :3]) < IDENTITY


# --- the rest


def test_a_seed_gives_the_same_bits_again_and_another_one_others():
    assert torch.equal(painted(draw=seeded(1)), painted(draw=seeded(1)))
    assert distance(painted(draw=seeded(1)), painted(draw=seeded(2))) > 0.1


def test_the_guide_is_left_alone():
    guide = GUIDE.clone()
    painted(guide, mask=MASK, repeats=2, wipe=True)
    assert torch.equal(guide, GUIDE)


def test_a_call_of_the_model_a_step():
    model = Prompted(0.4)
    painted(denoise=model, repeats=2, order=2)
    assert model.calls == [len(GUIDE)] * STEPS * 2


@pytest.mark.parametrize(("t0", "sigma"), [(0.3, 1.23), (0.45, 2.62), (0.5, 3.42), (0.6, 6.14)])
def test_t0_of_the_vp_models_is_the_level_of_the_projects_notes(t0, sigma):
    assert sigma_of_t0_vp(t0) == pytest.approx(sigma, abs=0.005)


def test_t0_of_the_vp_models_counts_timesteps_of_ddpm():
    """abar_t is the product of 1 - beta, here by a loop, whose order rounds otherwise."""
    alpha = 1.0
    for t in range(1, 1001):
        alpha *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        if t in (1, 2, 250, 999, 1000):
            expected = math.sqrt((1 - alpha) / alpha)
            assert sigma_of_t0_vp(t / 1000) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("t0", "sigma"), [(0.3, 0.236), (0.35, 0.400), (0.45, 1.148), (0.5, 1.944), (0.6, 5.578)]
)
def test_t0_of_the_ve_models_is_the_level_of_the_projects_notes(t0, sigma):
    """There on pictures in 0..1: twice that in -1..1."""
    assert sigma_of_t0_ve(t0) == pytest.approx(2 * sigma, abs=0.001)


@pytest.mark.parametrize("sigma_of_t0", [sigma_of_t0_vp, sigma_of_t0_ve])
@pytest.mark.parametrize("t0", [0.0, -0.5, 1.01, math.nan])
def test_a_t0_that_is_no_time_is_refused(sigma_of_t0, t0):
    with pytest.raises(PalimpsestError) as error:
        sigma_of_t0(t0)
    assert str(error.value) == f"t0 must be above 0 and at most 1, got {t0}: try 0.5."


def test_levels_that_do_not_rise_are_refused():
    with pytest.raises(PalimpsestError, match="rising"):
        painted(sigmas=SIGMAS.flip(0))


def test_an_eta_that_is_neither_ode_nor_sde_is_refused():
    with pytest.raises(PalimpsestError, match=r"with eta in 0\.\.1"):
        painted(eta=1.5)
