"""Cycle-SDE beside its published form, restated here in variance-preserving z, and closed forms."""

import math
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.correction import CYCLE
from palimpsest.pipelines.couplings import ddim, denoise_chain, markov
from palimpsest.pipelines.cycle_sde import SourceChain
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.pipelines.trajectory_file import from_tensors, to_tensors
from palimpsest.tests.unit.analytic import (
    Gaussian,
    Prompted,
    alpha_of,
    distance,
    geometric,
    picture,
)
from palimpsest.tests.unit.chains import PerRow, stable_diffusion_sigmas
from safetensors import safe_open
from safetensors.torch import save_file

SOURCE, TARGET, CFG = 0.4, -0.7, 2.0
STEPS = 8
X0 = picture()

#: Levels with a lowest one above 0, where the published form can divide by the size of its noise.
SIGMAS = geometric(STEPS + 1)[1:]

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-12


def source_chain(source, sigmas=SIGMAS, eta=1.0, levels_at_once=8, invert=None):
    return SourceChain(sigmas, source, invert or source, vp_scale, eta, levels_at_once)


def record(source=None, sigmas=SIGMAS, **options):
    return source_chain(source or PerRow(Prompted(SOURCE, CFG)), sigmas, **options).of(
        X0, seeded(3)
    )


# --- the published form


def published(source, target, trajectory, start, eta):
    """Eq. 8, the noise that leads from one recorded latent to the next, and eq. 6, with it."""
    sigmas = trajectory.sigmas
    chain = trajectory.latents * vp_scale(sigmas).view(-1, 1, 1, 1, 1)
    z = start * vp_scale(sigmas[-1])
    for level in range(trajectory.steps, 0, -1):
        a_t, a_s = alpha_of(sigmas[level]), alpha_of(sigmas[level - 1])
        sd = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()

        def mean(model, z, level=level, a_t=a_t, a_s=a_s, sd=sd):
            noise = model.noise(z, sigmas[level])
            clean = (z - (1 - a_t).sqrt() * noise) / a_t.sqrt()
            return a_s.sqrt() * clean + (1 - a_s - sd**2).sqrt() * noise

        w = (chain[level - 1] - mean(source, chain[level])) / sd
        z = mean(target, z) + sd * w
    return z / vp_scale(sigmas[0])


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("target", [SOURCE, TARGET], ids=["same", "other"])
def test_the_delta_form_is_the_published_one(target, eta):
    trajectory = record(eta=eta)
    source, target = Prompted(SOURCE, CFG), Prompted(target, CFG)
    start = trajectory.start + 5 * picture(seed=1)
    done = Edit(trajectory, Branches(target, source), CYCLE, eta).run(start=start)
    expected = published(source, target, trajectory, start, eta)
    assert distance(done.latent, expected) < IDENTITY
    assert distance(expected, X0) > 0.1


def test_the_chain_is_the_published_markov_chain():
    """Eq. 7 in z: shrink, and add noise, from one level to the next."""
    chain, draw = markov(X0, SIGMAS, seeded(3)), seeded(3)
    z = X0 * vp_scale(SIGMAS[0])
    for level in range(1, STEPS + 1):
        kept = alpha_of(SIGMAS[level]) / alpha_of(SIGMAS[level - 1])
        z = kept.sqrt() * z + (1 - kept).sqrt() * draw(X0)
        assert distance(chain[level] * vp_scale(SIGMAS[level]), z) < IDENTITY


def test_at_eta_zero_the_chain_is_ddim_inversion_and_no_noise_is_drawn():
    invert, source = Prompted(SOURCE), Prompted(SOURCE, CFG)
    told = []
    how = source_chain(PerRow(source), eta=0.0, invert=invert)
    recorded = how.of(X0, None, on_step=lambda step, *_: told.append(step))
    assert told == list(range(1, STEPS + 1))
    assert torch.equal(recorded.latents, ddim(Prompted(SOURCE), X0, SIGMAS, scale=vp_scale))
    assert recorded.recipe == Recipe("ddim")
    assert record(eta=0.5).recipe == Recipe("markov", eta=0.5, strength=1.0)


