"""Negative-prompt inversion beside the published loop and closed forms of its interpolation."""

import math

import pytest
import torch
from palimpsest.pipelines.correction import DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.inversion.negative_prompt import match_tokens, negative_prompt, slerp
from palimpsest.pipelines.lending import Asked
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.pipelines.trajectory_file import from_tensors, to_tensors
from palimpsest.tests.unit.analytic import Prompted, alpha_of, distance, geometric, picture, vp_step

SOURCE, TARGET, CFG, STEPS = 0.4, -0.7, 7.5, 8
IDENTITY = 1e-10  # the same real numbers in another order of float64 operations


# -- between two embeddings ----------------------------------------------------------------------


def circle(degrees, length=1.0):
    """A vector of the plane, as an embedding [1, 1 token, 2 channels]."""
    angle = math.radians(degrees)
    return length * torch.tensor([[[math.cos(angle), math.sin(angle)]]], dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("apart", [1e-4, 10, 90, 170])
def test_equal_lengths_go_round_the_circle_at_an_even_pace(weight, apart):
    ours = slerp(weight, circle(20), circle(20 + apart))
    assert distance(ours, circle(20 + weight * apart)) < 1e-12


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_other_lengths_keep_the_weights_of_the_sines(weight):
    a, b = circle(0, 3.0), circle(60, 0.5)
    sines = [math.sin(math.radians(60) * part) for part in (1 - weight, weight)]
    expected = (sines[0] * a + sines[1] * b) / math.sin(math.radians(60))
    assert distance(slerp(weight, a, b), expected) < 1e-12


@pytest.mark.parametrize("other", [2.0, 0.0, -1.0], ids=["parallel", "zero", "opposite"])
def test_where_there_is_no_circle_the_result_is_finite_and_has_both_ends(other):
    a, b = picture(1, 3, 4, seed=1), other * picture(1, 3, 4, seed=1)
    assert distance(slerp(0.0, a, b), a) < 1e-12
    assert distance(slerp(1.0, a, b), b) < 1e-12
    assert bool(torch.isfinite(slerp(0.5, a, b)).all())
    if other == 2.0:
        assert distance(slerp(0.25, a, b), 1.25 * a) < 1e-12


def test_all_tokens_and_channels_are_one_vector():
    a, b = picture(1, 7, 5, seed=1), picture(1, 7, 5, seed=2)
    assert distance(slerp(0.3, a, b).flatten(), slerp(0.3, a.view(1, -1), b.view(1, -1))[0]) == 0
    token = slerp(0.3, a[:, :1], b[:, :1])
    assert distance(slerp(0.3, a, b)[:, :1], token) > 1e-3  # not token by token


def test_one_embedding_goes_to_many():
    low, high = picture(1, 7, 5, seed=1), picture(3, 7, 5, seed=2)
    both = slerp(0.3, low, high)
    assert distance(both, torch.cat([slerp(0.3, low, row[None]) for row in high])) < 1e-15


def attention(q, context):
    return torch.nn.functional.scaled_dot_product_attention(q, context, context)


def test_repeated_tokens_are_attended_to_as_the_tokens_once():
    a, b, q = picture(1, 4, 8, seed=1), picture(1, 6, 8, seed=2), picture(1, 9, 8, seed=3)
    longer = match_tokens(a, b)
    assert [t.shape for t in longer] == [(1, 12, 8)] * 2
    for before, after in zip((a, b), longer, strict=True):
        assert distance(attention(q, before), attention(q, after)) < 1e-14


def test_equal_token_counts_are_left_alone():
    a, b = picture(1, 4, 8, seed=1), picture(1, 4, 8, seed=2)
    for before, after in zip((a, b), match_tokens(a, b), strict=True):
        assert torch.equal(before, after)


def test_embeddings_of_two_encoders_are_refused():
    with pytest.raises(PalimpsestError, match="has 8 channels and the negative 6"):
        match_tokens(picture(1, 4, 8), picture(1, 4, 6))


# -- the trajectory ------------------------------------------------------------------------------


def chain():
    sigmas = geometric(STEPS + 1)[1:]
    x0 = picture()
    return Trajectory(
        ddim(Prompted(SOURCE), x0, sigmas, scale=vp_scale), sigmas, x0, Recipe("ddim", rows=8)
    )


def text(prompt):
    """A prompt of the analytic denoiser as an embedding of one number."""
    return torch.full((1, 1, 1), prompt, dtype=torch.float64)


def embedding_of(trajectory):
    return trajectory.find(NegativeEmbedding).embedding


def test_every_picture_may_have_an_embedding_of_its_own():
    two = torch.cat([text(SOURCE), text(TARGET)])
    assert len(chain().origin) == len(two)
    assert torch.equal(embedding_of(negative_prompt(chain(), two)), two[None])


def stands_for_it(trajectory, sigma):
    """What both rows of an edit are shown in the place of the negative prompt at a level."""
    carried = trajectory.find(NegativeEmbedding)
    source, target = carried.asked(trajectory, Asked("source"), Asked("target"))
    assert torch.equal(source.negative(sigma), target.negative(sigma))
    return target.negative(sigma)


def made(interpolation=0.0):
    # A second channel, or two numbers on a line would have no angle.
    source, null = (torch.cat([text(p), text(1.0)], -1) for p in (SOURCE, 0.1))
    return negative_prompt(chain(), source, null, interpolation)


def test_the_embedding_of_the_source_stands_for_the_negative_one():
    trajectory = negative_prompt(chain(), text(SOURCE))
    carried = trajectory.find(NegativeEmbedding)
    assert carried.embedding.shape == (1, 1, 1, 1)
    assert (carried.rows, carried.cfg) == ("both", None)
    assert float(stands_for_it(trajectory, trajectory.sigmas[3])) == SOURCE
    assert trajectory.recipe.method == "negative-prompt"
    assert trajectory.recipe.rows == 8
    assert torch.equal(trajectory.latents, chain().latents)


def test_only_at_interpolation_0_is_the_sources_guidance_none():
    assert made(0.0).recipe.source_cfg == 1.0
    assert made(0.5).recipe.source_cfg is None
    assert made(1.0).recipe.source_cfg is None
    assert distance(embedding_of(made(1.0)), torch.tensor([[[[0.1, 1.0]]]])) < 1e-8


def test_a_file_keeps_the_embedding():
    tensors, about = to_tensors(made(0.25))
    back = from_tensors(tensors, about, name="a")
    assert torch.equal(embedding_of(back), embedding_of(made(0.25)))
    assert back.recipe == made(0.25).recipe


@pytest.mark.parametrize("interpolation", [-0.1, 1.5, float("nan")])
def test_an_interpolation_outside_its_range_is_refused(interpolation):
    with pytest.raises(PalimpsestError, match=f"must be 0 to 1, got {interpolation}"):
        negative_prompt(chain(), text(SOURCE), text(0.0), interpolation)


def test_an_interpolation_without_its_other_end_is_refused():
    with pytest.raises(PalimpsestError, match=r"is 0\.5, which needs a negative"):
        negative_prompt(chain(), text(SOURCE), None, 0.5)


# -- the edit ------------------------------------------------------------------------------------


def under(trajectory, prompt, cfg):
    """A denoiser guided away from what the trajectory carries, as a host makes it."""
    model = Prompted(prompt)

    def denoise(x, sigma):
        z, negative = x * vp_scale(sigma), float(stands_for_it(trajectory, sigma).flatten()[0])
        cond, uncond = (model._noise(z, sigma, p) for p in (prompt, negative))
        return x - sigma * (uncond + cfg * (cond - uncond))

    return denoise


def edit(trajectory, correction):
    source_cfg = trajectory.recipe.source_cfg
    branches = Branches(
        target=under(trajectory, TARGET, CFG),
        source=under(trajectory, SOURCE, CFG if source_cfg is None else source_cfg),
    )
    return Edit(trajectory, branches, correction=correction, keep_source=True).run()


def published(trajectory):
    """[source, target] in the published coordinates: the source's embedding for every uncond."""
    sigmas, model = trajectory.sigmas, Prompted(0.0)
    rows = [trajectory.latents[-1] * vp_scale(sigmas[-1])] * 2
    for level in range(len(sigmas) - 1, 0, -1):
        alphas = alpha_of(sigmas[level]), alpha_of(sigmas[level - 1])
        for i, prompt in enumerate((SOURCE, TARGET)):
            uncond, cond = (model._noise(rows[i], sigmas[level], p) for p in (SOURCE, prompt))
            rows[i] = vp_step(uncond + CFG * (cond - uncond), *alphas, rows[i])
    return [row / vp_scale(sigmas[0]) for row in rows]


def test_without_correction_the_edit_is_the_published_one():
    trajectory = negative_prompt(chain(), text(SOURCE))
    done = edit(trajectory, UNCORRECTED)
    source, target = published(trajectory)
    assert distance(done.source, source) < IDENTITY
    assert distance(done.latent, target) < IDENTITY
    assert distance(done.source, trajectory.origin) > 1e-3  # it drifts, though at guidance 1


def test_direct_inversion_keeps_the_source_and_moves_the_target_no_other_way():
    """Without a control nothing of the source reaches the target."""
    trajectory = negative_prompt(chain(), text(SOURCE))
    done = edit(trajectory, DIRECT_INVERSION)
    assert torch.equal(done.source, trajectory.origin)
    assert distance(done.latent, published(trajectory)[1]) < IDENTITY


@pytest.mark.parametrize("shape", [(2, 1, 2, 3), (1, 3, 2, 3), (1, 2, 3)], ids=str)
def test_embeddings_of_other_steps_or_pictures_are_refused(shape):
    with pytest.raises(PalimpsestError, match="unconditional embeddings are "):
        NegativeEmbedding(torch.zeros(shape)).check(chain())
