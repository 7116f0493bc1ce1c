"""EDICT beside its published loops, restated here in their own coordinates."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import (
    Coupled,
    CoupledEdit,
    Pair,
    couple,
    drop_rests,
    mix,
    unmix,
)
from palimpsest.pipelines.schedule import FLOW, VP, vp_scale
from palimpsest.pipelines.trajectory import Trajectory
from palimpsest.pipelines.trajectory_file import from_tensors, to_tensors
from palimpsest.tests.unit.analytic import Prompted, alpha_of, geometric, picture, vp_step

SOURCE, TARGET, CFG = 0.4, -0.7, 3.0
STEPS, MIXING = 7, 0.93
X0 = picture()

#: The same real numbers in another order of float64 operations, over a few steps of guidance 3.
IDENTITY = 1e-12


def relative(a, b):
    return float((a - b).norm() / b.norm())


def levels(steps=STEPS, low=0.03):
    """Rising levels of which none is 0."""
    return geometric(steps + 1, low=low)[1:]


def inverted(x0=X0, sigmas=None, source=None, mixing=MIXING, family=VP, rests=0):
    sigmas = levels() if sigmas is None else sigmas
    source = source or Prompted(SOURCE, CFG)
    made = couple(source, x0, sigmas, family=family, mixing=mixing, rests=rests)
    recipe = replace(made.recipe, cfg=CFG)
    return Trajectory(made.latents, sigmas, x0, recipe, carried=made.carried)


def other(trajectory):
    """The chain y of a trajectory, and what goes with it."""
    return trajectory.find(Coupled)


def edit(trajectory=None, target=None, **options):
    trajectory, target = trajectory or inverted(), target or Prompted(TARGET, CFG)
    return CoupledEdit(trajectory, other(trajectory), target, vp_scale, **options)


# -- the published loops, in variance-preserving latents and cumulative alphas ---------------------


def published_down(model, pair, sigmas, mixing=MIXING):
    """`coupled_stablediffusion` downwards; a step moves one latent by the noise at the other."""
    pair = list(pair)
    steps = len(sigmas) - 1
    for i in range(steps):
        sigma, below = sigmas[steps - i], sigmas[steps - i - 1]
        for latent in (0, 1) if i % 2 == 0 else (1, 0):
            noise = model.noise(pair[1 - latent], sigma)
            pair[latent] = vp_step(noise, alpha_of(sigma), alpha_of(below), pair[latent])
        pair[0] = mixing * pair[0] + (1 - mixing) * pair[1]
        pair[1] = (1 - mixing) * pair[0] + mixing * pair[1]
    return pair


def published_up(model, x0, sigmas, mixing=MIXING):
    """The same with `reverse`: mixing undone first, latents in the other order."""
    pair = [x0.clone(), x0.clone()]
    steps = len(sigmas) - 1
    for i in range(steps):
        below, sigma = sigmas[i], sigmas[i + 1]
        pair[1] = (pair[1] - (1 - mixing) * pair[0]) / mixing
        pair[0] = (pair[0] - (1 - mixing) * pair[1]) / mixing
        even = (steps - (i + 1)) % 2 == 0
        for latent in (1, 0) if even else (0, 1):
            noise = model.noise(pair[1 - latent], sigma)
            pair[latent] = vp_step(noise, alpha_of(below), alpha_of(sigma), pair[latent])
    return pair


@pytest.mark.parametrize("steps", [7, 8])
@pytest.mark.parametrize("mixing", [0.93, 0.5, 1.0])
def test_the_inversion_is_the_published_one(steps, mixing):
    sigmas = levels(steps)
    ours = inverted(sigmas=sigmas, mixing=mixing)
    z = published_up(Prompted(SOURCE, CFG), X0 * vp_scale(sigmas[0]), sigmas, mixing)
    for chain, theirs in zip((ours.latents, other(ours).partner), z, strict=True):
        assert relative(chain[-1] * vp_scale(sigmas[-1]), theirs) < IDENTITY


@pytest.mark.parametrize("steps", [7, 8])
def test_the_edit_is_the_published_one(steps):
    sigmas, target = levels(steps), Prompted(TARGET, 5.0)
    trajectory = inverted(sigmas=sigmas)
    top = Pair(trajectory.latents[-1], other(trajectory).partner[-1])
    theirs = published_down(target, [t * vp_scale(sigmas[-1]) for t in top], sigmas)
    ours = edit(trajectory, Prompted(TARGET, 5.0)).walk()
    for chain, z in zip(ours, theirs, strict=True):
        assert relative(chain * vp_scale(sigmas[0]), z) < IDENTITY
    assert relative(ours.x, X0) > 0.1  # an edit, not the picture


def test_a_grid_that_repeats_its_lowest_level_drops_the_evaluations_of_that_step():
    sigmas = levels()
    published = torch.cat([sigmas[:1], sigmas])
    kept, rests = drop_rests(published)
    assert (kept.tolist(), rests) == (sigmas.tolist(), 1)
    source, target = Prompted(SOURCE, CFG), Prompted(TARGET, CFG)
    trajectory = inverted(sigmas=kept, source=source, rests=rests)
    up = published_up(Prompted(SOURCE, CFG), X0 * vp_scale(sigmas[0]), published)
    assert relative(trajectory.latents[-1] * vp_scale(sigmas[-1]), up[0]) < IDENTITY
    down = published_down(Prompted(TARGET, CFG), up, published)
    ours = edit(trajectory, target).walk()
    for chain, z in zip(ours, down, strict=True):
        assert relative(chain * vp_scale(sigmas[0]), z) < IDENTITY
    # Without the mixing of that step the edit would end elsewhere.
    short = edit(inverted(sigmas=kept)).walk()
    assert relative(short.x, ours.x) > 1e-5
    assert len(source.calls) == len(target.calls) == 2 * STEPS


def test_levels_that_do_not_repeat_are_left_as_they_are():
    kept, rests = drop_rests(levels())
    assert torch.equal(kept, levels())
    assert rests == 0


def test_mixing_is_the_published_average_and_comes_off_again():
    pair = Pair(picture(seed=1), picture(seed=2))
    x = 0.9 * pair.x + 0.1 * pair.y
    y = 0.1 * x + 0.9 * pair.y
    mixed = mix(pair, 0.9)
    assert relative(mixed.x, x) < IDENTITY
    assert relative(mixed.y, y) < IDENTITY
    again = unmix(mixed, 0.9)
    assert relative(again.x, pair.x) < IDENTITY
    assert relative(again.y, pair.y) < IDENTITY


@pytest.mark.parametrize("steps", [5, 6])
def test_on_a_flow_model_the_steps_are_those_of_its_own_coordinates(steps):
    """z = (1 - t) x: rescaled to its clean end, moved by the noise at the other one."""
    times = torch.linspace(0.0, 0.9, steps + 1, dtype=torch.float64)
    sigmas, model = times / (1 - times), Prompted(SOURCE, CFG)

    def in_x(x, sigma):
        return x - sigma * model.noise(x / (1 + sigma), sigma)

    trajectory = inverted(sigmas=sigmas, source=in_x, family=FLOW)
    pair = [
        trajectory.latents[-1] * (1 - times[-1]),
        other(trajectory).partner[-1] * (1 - times[-1]),
    ]
    for i in range(steps):
        t, below = times[steps - i], times[steps - i - 1]
        for latent in (0, 1) if i % 2 == 0 else (1, 0):
            noise = model.noise(pair[1 - latent], sigmas[steps - i])
            clean = (pair[latent] - t * noise) / (1 - t)
            pair[latent] = (1 - below) * clean + below * noise
        pair[0] = MIXING * pair[0] + (1 - MIXING) * pair[1]
        pair[1] = (1 - MIXING) * pair[0] + MIXING * pair[1]
    assert relative(pair[0], X0) < 1e-10
    assert relative(pair[1], X0) < 1e-10


# -- the round trip ------------------------------------------------------------------------------


def test_the_inverse_is_exact_for_the_plain_recurrence_too():
    """From the top, without the recorded guesses, in float64: what the chain is for."""
    sigmas = levels(40)
    trajectory = inverted(sigmas=sigmas)
    top = [t[-1] * vp_scale(sigmas[-1]) for t in (trajectory.latents, other(trajectory).partner)]
    x, y = published_down(Prompted(SOURCE, CFG), top, sigmas)
    assert relative(x / vp_scale(sigmas[0]), X0) < 1e-10
    assert relative(y / vp_scale(sigmas[0]), X0) < 1e-10


@dataclass
class Chaotic:
    """A float32 denoiser under which rounding grows without bound."""

    calls: list = field(default_factory=list)

    def __call__(self, x, sigma):
        self.calls.append(len(x))
        z = x * vp_scale(sigma)
        return x - sigma * torch.sin(40 * z.half()).float()


@pytest.mark.parametrize("low", [0.0, 0.03])
def test_an_unedited_picture_comes_back_bit_for_bit_however_chaotic_the_network(low):
    x0, sigmas = X0.float(), levels(40)
    sigmas = torch.cat([torch.tensor([low], dtype=torch.float64), sigmas[1:]])
    trajectory = inverted(x0, sigmas, Chaotic())
    done = edit(trajectory, Chaotic()).run()
    assert torch.equal(done.latent, x0)
    assert torch.equal(done.source, x0)
    # The recurrence alone does not come back: what is tested here is not trivial.
    top = [
        t[-1] * vp_scale(sigmas[-1]).float()
        for t in (trajectory.latents, other(trajectory).partner)
    ]
    chaos = Chaotic()
    chaos.noise = lambda z, _: torch.sin(40 * z.half()).float()
    plain, _ = published_down(chaos, top, sigmas.clamp(min=1e-9))
    assert relative(plain, x0) > 1e-3


def test_an_edit_that_starts_elsewhere_is_the_published_one_from_there():
    sigmas, trajectory = levels(), inverted()
    start = trajectory.start + 0.1
    pair = [t * vp_scale(sigmas[-1]) for t in (start, other(trajectory).partner[-1])]
    x, _ = published_down(Prompted(TARGET, CFG), pair, sigmas)
    ours = edit(trajectory).run(start=start).latent
    assert relative(ours * vp_scale(sigmas[0]), x) < IDENTITY


def test_many_targets_of_one_picture_are_each_edited_as_if_alone():
    trajectory = inverted(X0[:1])
    start = trajectory.start.expand(3, *X0.shape[1:])
    prompts = torch.tensor([TARGET, 0.1, 0.9], dtype=torch.float64).view(3, 1, 1, 1)
    together = edit(trajectory, Prompted(prompts, CFG)).run(start=start).latent
    for row, target in enumerate(prompts.flatten().tolist()):
        alone = edit(trajectory, Prompted(target, CFG)).run().latent
        assert relative(together[row : row + 1], alone) < IDENTITY


def test_pictures_of_a_batch_do_not_meet():
    whole = inverted(X0)
    for row in range(len(X0)):
        alone = inverted(X0[row : row + 1])
        assert relative(whole.latents[:, row : row + 1], alone.latents) < IDENTITY
        assert relative(other(whole).partner[:, row : row + 1], other(alone).partner) < IDENTITY


def test_outside_the_mask_the_picture_stays_bit_for_bit():
    trajectory = inverted(X0.float())
    mask = torch.zeros(1, *X0.shape[1:])  # by channels, which this model mixes
    mask[:, 2:] = 1
    done = edit(trajectory, mask=mask).run().latent
    assert torch.equal(done[:, :2], trajectory.origin[:, :2])
    assert relative(done[:, 2:], trajectory.origin[:, 2:]) > 0.1
    # Held at every step, not pasted at the end: a free edit reaches another latent inside, too.
    free = edit(trajectory).run().latent
    assert relative(done[:, 2:], free[:, 2:]) > 1e-3
    assert torch.equal(edit(trajectory, mask=torch.ones(1, 1, 1, 1)).run().latent, free)


# -- attention -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A control that reads the source in the first steps."""

    until: int

    def source_role(self, role):
        return role

    def active(self, at):
        return at.step < self.until

    def reads(self, site, at):
        return self.active(at)

    def kept(self, site, own, at):
        return own

    def terms(self, own, source, site, at):
        return source and (source,)