# --- nothing edited


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_untouched_picture_comes_back_bit_for_bit_without_a_network(dtype, eta):
    x0, denoise = X0.to(dtype), Prompted(SOURCE, CFG)
    recorded = SourceChain(SIGMAS, None, denoise, vp_scale, eta).of(x0, seeded(0))
    assert recorded.denoised is None
    assert distance(recorded.start, x0) > 10
    done = Edit(recorded, Branches(denoise, denoise), CYCLE, eta).run()
    assert done.latent.dtype == dtype
    assert torch.equal(done.latent, x0)
    assert denoise.calls == []


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_it_does_so_where_both_branches_are_computed(dtype, eta):
    """Two objects that say the same: what they say cancels to the last bit, at every level."""
    x0, source, target = X0.to(dtype), Prompted(SOURCE, CFG), Prompted(SOURCE, CFG)
    recorded = source_chain(source, eta=eta, levels_at_once=1).of(x0, seeded(0))
    seen = []
    done = Edit(recorded, Branches(target, source), CYCLE, eta).run(lambda _, x, __: seen.append(x))
    assert all(torch.equal(*pair) for pair in zip(seen[::-1], recorded.latents, strict=False))
    assert torch.equal(done.latent, x0)
    assert target.calls == [len(X0)] * STEPS


# --- Gaussian data


@st.composite
def grids(draw):
    gaps = draw(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=12))
    lowest = draw(st.sampled_from([0.0, 0.02, 1.0]))
    return torch.tensor(list(accumulate([lowest, *gaps])), dtype=torch.float64)


def what_is_left(data, sigmas, *, eta=1.0, target=None, edit=None):
    """How far the end is from the picture where the noisiest latent was moved by `edit`."""
    recorded = source_chain(data, sigmas, eta, levels_at_once=1).of(X0, seeded(0))
    start = recorded.start if edit is None else recorded.start + edit
    return Edit(recorded, Branches(target or data, data), CYCLE, eta).run(start=start).latent - X0


@settings(max_examples=50)
@given(grids(), st.floats(0.1, 3.0))
def test_an_edit_is_pulled_back_by_the_same_factor_on_every_grid(sigmas, std):
    """The steps telescope: what is left is variance over variance, of both ends."""
    edit = picture(seed=1)
    gain = (std**2 + sigmas[0] ** 2) / (std**2 + sigmas[-1] ** 2)
    assert distance(what_is_left(Gaussian(std=std), sigmas, edit=edit), gain * edit) < IDENTITY


def test_on_a_grid_that_ends_at_zero_it_is_the_published_factor():
    edit, data = picture(seed=1), Gaussian(std=0.5)
    left = what_is_left(data, drag_grid(20), edit=edit)
    assert distance(left, 0.25 / (0.25 + drag_grid(20)[-1] ** 2) * edit) < IDENTITY
    assert float((left / edit).mean()) == pytest.approx(0.04602, abs=5e-6)


def drag_grid(steps):
    """0, and six tenths of `steps` levels over the thousand, up to sigma 2.28."""
    timesteps = torch.linspace(0, 999, steps + 1, dtype=torch.float64).round().long().unique()
    levels = stable_diffusion_sigmas()[timesteps[timesteps < 600][1:]]
    return torch.cat([torch.zeros(1, dtype=torch.float64), levels])


def left_by_the_ode(sigmas):
    edit = picture(seed=1)
    left = what_is_left(Gaussian(std=0.5), sigmas, eta=0.0, edit=edit) / edit
    assert distance(left, left.mean()) < 1e-10  # a factor; divided by edits as small as 0.01
    return float(left.mean())


@pytest.mark.parametrize(
    ("steps", "gain"), [(20, 0.1862), (50, 0.2012), (100, 0.2070), (200, 0.2103), (1000, 0.2133)]
)
def test_the_ode_keeps_more_and_how_much_depends_on_the_grid(steps, gain):
    """Numbers that were computed for the project's notes, by other code, to the digits given."""
    assert left_by_the_ode(drag_grid(steps)) == pytest.approx(gain, abs=5e-5)


def test_in_the_limit_of_many_steps_it_keeps_the_square_root():
    high, limit = 2.2765, math.sqrt(0.25 / (0.25 + 2.2765**2))
    errors = [
        limit - left_by_the_ode(torch.linspace(0, high, steps + 1, dtype=torch.float64))
        for steps in (200, 400)
    ]
    assert 0 < errors[1] < 2e-3
    assert 1.9 < errors[0] / errors[1] < 2.1  # of first order


