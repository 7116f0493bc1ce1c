"""The edit loop beside the published loops, restated here in their own coordinates."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.correction import (
    ADD_SOURCE,
    DIRECT_INVERSION,
    UNCORRECTED,
    Correction,
    residual,
)
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.kept_region import outside
from palimpsest.pipelines.rows import Rows as PairOfRows
from palimpsest.pipelines.schedule import step_down, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, alpha_of, distance, geometric, picture, vp_step
from palimpsest.tests.unit.prompts import prompt

SOURCE, TARGET, CFG = 0.4, -0.7, 7.5
STEPS = 8
X0 = picture()

#: The same real numbers in another order of float64 operations, over a few steps of guidance 7.5.
IDENTITY = 1e-10
#: The same in float32, on latents of order 30.
FLOAT32 = 1e-6


def recorded(steps=STEPS, dtype=torch.float64, low=0.03):
    """A chain by DDIM inversion at cfg 1, from the levels of a parity run (none is 0)."""
    sigmas = geometric(steps + 1, low=low)[1:]
    x0 = X0.to(dtype)
    latents = ddim(Prompted(SOURCE), x0, sigmas, scale=vp_scale)
    return Trajectory(latents, sigmas, x0, Recipe("ddim"))


def branches(cfg=CFG, target=TARGET):
    return Branches(target=Prompted(target, cfg), source=Prompted(SOURCE, cfg))


def edit(trajectory=None, made=None, mask=None, **options):
    trajectory = trajectory or recorded()
    kept = outside(mask, trajectory)
    return Edit(trajectory, made or branches(), after=kept, **options)


def relative(a, b):
    return float((a - b).norm() / b.norm())


# -- the source row ------------------------------------------------------------------------------


def test_direct_inversion_returns_the_source_bit_for_bit_and_never_runs_it():
    trajectory, made = recorded(dtype=torch.float32), branches()
    done = edit(trajectory, made).run()
    assert torch.equal(done.source, trajectory.origin)
    assert made.source.calls == []
    assert made.target.calls == [len(X0)] * STEPS


def test_where_nothing_was_run_the_guess_of_a_step_is_the_picture():
    chain = recorded()
    start = chain.latents[-1]
    same = Prompted(SOURCE, CFG)
    along = edit(chain, Branches(same, same), correction=ADD_SOURCE)
    moved = along.step(0, PairOfRows(start, start))
    assert torch.equal(moved.target, chain.latents[-2])
    assert torch.equal(moved.guess.denoised, chain.latents[0])


def test_the_general_step_with_its_residual_reaches_the_same_latent():
    """A scale that is not quite 1 takes the drifting path: guided source, plus R, at every step."""
    almost = Correction(scale=1 - 1e-12)
    assert not almost.on_chain
    trajectory, made = recorded(dtype=torch.float32), branches()
    done = edit(trajectory, made, correction=almost, keep_source=True).run()
    assert made.source.calls == [len(X0)] * STEPS
    assert relative(done.source, trajectory.origin) < FLOAT32
    exact = edit(trajectory).run()
    assert torch.equal(done.latent, exact.latent)  # nothing reads the source here


def test_the_residual_itself_brings_the_source_back():
    trajectory, denoise = recorded(), Prompted(SOURCE, CFG)
    x = trajectory.start
    for level in range(STEPS, 0, -1):
        sigma, sigma_next = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        step, chain = step_down(sigma, sigma_next), trajectory.latents
        r = residual(chain[level], chain[level - 1], denoise(chain[level], sigma), step)
        x = step.c * x + (1 - step.c) * denoise(x, sigma) + r
        assert float(r.abs().max()) > 1e-3  # not a correction of nothing
    assert relative(x, trajectory.origin) < IDENTITY


def test_without_correction_the_source_drifts():
    trajectory = recorded(dtype=torch.float32)
    done = edit(trajectory, correction=UNCORRECTED, keep_source=True).run()
    assert relative(done.source, trajectory.origin) > 0.1


def published_source(trajectory, scale, interval):
    """Direct Inversion's offsets with a scale and an interval, in the published coordinates."""
    z_chain = trajectory.latents * vp_scale(trajectory.sigmas).view(-1, 1, 1, 1, 1)
    model, z = Prompted(SOURCE, CFG), z_chain[-1]
    for i, level in enumerate(range(trajectory.steps, 0, -1)):
        sigma, sigma_next = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        arrived = vp_step(model.noise(z, sigma), alpha_of(sigma), alpha_of(sigma_next), z)
        offset = scale * (z_chain[level - 1] - arrived) if i % interval == 0 else 0
        z = arrived + offset
    return z / vp_scale(trajectory.sigmas[0])


