"""Source features kept by the inversion serve an edit in place of its source row."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.features import FeatureRecorder
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.schedule import moment_at, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, geometric, picture
from palimpsest.tests.unit.attention.test_bank import CROSS, SELF, Borrow

STEPS = 6
SITES = (SELF, CROSS, SELF._replace(role="uncond"))


@dataclass
class Shelf:
    """A store that says what is written."""

    steps: dict = field(default_factory=dict)
    writes: list = field(default_factory=list)

    def write(self, step, kept):
        self.writes.append(step)
        self.steps[step] = dict(kept)

    def read(self, step):
        return self.steps[step]


@dataclass
class Attentive:
    """An analytic denoiser whose attention is its latent: what is kept says where it was."""

    inner: Prompted
    hook: object
    seen: list = field(default_factory=list)

    def __call__(self, x, sigma):
        self.seen.append((x.clone(), float(sigma)))
        for site in SITES:
            self.hook(site, QKV(x.flatten(2), x.flatten(2), x.flatten(2)))
        return self.inner(x, sigma)


def invert(control, budget=10**9, refinement=0):
    levels = geometric(STEPS)
    recorder = FeatureRecorder(control, levels, budget, Shelf())
    denoise = Attentive(Prompted(0.4), recorder.record)
    latents = ddim(
        recorder.watch(denoise),
        picture(),
        levels,
        scale=vp_scale,
        convention="current",
        refinement=refinement,
    )
    chain = Trajectory(latents, levels, picture(), Recipe("ddim"), features=recorder.result("key"))
    return chain, recorder, denoise


@pytest.mark.parametrize("refinement", [0, 1, 3])
def test_what_is_kept_of_a_step_was_seen_at_the_chain_itself(refinement):
    chain, *_ = invert(Borrow(end=STEPS), refinement=refinement)
    assert sorted(chain.features.sites) == list(range(1, chain.steps))
    for step in range(1, chain.steps):
        kept = chain.features.read(step)
        assert set(kept) == {SELF, CROSS}
        for qkv in kept.values():
            assert qkv.q is None
            assert torch.equal(qkv.v, chain.latents[chain.steps - step].flatten(2))


def test_the_noisiest_step_is_not_served():
    chain, *_ = invert(Borrow(end=STEPS), refinement=2)
    assert not chain.features.serve(Borrow(end=STEPS), moment_at(chain.sigmas, 0))
    assert chain.features.serve(Borrow(end=STEPS), moment_at(chain.sigmas, 1))


@dataclass(frozen=True)
class Late(Borrow):
    """A control that reads in the steps from `end` on."""

    def active(self, at):
        return at.step >= self.end


@pytest.mark.parametrize(
    ("control", "steps"),
    [(Borrow(end=3), [1, 2]), (Borrow(end=STEPS), [1, 2, 3, 4, 5]), (Late(end=4), [4, 5])],
)
def test_only_the_steps_of_the_window_are_kept_and_the_room_is_known_exactly(control, steps):
    chain, recorder, _ = invert(control)
    assert sorted(recorder.store.steps) == steps
    held = sum(
        t.nbytes
        for kept in recorder.store.steps.values()
        for qkv in kept.values()
        for t in qkv
        if t is not None
    )
    assert recorder.needed == held == chain.features.bytes


def test_without_room_nothing_is_kept_and_the_need_is_told():
    _, fitting, _ = invert(Borrow(end=3))
    chain, recorder, _ = invert(Borrow(end=3), budget=fitting.needed - 1)
    assert chain.features is None
    assert recorder.store.writes == []
    assert recorder.needed == fitting.needed
    assert invert(Borrow(end=3), budget=fitting.needed)[0].features is not None


def test_a_control_that_reads_more_than_was_kept_is_not_served():
    chain, *_ = invert(Borrow(end=3))
    assert not chain.features.serve(Borrow(end=4), moment_at(chain.sigmas, 3))
    assert chain.features.serve(Borrow(end=4), moment_at(chain.sigmas, 2))


@dataclass(frozen=True)
class Keys(Borrow):
    """A control that reads other tensors of the source."""

    def kept(self, site, own, at):
        return QKV(None, own.k, own.v)


@dataclass(frozen=True)
class Both(Borrow):
    """A control that reads a row which the inversion does not run."""

    def source_role(self, role):
        return role


class Blocks(Borrow):
    """A control that reads residual blocks as well, of which nothing is kept."""

    def feature(self, own, source, site, at):
        return source


def test_a_control_that_reads_other_tensors_or_other_rows_is_not_served():
    chain, *_ = invert(Keys(end=3))
    at = moment_at(chain.sigmas, 2)
    assert chain.features.serve(Keys(end=3), at) and chain.features.serve(Borrow(end=3), at)
    assert not invert(Borrow(end=3))[0].features.serve(Keys(end=3), at)
    assert not chain.features.serve(Blocks(end=3), at)
    cond_only = replace(chain.features, every=frozenset({SELF, CROSS}))
    assert cond_only.serve(Keys(end=3), at) and not cond_only.serve(Both(end=3), at)


def test_an_edit_runs_its_source_only_where_features_lack():
    chain, *_ = invert(Borrow(end=4))

    @dataclass
    class Counted:
        calls: int = 0

        def __call__(self, x, sigma):
            self.calls += 1
            return x

    record, bank = Counted(), Bank(Borrow(end=4), chain.features)
    free = Prompted(-0.7, 3.0)

    def target(x, sigma):
        bank.inject(SELF._replace(role="uncond"), None)  # a row that reads nothing
        return free(x, sigma)

    branches = Branches(target, Prompted(0.4, 3.0), record)
    assert Edit(chain, branches, bank=bank).source_rows == ["recorded"] + ["none"] * (STEPS - 1)
    Edit(chain, branches, bank=bank).run()
    assert record.calls == 1


def test_the_bank_hands_out_the_kept_features_of_its_step():
    chain, *_ = invert(Borrow(end=4))
    bank = Bank(Borrow(end=4), chain.features)
    site = Site("self", SELF.layer, "cond")
    like = torch.zeros_like(chain.latents[0].flatten(2))
    for step in (1, 2, 3):
        bank.begin(moment_at(chain.sigmas, step))
        (term,) = bank.inject(site, QKV(like, like, like))
        assert torch.equal(term.v, chain.latents[chain.steps - step].flatten(2))
    bank.begin(moment_at(chain.sigmas, 4))
    assert bank.empty
