"""Chains that are drawn: their laws, their published forms, and edits that repeat their noise."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from palimpsest.pipelines.correction import CYCLE, residual
from palimpsest.pipelines.couplings import (
    ddim,
    denoise_chain,
    independent,
    markov,
    one_noise,
    posterior,
)
from palimpsest.pipelines.denoiser import per_row
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_space import (
    EDIT_FRIENDLY,
    NoiseSpace,
    cycle_diffusion,
    invert_into_noise,
)
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.schedule import step_down, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import (
    Gaussian,
    Prompted,
    alpha_of,
    distance,
    geometric,
    picture,
)
from palimpsest.tests.unit.test_cycle_sde import published

SOURCE, TARGET, CFG = 0.4, -0.7, 2.0
STEPS = 8
X0 = picture()

#: From 0, and with a lowest level above it.
GRIDS = {"from zero": geometric(STEPS), "above zero": geometric(STEPS + 1)[1:]}

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-12

CHAINS = {
    "markov": (markov, 1.0),
    "independent": (independent, 1.0),
    "posterior": (partial(posterior, eta=0.1), 0.1),
    "ancestral": (partial(posterior, eta=1.0), 1.0),
}
every_grid = pytest.mark.parametrize("sigmas", GRIDS.values(), ids=GRIDS.keys())
every_chain = pytest.mark.parametrize("name", CHAINS)


# --- their laws


def covariance(chain, sigmas):
    """[N+1, N+1] covariance of a chain's levels, exactly: each draw is an axis of its own."""
    axes = iter(torch.eye(len(sigmas) - 1, dtype=torch.float64))
    origin = torch.zeros(len(sigmas) - 1, dtype=torch.float64)
    levels = chain(origin, sigmas, lambda _like: next(axes))
    assert next(axes, None) is None
    return levels @ levels.T


def excess(sigmas):
    """[N+1] variance that each level has above that of the lowest."""
    return sigmas**2 - sigmas[0] ** 2


@every_grid
@every_chain
def test_at_every_level_the_noise_has_the_size_of_the_level(name, sigmas):
    found = covariance(CHAINS[name][0], sigmas).diagonal()
    assert distance(found, excess(sigmas)) < 1e-11  # of order 200


@every_grid
@pytest.mark.parametrize("name", ["markov", "ancestral"])
def test_two_levels_of_the_forward_process_share_what_the_lower_one_has(name, sigmas):
    """Drawn upwards, or downwards by the posterior of eta 1: one law."""
    shared = torch.minimum(excess(sigmas)[:, None], excess(sigmas)[None])
    assert distance(covariance(CHAINS[name][0], sigmas), shared) < 1e-11


@every_grid
def test_independent_levels_share_nothing(sigmas):
    found = covariance(independent, sigmas)
    assert torch.equal(found, found.diagonal().diag())


@every_grid
@pytest.mark.parametrize("eta", [0.1, 0.6])
def test_the_posterior_hands_down_the_part_that_its_step_keeps(sigmas, eta):
    """Cov(x_s, x_t) = Var(x_t) times what is kept of it on the way, s_dn / s_t at each step."""
    found = covariance(partial(posterior, eta=eta), sigmas)
    sizes = excess(sigmas).sqrt()
    for top in range(1, STEPS + 1):
        kept = 1.0
        for level in range(top - 1, 0, -1):
            low, high = sizes[level], sizes[level + 1]
            up = eta * low * (high**2 - low**2).sqrt() / high
            kept = kept * (low**2 - up**2).sqrt() / high
            assert float(found[level, top]) == pytest.approx(float(kept * sizes[top] ** 2))


@every_grid
def test_without_noise_of_its_own_the_posterior_is_one_noise_at_every_level(sigmas):
    draw = seeded(3)
    expected = one_noise(X0, sigmas, draw(X0))
    assert distance(posterior(X0, sigmas, seeded(3), eta=0.0), expected) < IDENTITY


# --- their published forms


def test_the_independent_chain_is_the_published_one():
    """z_t = sqrt(abar) x0 + sqrt(1 - abar) n, drawn from the lowest level up."""
    sigmas, draw = GRIDS["from zero"], seeded(3)
    chain = independent(X0, sigmas, seeded(3))
    for level in range(1, STEPS + 1):
        a = alpha_of(sigmas[level])
        z = a.sqrt() * X0 + (1 - a).sqrt() * draw(X0)
        assert distance(chain[level] * vp_scale(sigmas[level]), z) < IDENTITY