@pytest.mark.parametrize("scale", [0.0, 0.4, 0.8, 1.0, 1.5])
@pytest.mark.parametrize("interval", [1, 2, 3, 5])
def test_scale_and_interval_are_the_published_ablations(scale, interval):
    trajectory = recorded()
    correction = Correction(scale=scale, interval=interval)
    done = edit(trajectory, correction=correction, keep_source=True).run()
    expected = published_source(trajectory, scale, interval)
    assert relative(done.source, expected) < IDENTITY
    free = published_source(trajectory, 0.0, 1)
    assert scale == 0 or relative(expected, free) > 1e-3


def test_a_smaller_scale_leaves_more_of_the_drift():
    trajectory = recorded()
    drifts = [
        relative(
            edit(trajectory, correction=Correction(s), keep_source=True).run().source,
            trajectory.origin,
        )
        for s in (0.0, 0.4, 0.8, 1.0)
    ]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] == 0


# -- the target ----------------------------------------------------------------------------------


def published_target(trajectory, added=False, strength=1.0):
    """The target from the top of the chain; `added` moves it by the source's own offsets too."""
    z_chain = trajectory.latents * vp_scale(trajectory.sigmas).view(-1, 1, 1, 1, 1)
    target, source, z = Prompted(TARGET, CFG), Prompted(SOURCE, CFG), z_chain[-1]
    for level in range(trajectory.steps, 0, -1):
        sigma, sigma_next = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        alphas = alpha_of(sigma), alpha_of(sigma_next)
        z = vp_step(target.noise(z, sigma), *alphas, z)
        if added:
            arrived = vp_step(source.noise(z_chain[level], sigma), *alphas, z_chain[level])
            z = z + strength * (z_chain[level - 1] - arrived)
    return z / vp_scale(trajectory.sigmas[0])


@pytest.mark.parametrize(
    "correction",
    [DIRECT_INVERSION, UNCORRECTED, Correction(0.4, 2)],
    ids=["direct", "none", "some"],
)
def test_the_target_is_plain_ddim_whatever_becomes_of_the_source(correction):
    trajectory = recorded()
    done = edit(trajectory, correction=correction, keep_source=True).run()
    assert relative(done.latent, published_target(trajectory)) < IDENTITY


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_add_source_is_the_published_recurrence(strength):
    """x_next = mean of the target + the guided residual at the recorded chain."""
    trajectory = recorded()
    done = edit(trajectory, correction=Correction(target_strength=strength)).run()
    expected = published_target(trajectory, added=True, strength=strength)
    assert relative(done.latent, expected) < IDENTITY
    assert relative(expected, published_target(trajectory)) > 0.05
    assert torch.equal(done.source, trajectory.origin)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_add_source_gives_an_unedited_image_back_bit_for_bit(dtype, eta):
    trajectory = recorded(dtype=dtype)
    made = Branches(target=Prompted(SOURCE, CFG), source=Prompted(SOURCE, CFG))
    done = edit(trajectory, made, correction=ADD_SOURCE, eta=eta).run()
    assert torch.equal(done.latent, trajectory.origin)


# -- stochastic chains ---------------------------------------------------------------------------


def markov(x0, sigmas, seed=5):
    """The forward chain: each level adds fresh noise to the one below."""
    latents = [x0]
    for i in range(1, len(sigmas)):
        fresh = picture(*x0.shape, seed=seed + i)
        latents.append(latents[-1] + (sigmas[i] ** 2 - sigmas[i - 1] ** 2).sqrt() * fresh)
    return Trajectory(torch.stack(latents), sigmas, x0, Recipe("markov"))