@dataclass
class Attending:
    """A denoiser with one attention, whose values the bank may put in another's place."""

    prompt: float
    hook: object
    seen: list = field(default_factory=list)

    def __call__(self, x, sigma):
        self.seen.append(x.clone())
        qkv = QKV(*[x.flatten(1).unsqueeze(1)] * 3)
        (used,) = self.hook(Site("self", 0, "cond"), qkv) or (qkv,)
        values = used.v.view_as(x)
        return x - sigma * torch.tanh(0.3 * values * vp_scale(sigma) + self.prompt)


def controlled(trajectory, until, record_at):
    bank = Bank(Window(until))
    target = Attending(TARGET, bank.inject)
    record = Attending(SOURCE, bank.record)
    return edit(trajectory, target, bank=bank, record=record, record_at=record_at)


def test_the_source_is_recorded_on_its_chains_before_each_evaluation_while_a_window_is_open():
    source = Attending(SOURCE, lambda *_: None)
    trajectory = inverted(source=source)
    whole = controlled(trajectory, 3, "chain")
    done = whole.run()
    assert len(whole.target.seen) == 2 * STEPS
    # Where the inversion evaluated, in the opposite order: the last three steps, two each.
    assert len(whole.record.seen) == 6
    for ours, theirs in zip(whole.record.seen, source.seen[::-1][:6], strict=True):
        assert torch.equal(ours, theirs)
    assert whole.bank.empty
    free = edit(trajectory, Attending(TARGET, lambda *_: None)).run().latent
    assert relative(done.latent, free) > 1e-3