def test_the_posterior_chain_is_the_published_one():
    """From q(z_t | x0) down, by the DDIM step of the same eta whose prediction is the image."""
    sigmas, draw, eta = GRIDS["from zero"], seeded(3), 0.1
    chain = posterior(X0, sigmas, seeded(3), eta=eta)
    a_t = alpha_of(sigmas[-1])
    z = a_t.sqrt() * X0 + (1 - a_t).sqrt() * draw(X0)
    for level in range(STEPS - 1, 0, -1):
        a_s = alpha_of(sigmas[level])
        noise = (z - a_t.sqrt() * X0) / (1 - a_t).sqrt()
        sd = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
        z = a_s.sqrt() * X0 + (1 - a_s - sd**2).sqrt() * noise + sd * draw(X0)
        assert distance(chain[level] * vp_scale(sigmas[level]), z) < IDENTITY
        a_t = a_s


@every_chain
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_image_is_kept_bit_for_bit_and_left_alone(name, dtype):
    image = X0.to(dtype)
    chain = CHAINS[name][0](image, GRIDS["from zero"], seeded(0))
    assert torch.equal(image, X0.to(dtype))
    assert torch.equal(chain[0], image)
    assert chain.dtype == dtype and chain.shape == (STEPS + 1, *X0.shape)


@every_chain
def test_a_seed_gives_the_same_bits(name):
    chain = CHAINS[name][0]
    one, same, other = (chain(X0, GRIDS["from zero"], seeded(n)) for n in (1, 1, 2))
    assert torch.equal(one, same)
    assert distance(one, other) > 1


def test_a_chain_to_a_flows_noisiest_level_keeps_the_image_in_float32():
    """Level 1999: what is noise is carried by itself, or the image would drown in its rounding."""
    sigmas = torch.tensor([0, 0.01, 1.0, 7.0, 1999.0], dtype=torch.float64)
    chain = posterior(X0.float(), sigmas, seeded(0), eta=0.0)
    noise = seeded(0)(X0.float())
    assert distance(chain[1] - X0, 0.01 * noise.double()) < 1e-6