def test_on_a_markov_chain_the_residual_is_its_noise():
    """Knowing x0, the posterior of a step down is its mean plus white noise of size sigma_up:
    so R / sigma_up has variance 1 and does not depend on the level it came from."""
    x0 = picture(1, 4, 100, 100)
    trajectory = markov(x0, geometric(6))
    for level in range(6, 1, -1):
        sigma, sigma_next = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        step = step_down(sigma, sigma_next, eta=1.0)
        chain, chain_next = trajectory.latents[level], trajectory.latents[level - 1]
        noise = residual(chain, chain_next, x0, step) / step.sigma_up
        # 40 thousand draws: standard errors of .005 for the mean, .007 for the variance.
        assert abs(float(noise.mean())) < 0.025
        assert abs(float(noise.var()) - 1) < 0.035
        above = (chain - x0) / sigma
        assert abs(float((noise * above).mean())) < 0.025


def test_the_noise_of_a_chain_drawn_downwards_is_recovered():
    sigmas, denoise = geometric(STEPS), Prompted(SOURCE, 2.0)
    x, drawn, chain = 14 * picture(seed=1), [], []
    for i in range(STEPS, 0, -1):
        chain.append(x)
        step = step_down(sigmas[i], sigmas[i - 1], eta=1.0)
        drawn.append(picture(seed=20 + i))
        mean = step.c * x + (1 - step.c) * denoise(x, sigmas[i])
        x = mean + step.sigma_up * drawn[-1]
    chain = [*chain, x][::-1]
    for i in range(STEPS, 1, -1):  # the last step down to 0 has no noise
        step = step_down(sigmas[i], sigmas[i - 1], eta=1.0)
        found = residual(chain[i], chain[i - 1], denoise(chain[i], sigmas[i]), step)
        assert distance(found / step.sigma_up, drawn[STEPS - i]) < IDENTITY


def test_an_edit_along_a_markov_chain_adds_its_recorded_noise():
    """x_next = mean of the target + recorded noise, as Cycle-SDE has it."""
    trajectory = markov(X0, geometric(STEPS))
    done = edit(trajectory, branches(2.0), correction=ADD_SOURCE, eta=1.0).run()
    target, source, x = Prompted(TARGET, 2.0), Prompted(SOURCE, 2.0), trajectory.start
    for level in range(STEPS, 0, -1):
        sigma, low = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        ratio = (low / sigma) ** 2  # of the DDPM posterior: mean = r x + (1 - r) D
        chain, chain_next = trajectory.latents[level], trajectory.latents[level - 1]
        noise = chain_next - ratio * chain - (1 - ratio) * source(chain, sigma)
        x = ratio * x + (1 - ratio) * target(x, sigma) + noise
    assert relative(done.latent, x) < IDENTITY


# -- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", [DIRECT_INVERSION, UNCORRECTED, ADD_SOURCE])
def test_outside_a_mask_the_chain_is_kept_bit_for_bit_at_every_level(correction):
    trajectory = recorded(dtype=torch.float32)
    mask = torch.zeros(1, 1, 3, 5)
    mask[..., :3] = 1
    seen = []
    whole = edit(trajectory, mask=mask, correction=correction)
    done = whole.run(lambda i, x, _: seen.append((i, x)))
    for i, x in seen:
        assert torch.equal(x[..., 3:], trajectory.latents[STEPS - i][..., 3:])
    assert torch.equal(done.latent[..., 3:], trajectory.origin[..., 3:])
    assert relative(done.latent[..., :3], trajectory.origin[..., :3]) > 0.05


def test_a_mask_of_ones_changes_nothing():
    """But a last bit: the blend adds and subtracts the chain."""
    masked = edit(mask=torch.ones(1, 1, 3, 5)).run()
    assert relative(masked.latent, edit().run().latent) < IDENTITY


def test_each_image_of_a_batch_may_have_its_mask():
    mask = torch.zeros(2, 1, 3, 5)
    mask[1] = 1
    trajectory = recorded()
    done = edit(trajectory, mask=mask).run()
    assert torch.equal(done.latent[0], trajectory.origin[0])
    assert distance(done.latent[1], edit(trajectory).run().latent[1]) < 1e-8


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=15, max_size=15))
def test_a_soft_mask_blends_with_the_chain_after_every_step(values):
    mask = torch.tensor(values, dtype=torch.float64).view(1, 1, 3, 5)
    trajectory, denoise = recorded(4), Prompted(TARGET, CFG)
    x = trajectory.start
    for level in range(4, 0, -1):
        sigma, low = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        x = x + (low - sigma) * (x - denoise(x, sigma)) / sigma
        x = (1 - mask) * trajectory.latents[level - 1] + mask * x
    assert relative(edit(trajectory, mask=mask).run().latent, x) < IDENTITY


