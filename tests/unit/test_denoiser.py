import pytest
import torch
from palimpsest.pipelines.denoiser import (
    RowCount,
    constant,
    guidance_of,
    guide,
    noise_of,
    per_row,
    ramp,
)
from palimpsest.tests.unit.analytic import Gaussian, distance, geometric, picture


def test_guidance_is_the_published_sum_of_noises():
    """Guiding denoised latents or guiding noises is the same: both are affine in each other."""
    x, sigma = picture(), torch.tensor(3.0, dtype=torch.float64)
    cond, uncond = Gaussian(mean=1.0)(x, sigma), Gaussian(mean=-0.5)(x, sigma)
    noises = [noise_of(x, d, sigma) for d in (uncond, cond)]
    published = noises[0] + 7.5 * (noises[1] - noises[0])
    assert distance(noise_of(x, guide(cond, uncond, 7.5), sigma), published) < 1e-12


@pytest.mark.parametrize(("cfg", "seed"), [(1.0, 1), (0.0, 2)])
def test_guidance_has_both_ends(cfg, seed):
    expected = picture(seed=seed)
    assert distance(guide(picture(seed=1), picture(seed=2), cfg), expected) < 1e-15


def test_noise_and_denoised_latent_add_up():
    clean, noise = picture(seed=1), picture(seed=2)
    sigma = torch.tensor(7.0, dtype=torch.float64)
    assert distance(noise_of(clean + sigma * noise, clean, sigma), noise) < 1e-14


def test_rows_add_up():
    rows = RowCount()
    for spent in (1, 2, 4):
        rows.add(spent)
    assert rows.rows == 7


# --- guidance that depends on the level

LEVELS = geometric(120)


def test_the_ramp_is_linear_in_the_steps_from_1_to_its_top():
    cfg = ramp(LEVELS, 3.0)
    scales = [cfg(float(sigma)) for sigma in LEVELS[1:]]
    assert scales[0] == 1
    assert scales[-1] == 3
    assert scales == pytest.approx([1 + 2 * i / 119 for i in range(120)], rel=1e-15)


def test_the_published_ramp_is_one_step_ahead():
    cfg = ramp(LEVELS, 3.0, overshoot=True)
    scales = [cfg(float(sigma)) for sigma in LEVELS[1:]]
    assert scales[0] == pytest.approx(1.0168, abs=5e-5)
    assert scales[-1] == pytest.approx(3.0168, abs=5e-5)
    assert scales == pytest.approx([1 + 2 * j / 119 for j in range(1, 121)], rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_ramp_knows_its_levels_in_any_precision(dtype):
    cfg = ramp(LEVELS.to(dtype), 3.0)
    for i, sigma in enumerate(LEVELS[1:].float().tolist()):
        assert cfg(sigma) == 1 + 2 * i / 119


@pytest.mark.parametrize("overshoot", [False, True])
def test_a_ramp_of_one_step_is_its_top(overshoot):
    assert ramp(geometric(1, low=2.0), 3.0, overshoot=overshoot)(2.0) == 3


def test_a_ramp_to_1_is_no_guidance():
    cfg = ramp(LEVELS, 1.0)
    assert {cfg(float(sigma)) for sigma in LEVELS[1:]} == {1.0}


def test_guidance_of_one_level_is_a_number_and_of_many_a_number_per_row():
    cfg, x = ramp(LEVELS, 3.0), picture(3, 4, 2, 5)
    assert guidance_of(cfg, LEVELS[120], x) == 3
    scales = guidance_of(cfg, LEVELS[[1, 120, 60]], x)
    assert scales.shape == (3, 1, 1, 1)
    assert scales.dtype == x.dtype
    assert scales.flatten().tolist() == pytest.approx([1, 3, 1 + 2 * 59 / 119], rel=1e-7)
    assert (
        guidance_of(constant(7.5), LEVELS[:3], x).tolist() == torch.full_like(scales, 7.5).tolist()
    )


def test_a_level_per_row_reaches_its_row_alone():
    x, sigmas = picture(3, 4, 2, 5), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    scaled = per_row(sigmas, x) * x
    for row, sigma, alone in zip(x, sigmas.tolist(), scaled, strict=True):
        assert torch.equal(alone, sigma * row)


def test_one_level_is_handed_on_as_it_is():
    sigma = torch.tensor(2.0)
    assert per_row(sigma, picture()) is sigma