@pytest.mark.parametrize("space", [EDIT_FRIENDLY, cycle_diffusion(0.3)], ids=["free", "cycle"])
@pytest.mark.parametrize("levels_at_once", [1, 2, 5])
def test_a_picture_is_turned_into_a_chain_and_what_the_source_makes_of_it(space, levels_at_once):
    sigmas, calls, told = geometric(5), [], []

    def source(x, sigma):
        calls.append(len(x) // len(X0))
        return Prompted(SOURCE)(x, per_row(sigma, x))

    made = invert_into_noise(
        space,
        source,
        X0,
        sigmas,
        seeded(3),
        levels_at_once=levels_at_once,
        on_levels=told.append,
    )
    latents = space.draw_chain(X0, sigmas, seeded(3))
    assert torch.equal(made[0], latents)
    expected = [Prompted(SOURCE)(x, sigma) for x, sigma in zip(latents, sigmas, strict=True)]
    torch.testing.assert_close(made[1], torch.stack(expected[1:]), rtol=1e-12, atol=1e-12)
    assert max(calls) == levels_at_once
    assert told == [min(n, 5) for n in range(levels_at_once, 5 + levels_at_once, levels_at_once)]


def test_a_space_says_the_eta_of_its_edit_and_that_all_of_its_noise_is_repeated():
    for space, eta in ((EDIT_FRIENDLY, 1.0), (cycle_diffusion(), 0.1), (cycle_diffusion(1), 1)):
        assert (space.eta, space.strength) == (eta, 1.0)
        assert (space.recipe.eta, space.recipe.strength) == (eta, 1.0)


@pytest.mark.parametrize("eta", [0.1, 0.3, 1.0])
def test_the_chain_of_cyclediffusion_is_the_posterior_of_its_eta(eta):
    sigmas = geometric(5)
    ours = cycle_diffusion(eta).draw_chain(X0, sigmas, seeded(3))
    assert torch.equal(ours, posterior(X0, sigmas, seeded(3), eta=eta))


def test_a_call_of_no_level_is_refused():
    with pytest.raises(PalimpsestError, match=r"^At least 1 level goes into a call, got 0: raise"):
        invert_into_noise(EDIT_FRIENDLY, None, X0, geometric(5), seeded(3), levels_at_once=0)


# --- edits along them


def along(name, source, sigmas, x0=X0, **options):
    chain, eta = CHAINS[name]
    latents = chain(x0, sigmas, seeded(3))
    guesses = denoise_chain(source, latents, sigmas, levels_at_once=1)
    return Trajectory(latents, sigmas, x0, Recipe(name, eta=eta), denoised=guesses, **options)


@every_chain
@pytest.mark.parametrize("target", [SOURCE, TARGET], ids=["same", "other"])
def test_an_edit_repeats_the_noise_that_the_published_code_records(name, target):
    trajectory = along(name, Prompted(SOURCE, CFG), GRIDS["above zero"])
    source, target = Prompted(SOURCE, CFG), Prompted(target, CFG)
    done = Edit(trajectory, Branches(target, source), CYCLE, trajectory.recipe.eta).run()
    start = trajectory.start
    expected = published(Prompted(SOURCE, CFG), target, trajectory, start, trajectory.recipe.eta)
    # The published form divides by eta times the size of a step's noise, and multiplies again.
    assert distance(done.latent, expected) < 10 * IDENTITY
    assert source.calls == []  # the guesses were kept


@every_chain
@pytest.mark.parametrize("apart", [False, True], ids=["one denoiser", "two that say the same"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_untouched_picture_comes_back_bit_for_bit(name, dtype, apart):
    source = Prompted(SOURCE, CFG)
    target = Prompted(SOURCE, CFG) if apart else source
    trajectory = along(name, source, GRIDS["from zero"], X0.to(dtype))
    source.calls.clear()
    edit = Edit(trajectory, Branches(target, source), CYCLE, trajectory.recipe.eta)
    assert torch.equal(edit.run().latent, X0.to(dtype))
    assert target.calls == [len(X0)] * (STEPS if apart else 0)


@every_chain
@every_grid
def test_of_an_edit_is_left_what_the_steps_keep_whatever_the_chain(name, sigmas):
    """Gaussian data: A = c + (1 - c) s2 / (s2 + sigma^2) at each step, so A telescopes at eta 1."""
    data, edit = Gaussian(), picture(seed=1)
    trajectory = along(name, data, sigmas)
    eta = trajectory.recipe.eta
    moved = Edit(trajectory, Branches(data, data), CYCLE, eta)
    left = moved.run(start=trajectory.start + edit).latent - X0
    gain = 1.0
    for low, high in pairwise(sigmas.tolist()):
        up = eta * low * math.sqrt(high**2 - low**2) / high
        c = math.sqrt(low**2 - up**2) / high
        gain *= c + (1 - c) * data.std**2 / (data.std**2 + high**2)
    assert distance(left, gain * edit) < IDENTITY
    if eta == 1:
        ends = [data.std**2 + float(sigma) ** 2 for sigma in (sigmas[0], sigmas[-1])]
        assert gain == pytest.approx(ends[0] / ends[1], rel=1e-12)


# --- Direct Inversion's offsets


def test_the_offset_is_the_difference_of_two_predictions():
    """o = sqrt(abar_p) (sigma_t - sigma_p) (eps_w(z_k, t_k) - eps(z_{k-1}, t_k)), in z."""
    sigmas, invert, guided = GRIDS["above zero"], Prompted(SOURCE), Prompted(SOURCE, 7.5)
    chain = ddim(invert, X0, sigmas, scale=vp_scale)
    z = chain * vp_scale(sigmas).view(-1, 1, 1, 1, 1)
    largest = 0.0
    for level in range(1, STEPS + 1):
        low, high = sigmas[level - 1], sigmas[level]
        rest = residual(
            chain[level], chain[level - 1], guided(chain[level], high), step_down(high, low)
        )
        offset = rest * vp_scale(low)
        predictions = guided.noise(z[level], high) - invert.noise(z[level - 1], high)
        assert distance(offset, vp_scale(low) * (high - low) * predictions) < IDENTITY
        largest = max(largest, float(offset.abs().max()))
    assert largest > 0.1


# --- bad input


@every_chain
def test_levels_that_do_not_rise_are_refused(name):
    with pytest.raises(PalimpsestError, match="rising"):
        CHAINS[name][0](X0, GRIDS["from zero"].flip(0), seeded(0))


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_an_eta_that_is_neither_ode_nor_sde_is_refused(eta):
    with pytest.raises(PalimpsestError, match=rf"eta in 0\.\.1, got .*eta {eta}"):
        posterior(X0, GRIDS["from zero"], seeded(0), eta=eta)


def test_an_edit_repeats_the_whole_residual_unless_a_strength_is_said():
    assert NoiseSpace("independent", 1.0, independent).recipe.strength == 1.0
    assert NoiseSpace("independent", 0.0, independent, 0.5).recipe.strength == 0.5


@pytest.mark.parametrize("eta", [0.0, -0.1, 1.5, math.nan])
def test_an_eta_that_cyclediffusion_does_not_know_is_refused(eta):
    with pytest.raises(PalimpsestError, match="eta must be above 0 and at most 1"):
        cycle_diffusion(eta)
    assert cycle_diffusion(1.0).eta == 1.0
