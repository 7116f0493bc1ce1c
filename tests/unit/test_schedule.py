import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.schedule import (
    FLOW_T_MAX,
    check_falling,
    check_rising,
    ddim_timesteps,
    flow_scale,
    sigma_from_alpha,
    sigma_from_t,
    step_down,
    t_from_sigma,
    vp_scale,
)
from palimpsest.tests.unit.analytic import distance, picture

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-12

levels = st.floats(1e-6, 2e3)


def level(sigma):
    return torch.tensor(sigma, dtype=torch.float64)


def scheduler(steps, offset=1, **config):
    made = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=offset,
        **config,
    )
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.final_alpha_cumprod = made.alphas_cumprod[0]
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_a_step_is_that_of_diffusers_ddim(steps, eta):
    """Theirs in variance-preserving z with predicted noise, ours in x with a denoised latent."""
    theirs = scheduler(steps)
    alphas, gap = theirs.alphas_cumprod, 1000 // steps
    for t in theirs.timesteps.tolist():
        z, noise, fresh = (picture(seed=seed + t) for seed in (1, 2, 3))
        expected = theirs.step(noise, t, z, eta=eta, variance_noise=fresh).prev_sample
        sigma, sigma_next = sigma_from_alpha(alphas[[t, max(t - gap, 0)]])
        x = z / vp_scale(sigma)
        step = step_down(sigma, sigma_next, eta)
        x_next = step.c * x + (1 - step.c) * (x - sigma * noise) + step.sigma_up * fresh
        assert distance(x_next * vp_scale(sigma_next), expected) < IDENTITY


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 3, 10, 30, 50, 999, 1000])
def test_the_grid_is_the_published_one(steps, offset):
    theirs = scheduler(steps, offset).timesteps.flip(0)
    assert torch.equal(ddim_timesteps(steps, offset=offset), theirs)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_grid_needs_a_possible_number_of_steps(steps):
    with pytest.raises(PalimpsestError, match=f"Steps must be 1 to 1000, got {steps}"):
        ddim_timesteps(steps)


@given(levels, st.floats(0, 1), st.floats(0, 1))
def test_the_two_noises_of_a_step_make_up_the_next_level(sigma, ratio, eta):
    low = sigma * ratio
    step = step_down(level(sigma), level(low), eta)
    assert math.hypot(step.sigma_up, step.sigma_down) == pytest.approx(low, rel=1e-12, abs=1e-300)
    assert 0 <= step.c <= 1


@given(levels, st.floats(0, 1))
def test_eta_one_is_the_ancestral_step_without_cancellation(sigma, ratio):
    """For eta 1, sigma_down = sigma_next^2 / sigma; as a difference of squares it would lose all
    digits where a step leaps over many orders of magnitude."""
    low = sigma * ratio
    step = step_down(level(sigma), level(low), 1.0)
    assert step.sigma_down == pytest.approx(low * low / sigma, rel=1e-12, abs=1e-300)


@given(levels, st.floats(0, 1))
def test_eta_zero_adds_no_noise(sigma, ratio):
    step = step_down(level(sigma), level(sigma * ratio))
    assert (step.sigma_up, step.sigma_down) == (0, sigma * ratio)


NO_STEPS = [(1.0, 2.0, 0), (0.0, 0.0, 0), (1.0, -0.1, 0), (1.0, 0.5, 1.1), (1.0, 0.5, -0.1)]
NO_NUMBERS = [(math.nan, 0.5, 0), (1.0, math.nan, 0), (1.0, 0.5, math.nan)]


@pytest.mark.parametrize(("sigma", "sigma_next", "eta"), [*NO_STEPS, *NO_NUMBERS])
def test_a_step_that_is_none_is_refused_with_its_numbers(sigma, sigma_next, eta):
    with pytest.raises(PalimpsestError, match=f"got sigma {sigma:.4g} -> .*, eta {eta}"):
        step_down(torch.tensor(sigma), torch.tensor(sigma_next), eta)


def test_levels_and_scales_are_two_faces_of_alpha():
    alpha = torch.linspace(0.004, 1, 500, dtype=torch.float64)
    assert distance(vp_scale(sigma_from_alpha(alpha)), alpha.sqrt()) < IDENTITY


def test_the_levels_are_those_of_stable_diffusion():
    """Numbers written down elsewhere: 0.0292 and 14.6146 are in every k-diffusion config."""
    sigmas = sigma_from_alpha(scheduler(50).alphas_cumprod)
    assert float(sigmas[0]) == pytest.approx(0.0292, abs=5e-5)
    assert float(sigmas[-1]) == pytest.approx(14.6146, abs=5e-5)


def test_flow_times_go_to_levels_and_back():
    t = torch.linspace(0, FLOW_T_MAX, 300, dtype=torch.float64)
    assert distance(t_from_sigma(sigma_from_t(t)), t) < IDENTITY
    assert distance(flow_scale(sigma_from_t(t)), 1 - t) < IDENTITY


def test_pure_noise_is_the_last_finite_level():
    top = sigma_from_t(torch.tensor([1.0, 0.9999, FLOW_T_MAX], dtype=torch.float64))
    assert distance(top, torch.full_like(top, 1999.0)) < 1e-9


@pytest.mark.parametrize("scale", [vp_scale, flow_scale])
def test_a_first_order_step_is_the_same_in_a_models_own_coordinates(scale):
    """x = z / scale: one Euler step in z over the model's own clock is one in x over sigma."""
    sigma, sigma_next = torch.tensor([5.0, 3.0], dtype=torch.float64)
    clean, noise = picture(seed=1), picture(seed=2)
    x = clean + sigma * noise
    step = step_down(sigma, sigma_next)
    ours = scale(sigma_next) * (step.c * x + (1 - step.c) * clean)
    if scale is flow_scale:
        t, t_next = t_from_sigma(sigma), t_from_sigma(sigma_next)
        z = (1 - t) * clean + t * noise
        theirs = z + (t_next - t) * (noise - clean)
    else:
        alpha = 1 / (1 + sigma_next**2)
        theirs = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    assert distance(ours, theirs) < IDENTITY


def test_sampling_schedules_fall_to_zero():
    check_falling(torch.tensor([14.0, 3.0, 0.0]))
    check_falling(torch.tensor([14.0, 0.0]))
    with pytest.raises(PalimpsestError, match=r"got 0 -> 14: .* without Flip Sigmas"):
        check_falling(torch.tensor([0.0, 3.0, 14.0]))
    with pytest.raises(PalimpsestError, match=r"must fall from noise to 0, got 14 -> 0.5"):
        check_falling(torch.tensor([14.0, 3.0, 0.5]))
    with pytest.raises(PalimpsestError, match="must fall"):
        check_falling(torch.tensor([14.0, 14.0, 0.0]))
    with pytest.raises(PalimpsestError, match="must fall"):
        check_falling(torch.tensor([14.0, math.nan, 0.0]))
    with pytest.raises(PalimpsestError, match=r"at least two levels, got 1: set steps to 1"):
        check_falling(torch.tensor([14.0]))


def test_trajectories_rise():
    check_rising(torch.tensor([0.0, 1.0]))
    for wrong in ([1.0, 0.0], [1.0, 1.0], [0.0], [0.0, math.nan], [[0.0, 1.0]]):
        with pytest.raises(PalimpsestError, match="two or more rising noise levels"):
            check_rising(torch.tensor(wrong))