# -- progress ------------------------------------------------------------------------------------


def test_every_step_is_reported_once_with_the_targets_guess():
    trajectory, seen = recorded(), []
    done = edit(trajectory).run(lambda *step: seen.append(step))
    assert [i for i, *_ in seen] == list(range(1, STEPS + 1))
    assert torch.equal(seen[-1][1], done.latent)
    x = trajectory.start
    for i, after, guess in seen:
        expected = Prompted(TARGET, CFG)(x, trajectory.sigmas[STEPS + 1 - i])
        assert torch.equal(guess, expected)
        x = after


def test_the_trajectory_is_left_alone():
    trajectory = recorded()
    before = trajectory.latents.clone()
    edit(trajectory, correction=ADD_SOURCE, mask=torch.full((1, 1, 3, 5), 0.5)).run()
    assert torch.equal(trajectory.latents, before)
    assert torch.equal(trajectory.origin, X0)


def test_an_edit_is_deterministic():
    assert torch.equal(edit().run().latent, edit().run().latent)


# -- rows ----------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Branches that count their rows and show their attention to a bank, as a host's do."""

    bank: Bank | None
    spent: RowCount = field(default_factory=RowCount)
    seen: list = field(default_factory=list)

    def branch(self, name, rows, hook):
        def denoise(x, sigma):
            self.spent.add(rows)
            self.seen.append((self.bank.at.step if self.bank and self.bank.at else None, name))
            if hook is not None:
                hook(Site("self", 0, "cond"), QKV(*torch.zeros(3, 1, 4, 2)))
                hook(Site("cross", 0, "cond"), QKV(*torch.zeros(3, 1, 8, 2)))
            return x / (1 + sigma)

        return denoise

    def branches(self):
        inject, record = (self.bank.inject, self.bank.record) if self.bank else (None, None)
        return Branches(
            target=self.branch("target", 2, inject),
            source=self.branch("source", 2, record),
            record=self.branch("record", 1, record),
        )


def rows_of(correction, *, steps=50, control=True, keep_source=False, **windows):
    """Rows of inversion and edit, and what each step runs."""
    texts = prompt("a red cat", 8), prompt("a blue cat", 8)
    bank = Bank(rewrite_prompt(*texts, **windows)) if control else None
    rows = Rows(bank)
    sigmas = geometric(steps)
    latents = ddim(rows.branch("inversion", 1, None), X0[:1], sigmas, scale=vp_scale)
    trajectory = Trajectory(latents, sigmas, X0[:1], Recipe("ddim"))
    whole = Edit(
        trajectory, rows.branches(), correction=correction, bank=bank, keep_source=keep_source
    )
    whole.run()
    assert bank is None or bank.empty
    return rows.spent.rows, rows.seen[steps:], whole.source_rows


def test_direct_inversion_with_prompt_to_prompt_costs_180_rows():
    spent, seen, plan = rows_of(DIRECT_INVERSION)
    assert spent == 180
    assert plan == ["recorded"] * 30 + ["none"] * 20
    expected = [(i, name) for i in range(50) for name in ("record", "target")]
    assert seen == [(i, name) for i, name in expected if name == "target" or i < 30]


def test_ddim_with_prompt_to_prompt_costs_210_rows_and_250_with_its_reconstruction():
    spent, _, plan = rows_of(UNCORRECTED)
    assert spent == 210
    assert plan == ["guided"] * 30 + ["none"] * 20
    spent, _, plan = rows_of(UNCORRECTED, keep_source=True)
    assert spent == 250
    assert plan == ["guided"] * 50


def test_a_second_edit_costs_its_own_rows_alone():
    assert rows_of(DIRECT_INVERSION)[0] - 50 == 130