@pytest.mark.parametrize("sigma", [1.0, 0.1, 1e-3, 1e-6])
def test_the_less_noise_the_less_is_changed(sigma):
    """Of another mean the share sigma^2 / (variance + sigma^2) comes in, and as much of an edit is
    lost: both go to 0 with sigma^2."""
    source, target, edit = Gaussian(), Gaussian(mean=-2.0), picture(seed=1)
    sigmas = geometric(6, low=sigma / 30, high=sigma)
    share = sigma**2 / (source.std**2 + sigma**2)
    rewritten = what_is_left(source, sigmas, target=target)
    assert distance(rewritten, torch.full_like(X0, share * (-2.0 - source.mean))) < IDENTITY
    moved = what_is_left(source, sigmas, edit=edit)
    assert distance(moved, edit - share * edit) < IDENTITY
    assert distance(moved, edit) <= (sigma / source.std) ** 2 * float(edit.abs().max()) + IDENTITY


# --- the source's guesses


@pytest.mark.parametrize(
    ("levels_at_once", "calls", "told"),
    [
        (1, [2] * STEPS, list(range(1, STEPS + 1))),
        (3, [6, 6, 4], [3, 6, 8]),
        (STEPS, [16], [8]),
        (STEPS + 5, [16], [8]),
    ],
)
def test_many_levels_of_the_source_in_one_call_are_its_levels_one_by_one(
    levels_at_once, calls, told
):
    chain, denoise, done = markov(X0, SIGMAS, seeded(1)), PerRow(Prompted(SOURCE, CFG)), []
    guesses = denoise_chain(
        denoise, chain, SIGMAS, levels_at_once=levels_at_once, on_levels=done.append
    )
    expected = [Prompted(SOURCE, CFG)(chain[i], SIGMAS[i]) for i in range(1, STEPS + 1)]
    assert distance(guesses, torch.stack(expected)) < IDENTITY
    assert denoise.calls == calls
    assert done == told


def test_one_level_a_call_needs_no_level_per_row():
    met = []

    def denoise(x, sigma):
        met.append(sigma)
        return x

    denoise_chain(denoise, markov(X0, SIGMAS, seeded(1)), SIGMAS, levels_at_once=1)
    assert [sigma.shape for sigma in met] == [()] * STEPS
    assert torch.stack(met).tolist() == SIGMAS[1:].tolist()


@pytest.mark.parametrize("levels_at_once", [1, 3, STEPS])
def test_later_edits_read_the_guesses_that_were_kept(levels_at_once):
    source = PerRow(Prompted(SOURCE, CFG))
    recorded = record(source, levels_at_once=levels_at_once)
    assert sum(source.calls) == STEPS * len(X0)
    source.calls.clear()
    for prompt in (TARGET, 0.9):
        target = Prompted(prompt, CFG)
        done = Edit(recorded, Branches(target, source), CYCLE, 1.0).run()
        start = recorded.start
        expected = published(Prompted(SOURCE, CFG), Prompted(prompt, CFG), recorded, start, 1.0)
        assert distance(done.latent, expected) < IDENTITY
        assert source.calls == []
        assert target.calls == [len(X0)] * STEPS


def test_a_chain_may_get_the_guesses_of_another_source():
    recorded, other = record(), PerRow(Prompted(0.9, CFG))
    again = source_chain(other, levels_at_once=3).denoise(recorded)
    expected = [Prompted(0.9, CFG)(recorded.latents[i], SIGMAS[i]) for i in range(1, STEPS + 1)]
    assert distance(again.denoised, torch.stack(expected)) < IDENTITY
    assert distance(again.denoised, recorded.denoised) > 0.01
    assert again.latents is recorded.latents
    assert SourceChain(SIGMAS, None, other, vp_scale).denoise(recorded) is recorded


def test_without_them_the_source_is_run_and_nothing_else_changes():
    source, target = Prompted(SOURCE, CFG), Prompted(TARGET, CFG)
    recorded = record(PerRow(source))
    source.calls.clear()
    kept, computed = (
        Edit(trajectory, Branches(target, source), CYCLE, 1.0).run().latent
        for trajectory in (recorded, replace(recorded, denoised=None))
    )
    assert distance(kept, computed) < IDENTITY
    assert source.calls == [len(X0)] * STEPS


