"""Null-text inversion against its published loop, restated in its own coordinates."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.inversion.null_text import Adam, NullText, carried_by, fit
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import alpha_of, picture, vp_step

CFG = 7.5
TOKENS, WIDTH = 5, 3
EMPTY = picture(1, TOKENS, WIDTH, seed=4)
COND = EMPTY + 0.05 * picture(1, TOKENS, WIDTH, seed=3)


def sigmas_of(steps):
    """Rising levels from above 0, as the published schedule has them."""
    return torch.logspace(-1.5, 1.1, steps + 1, dtype=torch.float64)


def noise_under(z, sigma, embedding):
    """A small network: not linear, mixes channels, and depends on every token."""
    weight = picture(WIDTH, z.shape[1], seed=5).to(embedding)
    shift = torch.tanh(embedding @ weight).mean(1)[..., None, None]
    mixed = z + 0.3 * z.roll(1, dims=1) + shift
    return torch.tanh(mixed) * (0.5 + 0.1 * torch.cos(sigma)) + 0.3 * shift


def denoised_under(x, sigma, embedding):
    return x - sigma * noise_under(x * alpha_of(sigma) ** 0.5, sigma, embedding)


@dataclass
class Network:
    """The two predictions that the pipeline asks for; it writes down who was asked about."""

    asked: list = field(default_factory=list)
    conditional_calls: int = 0

    def conditional(self, x, sigma):
        self.conditional_calls += 1
        return denoised_under(x, sigma, COND.expand(len(x), -1, -1))

    def unconditional(self, x, sigma, embedding, pictures):
        self.asked.append((list(pictures), torch.is_grad_enabled() and embedding.requires_grad))
        return denoised_under(x, sigma, embedding)


def chain_of(sigmas, pictures=1, dtype=torch.float64):
    """Latents near which the guided way down can be led."""
    x0 = picture(pictures, 4, 3, 5).to(dtype)
    latents = [x0]
    for i in range(1, len(sigmas)):
        sigma = sigmas[i]
        z = latents[-1] * alpha_of(sigma) ** 0.5
        noise = noise_under(z, sigma, COND.to(dtype))
        latents.append((latents[-1] + (sigma - sigmas[i - 1]) * noise).to(dtype))
    return torch.stack(latents)


def published(chain, sigmas, settings, rows=1):
    """The published loop for one picture, in VP coordinates, with torch's Adam.

    Args:
        rows: Embeddings that are optimised together under the loss of the first.

    Returns:
        Latents from noisy to clean, the first embedding of every step, and the inner steps.
    """
    steps = len(sigmas) - 1
    alphas = alpha_of(sigmas)
    stars = [latent * alpha**0.5 for latent, alpha in zip(chain, alphas, strict=True)]
    z, u = stars[-1], EMPTY.repeat(rows, 1, 1)
    path, embeddings, spent = [z], [], 0
    for i in range(steps):
        u = u.clone().detach().requires_grad_()
        optimizer = torch.optim.Adam([u], lr=settings.learning_rate * (1 - i / 100))
        now, after = alphas[steps - i], alphas[steps - i - 1]
        e_cond = noise_under(z, sigmas[steps - i], COND)
        for _ in range(settings.inner_steps):
            e_uncond = noise_under(z, sigmas[steps - i], u)[:1]
            moved = vp_step(e_uncond + settings.cfg * (e_cond - e_uncond), now, after, z)
            loss = torch.nn.functional.mse_loss(moved, stars[steps - i - 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent += 1
            if loss.item() < settings.epsilon + i * 2e-5:
                break
        with torch.no_grad():
            e_uncond = noise_under(z, sigmas[steps - i], u)[:1]
            z = vp_step(e_uncond + settings.cfg * (e_cond - e_uncond), now, after, z)
        path.append(z)
        embeddings.append(u.detach())
    return path, embeddings, spent


def ours(chain, sigmas, settings, network=None):
    network = network or Network()
    return fit(network.conditional, network.unconditional, chain, sigmas, EMPTY, settings)


@pytest.mark.parametrize("variant", ["null-text", "source only", "null-latent"])
def test_the_trajectory_is_the_path_its_picture_and_what_its_variant_shows(variant):
    sigmas, settings = sigmas_of(3), NullText(cfg=2.0, inner_steps=1)
    latents = chain_of(sigmas)
    chain = Trajectory(latents, sigmas, latents[0], Recipe("ddim", "destination", rows=7))
    fitted = ours(latents, sigmas, settings)
    made = carried_by(chain, fitted, settings, variant)
    method = "null-latent" if variant == "null-latent" else "null-text"
    assert made.recipe == replace(chain.recipe, method=method, cfg=2.0)
    assert made.latents is fitted.latents
    assert torch.equal(made.image, latents[0])
    shown = made.find(NegativeEmbedding)
    if variant == "null-latent":
        assert shown is None
    else:
        assert torch.equal(shown.embedding, fitted.uncond)
        assert shown.settings == {
            "rows": "source" if variant == "source only" else "both",
            "cfg": 2.0,
        }


def in_vp(latents, sigmas):
    return latents * alpha_of(sigmas).sqrt().view(-1, *[1] * (latents.ndim - 1))


def in_order(noisy_to_clean):
    return torch.stack(noisy_to_clean[::-1])


@pytest.mark.parametrize("inner_steps", [0, 1, 4])
def test_the_path_and_the_embeddings_are_those_of_the_published_loop(inner_steps):
    sigmas, settings = sigmas_of(12), NullText(CFG, inner_steps, epsilon=0.0)
    chain = chain_of(sigmas)
    path, embeddings, spent = published(chain, sigmas, settings)
    fitted = ours(chain, sigmas, settings)
    assert torch.allclose(in_vp(fitted.latents, sigmas), in_order(path), rtol=1e-9, atol=1e-10)
    assert torch.allclose(fitted.uncond, in_order(embeddings), rtol=1e-7, atol=1e-9)
    assert fitted.inner_steps == spent == 12 * inner_steps


def test_a_level_is_left_once_its_loss_was_low_enough_before_the_last_update():
    sigmas, settings = sigmas_of(12), NullText(CFG, 10, epsilon=3e-3)
    chain = chain_of(sigmas)
    path, embeddings, spent = published(chain, sigmas, settings)
    fitted = ours(chain, sigmas, settings)
    assert 12 < spent < 120  # some levels stop early, and some do not at once
    assert fitted.inner_steps == spent
    assert torch.allclose(in_vp(fitted.latents, sigmas), in_order(path), rtol=1e-9, atol=1e-10)
    assert torch.allclose(fitted.uncond, in_order(embeddings), rtol=1e-7, atol=1e-9)


def test_null_latents_path_is_that_of_the_source_only_variant():
    """The recurrence of the ablation, restated: two embeddings, one loss, offsets."""
    sigmas, settings = sigmas_of(8), NullText(CFG, 4, epsilon=0.0)
    chain, alphas = chain_of(sigmas), alpha_of(sigmas)
    z, u = chain[-1] * alphas[-1] ** 0.5, EMPTY.repeat(2, 1, 1)
    path = [z]
    for i in range(8):
        now, after, sigma = alphas[8 - i], alphas[7 - i], sigmas[8 - i]
        e_cond = noise_under(z, sigma, COND)

        def moved(embedding, z=z, e_cond=e_cond, now=now, after=after, sigma=sigma):
            e_uncond = noise_under(z, sigma, embedding)
            return vp_step(e_uncond + CFG * (e_cond - e_uncond), now, after, z)

        u = u.clone().detach().requires_grad_()
        optimizer = torch.optim.Adam([u], lr=1e-2 * (1 - i / 100))
        for _ in range(4):
            loss = torch.nn.functional.mse_loss(moved(u)[:1], chain[7 - i] * after**0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            plain = moved(EMPTY)
            offset = moved(u)[:1] - plain
            z = plain + offset
        path.append(z)
        assert torch.equal(u[1:].detach(), EMPTY)  # the target's embedding is left alone
    fitted = ours(chain, sigmas, settings)
    assert torch.allclose(in_vp(fitted.latents, sigmas), in_order(path), rtol=1e-9, atol=1e-10)


def test_every_picture_is_fitted_as_if_it_were_alone_and_left_alone_when_it_is_done():
    sigmas, settings = sigmas_of(6), NullText(CFG, 8, epsilon=1.3e-2)
    chain, network = chain_of(sigmas, pictures=3), Network()
    chain[:-1, 1] = chain[1:, 1]  # a picture that is far from its goal at every level
    together = ours(chain, sigmas, settings, network)
    alone = [ours(chain[:, [b]], sigmas, settings) for b in range(3)]
    for b, one in enumerate(alone):
        assert torch.allclose(together.latents[:, [b]], one.latents, rtol=1e-10, atol=1e-12)
        assert torch.allclose(together.uncond[:, [b]], one.uncond, rtol=1e-8, atol=1e-10)
        assert torch.allclose(together.losses[:, [b]], one.losses, rtol=1e-8, atol=1e-12)
    assert len({one.inner_steps for one in alone}) > 1
    assert together.inner_steps == sum(one.inner_steps for one in alone)
    rows = sum(len(pictures) for pictures, learns in network.asked if learns)
    assert rows == together.inner_steps


def test_nothing_is_evaluated_twice():
    sigmas, network = sigmas_of(7), Network()
    fitted = ours(chain_of(sigmas), sigmas, NullText(CFG, 3, epsilon=0.0), network)
    assert network.conditional_calls == 7
    assert [learns for _, learns in network.asked] == 7 * [True, True, True, False]
    assert fitted.inner_steps == 21


def test_every_step_is_told_once_with_the_path_and_the_guess_that_led_there():
    sigmas, told, network = sigmas_of(5), [], Network()
    chain, settings = chain_of(sigmas), NullText(CFG, 2)
    fitted = fit(
        network.conditional,
        network.unconditional,
        chain,
        sigmas,
        EMPTY,
        settings,
        on_step=lambda *step: told.append(step),
    )
    assert [n for n, *_ in told] == [1, 2, 3, 4, 5]
    for n, x, guess in told:
        above, c = fitted.latents[-n], sigmas[-n - 1] / sigmas[-n]
        assert torch.equal(x, fitted.latents[-n - 1])
        assert torch.allclose(x, c * above + (1 - c) * guess, rtol=1e-12)


def test_the_losses_are_what_the_path_misses_of_the_chain():
    sigmas = sigmas_of(5)
    chain = chain_of(sigmas, pictures=2)
    fitted = ours(chain, sigmas, NullText(CFG, 2))
    missed = in_vp(fitted.latents - chain, sigmas)[:-1].square().flatten(2).mean(2)
    assert torch.allclose(fitted.losses, missed, rtol=1e-9)
    left_alone = ours(chain, sigmas, NullText(CFG, 0))
    assert bool((fitted.losses[-1] < left_alone.losses[-1]).all())


def test_the_constants_are_the_published_ones_up_to_50_steps_and_stay_positive_above():
    settings = NullText()
    assert (settings.cfg, settings.inner_steps) == (7.5, 10)
    assert settings.rate(30, 50) == pytest.approx(0.7e-2)
    assert settings.rate(9, 10) == pytest.approx(0.91e-2)
    assert settings.threshold(30, 50) == pytest.approx(1e-5 + 30 * 2e-5)
    assert settings.rate(999, 1000) == pytest.approx(settings.rate(49, 50), rel=0.02)
    assert settings.threshold(500, 1000) == settings.threshold(25, 50)


def test_adam_is_torchs_where_every_row_moves():
    slopes = [picture(2, 3, seed=seed) for seed in range(6)]
    leaf = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    value, adam = torch.zeros(2, 3, dtype=torch.float64), Adam(*torch.zeros(2, 2, 3).double())
    for slope in slopes:
        leaf.grad = slope.clone()
        optimizer.step()
        moved, adam = adam.step(slope, [0, 1], 0.01)
        value = value - moved
    assert torch.allclose(value, leaf.detach(), rtol=1e-12)


def test_a_step_of_adam_leaves_its_state_and_the_rows_that_rest_alone():
    before = Adam(*torch.ones(2, 2, 3).double(), 4)
    slope = picture(1, 3)
    moved, after = before.step(slope, [1], 0.01)
    assert torch.equal(before.mean, torch.ones(2, 3)) and torch.equal(before.square, before.mean)
    assert torch.equal(after.mean[0], before.mean[0]) and after.count == 5
    again, _ = before.step(slope, [1], 0.01)
    assert torch.equal(moved, again)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(PalimpsestError, match="The inner steps must be 0 or more, got -1"):
        NullText(inner_steps=-1)
    with pytest.raises(PalimpsestError, match="The early stop must be a loss of 0 or more"):
        NullText(epsilon=float("nan"))
    with pytest.raises(PalimpsestError, match="a loss of 0 or more, got inf"):
        NullText(epsilon=float("inf"))
    with pytest.raises(PalimpsestError, match="The cfg is 1, at which nothing depends"):
        NullText(cfg=1.0)


def test_an_optimisation_that_leaves_the_finite_numbers_says_where():
    sigmas = sigmas_of(4)
    network = Network()
    network.unconditional = lambda x, _sigma, u, _pictures: x * (u.sum() + torch.inf)
    with pytest.raises(PalimpsestError, match=r"left the finite numbers at step 1 of 4 \(sigma"):
        fit(network.conditional, network.unconditional, chain_of(sigmas), sigmas, EMPTY, NullText())