def test_the_published_control_evaluates_the_source_at_the_latents_of_the_edit():
    whole = controlled(inverted(source=Attending(SOURCE, lambda *_: None)), 3, "edit")
    whole.run()
    for source, target in zip(whole.record.seen, whole.target.seen, strict=False):
        assert torch.equal(source, target)
    assert len(whole.record.seen) == 6


def test_what_a_control_reads_is_the_source_of_the_same_evaluation():
    """Values replaced at every step, on the chain: the target's noise is that of its prompt there.

    The published recurrence, whose noise does not depend on the edit at all.
    """
    source = Attending(SOURCE, lambda *_: None)
    trajectory = inverted(source=source)
    ours = controlled(trajectory, STEPS, "chain").walk()
    seen, sigmas = source.seen[::-1], levels()
    pair = [trajectory.latents[-1], other(trajectory).partner[-1]]
    for i in range(STEPS):
        sigma, below = sigmas[STEPS - i], sigmas[STEPS - i - 1]
        for latent in (0, 1) if i % 2 == 0 else (1, 0):
            values = seen.pop(0) * vp_scale(sigma)
            noise = torch.tanh(0.3 * values + TARGET)
            pair[latent] = pair[latent] + (below - sigma) * noise
        pair[0] = MIXING * pair[0] + (1 - MIXING) * pair[1]
        pair[1] = (1 - MIXING) * pair[0] + MIXING * pair[1]
    assert relative(ours.x, pair[0]) < IDENTITY
    assert relative(ours.y, pair[1]) < IDENTITY