# --- the trajectory


def file_of(trajectory, path):
    tensors, about = to_tensors(trajectory)
    save_file(tensors, path, about)
    return path


def read(file):
    with safe_open(file, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        return from_tensors(tensors, stored.metadata(), name="a.safetensors")


def test_a_file_gives_the_guesses_back_bit_for_bit(tmp_path):
    recorded = record()
    back = read(file_of(recorded, tmp_path / "a.safetensors"))
    assert back.denoised.dtype == recorded.denoised.dtype
    assert torch.equal(back.denoised, recorded.denoised)
    assert back.recipe == Recipe("markov", eta=1.0, strength=1.0)


def test_a_file_without_guesses_reads(tmp_path):
    recorded = replace(record(), denoised=None)
    assert "denoised" not in to_tensors(recorded)[0]
    back = read(file_of(recorded, tmp_path / "a.safetensors"))
    assert back.denoised is None
    assert torch.equal(back.latents, recorded.latents)


def test_guesses_and_what_is_carried_move_with_the_latents_to_a_device():
    moved = record().with_carried(NegativeEmbedding(picture(1, 1, 2, 3))).to("meta")
    (carried,) = moved.carried
    for tensor in (moved.denoised, moved.latents, carried.embedding):
        assert tensor.device.type == "meta"
    assert moved.sigmas.device.type == "cpu"


def test_a_preview_shows_the_guesses_that_were_kept():
    recorded = record()
    sigmas, guesses = recorded.clean_estimates(STEPS + 1)
    assert sigmas == SIGMAS.flip(0).tolist()
    assert torch.equal(guesses[:-1], recorded.denoised.flip(0))
    assert torch.equal(guesses[-1], X0)


def test_the_origin_may_be_in_another_scaling():
    recorded = source_chain(PerRow(Prompted(SOURCE))).of(X0, seeded(0), origin=3 * X0)
    assert torch.equal(recorded.origin, 3 * X0)
    assert torch.equal(recorded.latents[0], X0)
    assert record().origin is X0


# --- bad input


@pytest.mark.parametrize("eta", [-0.1, 1.5, math.nan])
def test_an_eta_that_is_neither_ode_nor_sde_is_refused(eta):
    with pytest.raises(PalimpsestError, match=r"^Eta must be 0 \(ODE\) to 1 \(SDE\), got "):
        record(eta=eta)


@pytest.mark.parametrize("levels", [0, -1])
def test_a_call_of_no_level_is_refused(levels):
    with pytest.raises(PalimpsestError, match=f"^At least 1 level goes into a call, got {levels}:"):
        record(levels_at_once=levels)


@pytest.mark.parametrize("shape", [(STEPS + 1, 2, 4, 3, 5), (STEPS, 1, 4, 3, 5), (STEPS, 4, 3, 5)])
def test_guesses_of_another_shape_are_refused(shape):
    recorded = record()
    with pytest.raises(PalimpsestError, match=r"must be \(8, 2, 4, 3, 5\): one for each level"):
        replace(recorded, denoised=torch.zeros(shape))
    tensors, about = to_tensors(recorded)
    with pytest.raises(PalimpsestError, match=r"^a is damaged\. The trajectory's denoised guesses"):
        from_tensors(tensors | {"denoised": torch.zeros(shape)}, about, name="a")


def test_levels_that_do_not_rise_are_refused():
    with pytest.raises(PalimpsestError, match="rising"):
        record(sigmas=SIGMAS.flip(0))
    with pytest.raises(PalimpsestError, match="rising"):
        Trajectory(X0.expand(9, -1, -1, -1, -1), SIGMAS.flip(0), X0, Recipe("markov"))


@pytest.mark.parametrize("levels_at_once", [1, 3])
def test_what_the_source_is_asked_is_told(levels_at_once):
    told, chain = [], source_chain(PerRow(Prompted(SOURCE)), levels_at_once=levels_at_once)
    recorded = chain.of(X0, seeded(0), on_levels=told.append)
    assert told[-1] == STEPS and len(told) == -(-STEPS // levels_at_once)
    again = []
    chain.denoise(recorded, again.append)
    assert again == told
