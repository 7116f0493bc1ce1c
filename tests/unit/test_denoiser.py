import pytest
import torch
from palimpsest.pipelines.denoiser import RowCount, guide, noise_of
from palimpsest.tests.unit.analytic import Gaussian, distance, picture


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
