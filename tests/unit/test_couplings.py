import math
from itertools import pairwise

import pytest
import torch
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.schedule import (
    ddim_timesteps,
    flow_scale,
    sigma_from_alpha,
    sigma_from_t,
    vp_scale,
)
from palimpsest.tests.unit.analytic import (
    Gaussian,
    Prompted,
    alpha_of,
    distance,
    geometric,
    picture,
    sample_euler,
    vp_step,
)

X0 = picture()
CONVENTIONS = pytest.mark.parametrize("convention", ["destination", "current"])

#: The same real numbers in another order of float64 operations.
IDENTITY = 1e-12
#: What an iteratively solved equation may miss.
SOLVED = 1e-8

#: A flow schedule's end: sigma leaps from 7 to 1999 in its last step.
FLOW = sigma_from_t(torch.tensor([0, 0.25, 0.5, 0.75, 0.875, 1], dtype=torch.float64))


@CONVENTIONS
@pytest.mark.parametrize("scale", [vp_scale, flow_scale])
def test_inversion_converges_to_the_true_path_at_first_order(convention, scale):
    denoise = Gaussian()

    def error(steps):
        sigmas = geometric(steps, low=1e-3, high=5.0)
        latents = ddim(denoise, X0, sigmas, scale=scale, convention=convention)
        return distance(latents[-1], denoise.flow(X0, sigmas[-1]))

    # The largest latent there is about 20.
    assert error(400) < 0.2
    assert 0.8 < math.log2(error(400) / error(800)) < 1.2


def test_destination_is_the_published_next_step():
    """Their update in their coordinates: latent of one level, label of the next."""
    sigmas = geometric(12)[1:]
    model = Prompted(0.4)
    z = X0 * vp_scale(sigmas[0])
    expected = [z]
    for sigma, sigma_next in pairwise(sigmas):
        noise = model.noise(z, sigma_next)
        z = vp_step(noise, alpha_of(sigma), alpha_of(sigma_next), z)
        expected.append(z)
    latents = ddim(model, X0, sigmas, scale=vp_scale)
    assert (
        distance(latents * vp_scale(sigmas).view(-1, 1, 1, 1, 1), torch.stack(expected)) < IDENTITY
    )


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_destination_is_diffusers_inverse_scheduler(steps):
    theirs = DDIMInverseScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    alphas = theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.initial_alpha_cumprod = alphas[0]
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == ddim_timesteps(steps).tolist()
    sigmas = sigma_from_alpha(torch.cat([alphas[:1], alphas[ddim_timesteps(steps)]]))
    model = Prompted(0.4)
    z = X0 * vp_scale(sigmas[0])
    for t, sigma in zip(theirs.timesteps.tolist(), sigmas[1:], strict=True):
        z = theirs.step(model.noise(z, sigma), t, z).prev_sample
    latents = ddim(model, X0, sigmas, scale=vp_scale)
    assert distance(latents[-1] * vp_scale(sigmas[-1]), z) < IDENTITY


def test_destination_in_flow_coordinates_moves_z_along_the_velocity():
    """The noise is that of the latent z of one level, shown as if it were at the next time."""
    t = torch.linspace(0.05, 0.9, 9, dtype=torch.float64)
    denoise = Gaussian()
    x = X0
    for a, b in pairwise(t):
        z = (1 - a) * x
        clean = denoise(z / (1 - b), sigma_from_t(b))
        noise = (z - (1 - b) * clean) / b
        x = x + (sigma_from_t(b) - sigma_from_t(a)) * noise
    latents = ddim(denoise, X0, sigma_from_t(t), scale=flow_scale)
    assert distance(latents[-1], x) < IDENTITY * float(latents[-1].abs().max())


def test_current_is_the_same_step_with_the_label_one_leaves():
    sigmas = geometric(12)[1:]
    model = Prompted(0.4)
    z = X0 * vp_scale(sigmas[0])
    for sigma, sigma_next in pairwise(sigmas):
        z = vp_step(model.noise(z, sigma), alpha_of(sigma), alpha_of(sigma_next), z)
    latents = ddim(model, X0, sigmas, scale=vp_scale, convention="current")
    assert distance(latents[-1] * vp_scale(sigmas[-1]), z) < IDENTITY


def test_both_conventions_leave_zero_by_the_same_step():
    sigmas = geometric(5)
    first = [
        ddim(Prompted(0.4), X0, sigmas, scale=vp_scale, convention=c)[1]
        for c in ("destination", "current")
    ]
    assert torch.equal(*first)