# -- what it costs, tells and refuses ------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2], ids=["one chain", "the other"])
def test_a_chain_that_leaves_the_finite_numbers_is_named_by_its_level(call):
    calls = []

    def denoise(x, sigma):
        calls.append(sigma)
        return x * (float("inf") if len(calls) == 2 * (STEPS - 1) + call else 0.5)

    sigmas = levels()
    with pytest.raises(PalimpsestError, match=f"finite numbers at step {STEPS} of {STEPS} "):
        couple(denoise, X0, sigmas, family=VP, mixing=MIXING)
    assert len(calls) == 2 * STEPS


def test_every_step_evaluates_twice_each_way_and_tells_once():
    source, target = Prompted(SOURCE, CFG), Prompted(TARGET, CFG)
    told = []
    trajectory = inverted(source=source)
    couple(Prompted(SOURCE, CFG), X0, levels(), family=VP, on_step=lambda *a: told.append(a))
    assert [t[0] for t in told] == list(range(1, STEPS + 1))
    for (_, x, _), recorded in zip(told, trajectory.latents[1:], strict=True):
        assert torch.equal(x, recorded)
    told.clear()
    done = edit(trajectory, target).run(lambda *a: told.append(a))
    assert [t[0] for t in told] == list(range(1, STEPS + 1))
    assert torch.equal(told[-1][1], done.latent)
    assert source.calls == target.calls == [len(X0)] * (2 * STEPS)