@pytest.mark.parametrize(
    ("correction", "options", "rows"),
    [
        (DIRECT_INVERSION, {"control": False}, 50 + 100),
        (DIRECT_INVERSION, {"control": False, "keep_source": True}, 50 + 100),
        (UNCORRECTED, {"control": False}, 50 + 100),
        (UNCORRECTED, {"control": False, "keep_source": True}, 50 + 200),
        (ADD_SOURCE, {}, 50 + 200),
        (ADD_SOURCE, {"control": False}, 50 + 200),
        (Correction(0.4), {}, 50 + 100 + 60),
        (Correction(1.0, 5), {"keep_source": True}, 50 + 200),
        (DIRECT_INVERSION, {"cross_window": (0.0, 0.8)}, 50 + 100 + 40),
        (DIRECT_INVERSION, {"self_window": (0.0, 0.0)}, 50 + 100 + 20),
        (DIRECT_INVERSION, {"word_windows": {"blue": (0.0, 1.0)}}, 50 + 100 + 50),
    ],
    ids=str,
)
def test_a_row_that_no_one_reads_is_never_run(correction, options, rows):
    assert rows_of(correction, **options)[0] == rows


def test_a_gap_between_windows_runs_no_recorded_row_but_is_followed_by_a_drifting_one():
    windows = {"cross_window": (0.0, 0.2), "self_window": (0.5, 0.7)}
    _, _, plan = rows_of(DIRECT_INVERSION, steps=10, **windows)
    assert plan == ["recorded"] * 2 + ["none"] * 3 + ["recorded"] * 2 + ["none"] * 3
    _, _, plan = rows_of(UNCORRECTED, steps=10, **windows)
    assert plan == ["guided"] * 7 + ["none"] * 3


def test_a_source_that_was_not_followed_to_the_end_is_not_handed_out():
    assert edit(correction=UNCORRECTED).run().source is None
    assert edit(correction=UNCORRECTED, keep_source=True).run().source is not None


def test_the_source_runs_before_the_target_of_its_step_at_its_own_latent():
    """What is recorded is the chain under Direct Inversion, and the drifting row without it."""
    for correction in (DIRECT_INVERSION, UNCORRECTED):
        trajectory, met = recorded(), []
        texts = prompt("a red cat", 8), prompt("a blue cat", 8)
        bank = Bank(rewrite_prompt(*texts, self_window=(0.0, 1.0)))

        def record(x, sigma, met=met):
            met.append(x)
            return Prompted(SOURCE, CFG)(x, sigma)

        made = Branches(target=Prompted(TARGET, CFG), source=record, record=record)
        Edit(trajectory, made, correction=correction, bank=bank).run()
        chain = list(trajectory.latents[1:].flip(0))
        assert len(met) == STEPS
        assert torch.equal(met[0], trajectory.start)
        on_chain = [torch.equal(a, b) for a, b in zip(met, chain, strict=True)]
        assert all(on_chain) == (correction is DIRECT_INVERSION)


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_below_one_is_refused(interval):
    with pytest.raises(PalimpsestError, match=f"must be 1 or more steps, got {interval}"):
        Correction(interval=interval)


@pytest.mark.parametrize(("scale", "interval"), [(0.5, 1), (1.0, 2), (0.0, 1)])
def test_add_source_needs_the_chain(scale, interval):
    with pytest.raises(
        PalimpsestError, match=f"scale and interval must be 1, got {scale} and {interval}"
    ):
        Correction(scale=scale, interval=interval, target_strength=1.0)


@pytest.mark.parametrize("field_", ["scale", "target_strength"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(field_, value):
    with pytest.raises(PalimpsestError, match="must be a number"):
        Correction(**{field_: value})


def test_eta_above_one_is_refused():
    with pytest.raises(PalimpsestError, match="eta"):
        edit(eta=1.5).run()


@pytest.mark.parametrize("correction", [DIRECT_INVERSION, ADD_SOURCE, UNCORRECTED])
def test_outside_a_mask_it_is_the_picture_that_comes_back_where_the_chain_only_comes_close(
    correction,
):
    """A path that was learned (Null-text, StyleDiffusion) ends beside its picture."""
    chain = recorded()
    trajectory = replace(chain, image=chain.latents[0] + 0.3)
    mask = torch.ones(1, 1, 3, 5)
    mask[..., 3:] = 0
    seen = []
    done = edit(trajectory, mask=mask, correction=correction).run(lambda i, x, _: seen.append(x))
    for i, x in enumerate(seen[:-1], 1):
        assert torch.equal(x[..., 3:], chain.latents[STEPS - i][..., 3:])
    assert torch.equal(done.latent[..., 3:], trajectory.image[..., 3:])
    assert not torch.equal(done.latent[..., 3:], chain.latents[0][..., 3:])