def round_trip(denoise, sigmas, **options):
    latents = ddim(denoise, X0, sigmas, **options)
    return distance(sample_euler(denoise, latents[-1], sigmas.flip(0)), X0)


@CONVENTIONS
@pytest.mark.parametrize("std", [0.5, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("high", [14.0, 1999.0], ids=["sd", "flow"])
def test_refinement_undoes_the_sampler(convention, std, high):
    options = {"scale": vp_scale, "convention": convention}
    denoise, sigmas = Gaussian(std=std), geometric(20, high=high)
    assert round_trip(denoise, sigmas, **options) > 1e-3
    assert round_trip(denoise, sigmas, refinement=3, **options) < SOLVED


@CONVENTIONS
def test_refinement_survives_the_last_leap_of_a_flow_schedule(convention):
    """Plain iteration stalls there: its contraction factor is 0.996."""
    options = {"scale": flow_scale, "convention": convention}
    assert round_trip(Gaussian(), FLOW, **options) > 1e-3
    assert round_trip(Gaussian(), FLOW, refinement=3, **options) < SOLVED


def test_refinement_solves_a_model_that_is_not_linear():
    sigmas = geometric(20)
    assert round_trip(Prompted(0.4), sigmas, scale=vp_scale) > 1e-3
    assert round_trip(Prompted(0.4), sigmas, scale=vp_scale, refinement=30) < SOLVED


@CONVENTIONS
@pytest.mark.parametrize("refinement", [0, 1, 4])
def test_a_step_costs_one_evaluation_and_its_refinements(convention, refinement):
    model = Prompted(0.4)
    ddim(model, X0, geometric(7), scale=vp_scale, convention=convention, refinement=refinement)
    assert model.calls == [len(X0)] * 7 * (1 + refinement)


@CONVENTIONS
def test_the_image_is_kept_bit_for_bit_and_left_alone(convention):
    image = X0.clone()
    latents = ddim(Prompted(0.4), image, geometric(5), scale=vp_scale, convention=convention)
    assert torch.equal(image, X0)
    assert torch.equal(latents[0], X0)
    assert latents.shape == (6, *X0.shape)


@CONVENTIONS
def test_inversion_is_deterministic_and_keeps_float32(convention):
    runs = [
        ddim(Prompted(0.4), X0.float(), geometric(5), scale=vp_scale, convention=convention)
        for _ in range(2)
    ]
    assert torch.equal(*runs)
    assert runs[0].dtype == torch.float32


def test_images_of_a_batch_do_not_see_each_other():
    options = {"scale": vp_scale, "refinement": 2}
    together = ddim(Prompted(0.4), X0, geometric(5), **options)
    alone = [ddim(Prompted(0.4), x[None], geometric(5), **options) for x in X0]
    assert distance(together, torch.cat(alone, 1)) < IDENTITY


@CONVENTIONS
def test_every_step_is_reported_once_with_its_clean_guess(convention):
    seen = []
    sigmas = geometric(4)
    denoise = Gaussian()
    latents = ddim(
        denoise,
        X0,
        sigmas,
        scale=vp_scale,
        convention=convention,
        refinement=4,
        on_step=lambda *step: seen.append(step),
    )
    assert [done for done, *_ in seen] == [1, 2, 3, 4]
    for done, x, guess in seen:
        assert torch.equal(x, latents[done])
        # On a solved chain the line through two neighbours ends at the denoised latent.
        assert distance(guess, denoise(x, sigmas[done])) < SOLVED


def test_divergence_names_its_step_and_the_cure():
    with pytest.raises(PalimpsestError, match=r"at step \d+ of 5 \(sigma .*\): use cfg 1"):
        ddim(lambda x, sigma: -1e30 * x, X0.float(), geometric(5), scale=vp_scale)


def test_nan_of_the_model_is_caught_at_its_step():
    def broken(x, sigma):
        return x * (torch.nan if sigma > 1 else 0.5)

    sigmas = torch.tensor([0, 0.5, 0.9, 2, 3], dtype=torch.float64)
    with pytest.raises(PalimpsestError, match=r"step 3 of 4 \(sigma 2\)"):
        ddim(broken, X0, sigmas, scale=vp_scale)


@pytest.mark.parametrize("sigmas", [[3.0, 1.0, 0.0], [0.0], [0.0, 1.0, 1.0]])
def test_levels_that_do_not_rise_are_refused_before_the_model_runs(sigmas):
    model = Prompted(0.4)
    with pytest.raises(PalimpsestError, match="rising"):
        ddim(model, X0, torch.tensor(sigmas), scale=vp_scale)
    assert not model.calls