@pytest.mark.parametrize("mixing", [0.49, 1.01, float("nan"), -1])
def test_a_mixing_out_of_range_is_refused(mixing):
    with pytest.raises(PalimpsestError, match=r"mixing must be 0\.5 to 1, got"):
        inverted(mixing=mixing)


def test_latents_that_leave_the_finite_numbers_are_refused():
    with pytest.raises(PalimpsestError, match=r"at step 1 of 7 \(sigma .*lower cfg"):
        inverted(source=lambda x, sigma: x * float("inf"))


def test_levels_that_do_not_rise_are_refused():
    with pytest.raises(PalimpsestError, match="rising noise levels"):
        inverted(sigmas=levels().flip(0))


@pytest.mark.parametrize("name", ["partner", "guesses"])
def test_half_of_a_pair_of_chains_is_refused(name):
    with pytest.raises(PalimpsestError, match="coupled chains are"):
        made = inverted()
        made.with_carried(replace(other(made), **{name: None}))


@pytest.mark.parametrize("name", ["partner", "guesses"])
def test_chains_of_another_length_are_refused(name):
    trajectory = inverted()
    coupled = other(trajectory)
    with pytest.raises(PalimpsestError, match="coupled chains are"):
        trajectory.with_carried(replace(coupled, **{name: getattr(coupled, name)[1:]}))


def test_coupled_chains_without_their_mixing_are_refused():
    trajectory = inverted()
    with pytest.raises(PalimpsestError, match=r"mixing of the trajectory's .* is 0\.0"):
        trajectory.with_carried(replace(other(trajectory), mixing=0.0))


def test_a_file_holds_both_chains_and_edits_the_same():
    trajectory = inverted(X0.float(), rests=1)
    tensors, about = to_tensors(trajectory)
    assert about["palimpsest_trajectory"] == "3"
    again = from_tensors(tensors, about, name="edict")
    assert again.recipe == trajectory.recipe
    assert (other(again).mixing, other(again).rests) == (MIXING, 1)
    assert torch.equal(edit(again).run().latent, edit(trajectory).run().latent)


def test_it_says_where_the_picture_is_only_kept_at_another_guidance():
    trajectory = inverted()
    said = other(trajectory).told(trajectory, CFG)
    assert said == "correction is not read: the chains of EDICT lead back by themselves"
    assert "cfg is 5, that of Invert (EDICT) 3" in other(trajectory).told(trajectory, 5.0)


def test_no_level_repeats_unless_it_is_said():
    made = couple(Prompted(SOURCE, CFG), X0, levels(), family=VP, mixing=MIXING)
    (carried,) = made.carried
    assert carried.rests == 0
