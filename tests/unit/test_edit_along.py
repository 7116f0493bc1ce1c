"""What a trajectory demands of an edit, with a host made of analytic denoisers."""

from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from palimpsest.pipelines.aligned import FLOW_EDIT, AlignedEdit
from palimpsest.pipelines.attention import bank
from palimpsest.pipelines.attention.hooks import NO_HOOKS, QKV, Hooks, Site, together
from palimpsest.pipelines.attention.watch import Begun
from palimpsest.pipelines.correction import ADD_SOURCE, DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.couplings import ddim, denoise_chain, independent, markov
from palimpsest.pipelines.edit_along import edit_along
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import CoupledEdit, couple
from palimpsest.pipelines.inversion.fresh_noise import fresh_noise
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.inversion.uni_inv import uni_inv
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.proximal import Proximal
from palimpsest.pipelines.rows import Guess, Rows
from palimpsest.pipelines.schedule import VP, moment_at, sigma_from_t, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, distance, geometric, picture

SOURCE, TARGET, CFG, STEPS = 0.4, -0.7, 3.0, 6
SIGMAS, X0 = geometric(STEPS), picture()

#: The same real numbers in another order of float64 operations.
IDENTITY = 1e-12


@dataclass
class Host:
    """A lender whose network has one attention and one residual block, and tells what it ran."""

    cfg: float = CFG
    scale: object = vp_scale
    asked: list = field(default_factory=list)
    runs: list = field(default_factory=list)
    keys: dict = field(default_factory=dict)
    source_is_negative: bool = False
    alone: bool = True
    paired: bool = False
    wanted: list = field(default_factory=list)

    def pairs(self, source, target, rows):
        self.wanted.append(rows)
        return self.paired

    def denoiser(self, asked):
        self.asked.append(asked)
        guided = self._run(asked, ("uncond", "cond"))
        if asked.beside is None:
            return guided

        def denoise(x, sigma):
            for role in ("uncond", "cond"):
                waiting = asked.beside.place(role)
                if waiting is not None:
                    row, place = waiting
                    self.runs.append(("source", (f"{row} beside {role}",), float(sigma)))
                    tokens = place.flatten(2)
                    site = Site("self", 0, f"source {role}", tokens.shape[1])
                    assert asked.hooks.attention(site, QKV(tokens, tokens, tokens)) is None
                    if asked.hooks.feature:
                        block = Site("features", 0, f"source {role}", 15)
                        assert asked.hooks.feature(block, place) is None
                out = self._run(asked, (role,))(x, sigma)
            return out

        return denoise

    def recorder(self, asked, roles):
        return self._run(asked, tuple(roles))

    def one_row(self, asked):
        return asked.negative is None and self.source_is_negative

    def key(self, asked):
        return self.keys.get(asked.prompt, "")

    def features_key(self):
        return ""

    def _run(self, asked, roles):
        model = Prompted(TARGET if asked.prompt == "target" else SOURCE, self.cfg)

        def denoise(x, sigma):
            self.runs.append((asked.prompt, roles, float(sigma)))
            used = x
            for role in roles:
                tokens, answer = x.flatten(2), None
                if asked.hooks.attention:
                    site = Site("self", 0, role, tokens.shape[1])
                    answer = asked.hooks.attention(site, QKV(tokens, tokens, tokens))
                if answer is not None and role == "cond":
                    used = answer[0].v.view_as(x)
                if asked.hooks.feature:
                    added = asked.hooks.feature(Site("features", 0, role, 15), used)
                    used = added if added is not None and role == "cond" else used
            return model(used, sigma)

        return denoise


def recorded(**recipe):
    latents = ddim(Prompted(SOURCE), X0, SIGMAS, scale=vp_scale)
    return Trajectory(latents, SIGMAS, X0, Recipe("ddim", **recipe))


def drawn(**recipe):
    latents = markov(X0, SIGMAS, seeded(0))
    guesses = denoise_chain(Prompted(SOURCE, CFG), latents, SIGMAS, levels_at_once=1)
    return Trajectory(latents, SIGMAS, X0, Recipe("markov", **recipe), denoised=guesses)


# -- controls ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """A toy control: takes the source's values, of the rows that `roles` names for each role."""

    roles: dict
    end: int = STEPS

    def source_role(self, role):
        return self.roles.get(role)

    def active(self, at):
        return at.step < self.end

    def reads(self, site, at):
        return self.active(at) and site.kind == "self"

    def kept(self, site, own, at):
        return QKV(None, None, own.v)

    def terms(self, own, source, site, at):
        return source and (QKV(own.q, own.k, source.v),)


@dataclass(frozen=True)
class Blocks(Values):
    """The same for what residual blocks add."""

    def reads(self, site, at):
        return self.active(at) and site.kind == "features"

    def feature(self, own, source, site, at):
        return source


@dataclass(frozen=True)
class Bounding(Values):
    """The same that bounds the edit, in the second half of the steps, and says what it saw."""

    seen: list = field(default_factory=list)

    def begun(self, size):
        return Begun(self, (Bounds(self.seen, size),))


@dataclass
class Bounds:
    seen: list
    size: tuple
    at: object = None

    @property
    def cells(self):
        return left(self.size) if self.at.step >= STEPS // 2 else None

    def see(self, own, source, attended, site, at):
        self.at = at
        self.seen.append((at.step, site.role, source is not None, len(attended(own.k))))

    def reads_source(self, at):
        return False

    def __call__(self, rows, chain_next, at):
        cells = self.cells
        if cells is None:
            return rows
        return rows._replace(target=torch.where(cells > 0, rows.target, rows.source))


def left(size):
    return (torch.arange(size[1]) < 2).double().expand(1, 1, *size)


ONE = {"cond": "cond"}


@pytest.mark.parametrize(
    ("roles", "runs"),
    [
        (ONE, ("cond",)),
        ({"cond": "cond", "uncond": "cond"}, ("cond",)),
        ({"cond": "cond", "uncond": "uncond"}, ("uncond", "cond")),
        ({"uncond": "uncond"}, ("uncond",)),
    ],
    ids=str,
)
def test_only_the_rows_that_a_control_reads_are_run_of_the_source(roles, runs):
    host = Host()
    edit_along(recorded(), host, control=Values(roles, end=2)).run()
    of_source = [sorted(found) for prompt, found, _ in host.runs if prompt == "source"]
    assert of_source == [sorted(runs)] * 2


@pytest.mark.parametrize("kind", [Values, Blocks], ids=["attention", "features"])
@pytest.mark.parametrize("roles", [ONE, {"uncond": "uncond"}, {"cond": "cond", "uncond": "uncond"}])
def test_a_row_that_its_own_branch_reads_runs_beside_it_and_says_the_same(roles, kind):
    control, hosts = kind(roles, end=2), [Host(paired=paired) for paired in (True, False)]
    beside, apart = (edit_along(recorded(), host, control=control).run() for host in hosts)
    assert torch.equal(beside.latent, apart.latent)
    ran, before = ([r for prompt, r, _ in host.runs if prompt == "source"] for host in hosts)
    assert ran == [(f"{role} beside {role}",) for role in ("uncond", "cond") if role in roles] * 2
    assert all(host.wanted == [roles] for host in hosts)
    assert before == [tuple(role for role in ("cond", "uncond") if role in roles)] * 2


@pytest.mark.parametrize("kind", [Values, Blocks], ids=["attention", "features"])
def test_a_row_of_two_readers_runs_beside_each_where_keeping_it_takes_too_much(kind, monkeypatch):
    """Once before them in vain: until then no one knew."""
    control, latents = kind({"cond": "cond", "uncond": "cond"}, end=3), []
    for room in (0.5, 36):
        monkeypatch.setattr(bank, "BESIDE_ONE", room)
        host = Host(paired=True)
        latents.append(edit_along(recorded(), host, control=control).run().latent)
        ran = [roles for prompt, roles, _ in host.runs if prompt == "source"]
        both = [("cond beside uncond",), ("cond beside cond",)]
        assert ran == ([("cond",), *3 * both] if room < 1 else 3 * [("cond",)])
        assert all(rows == {"cond": "cond", "uncond": "cond"} for rows in host.wanted)
    assert torch.equal(*latents)


def test_what_takes_too_much_is_kept_where_it_cannot_run_beside(monkeypatch):
    monkeypatch.setattr(bank, "BESIDE_ONE", 0.5)
    host, control = Host(), Values({"cond": "cond", "uncond": "cond"}, end=3)
    edit_along(recorded(), host, control=control).run()
    assert [roles for prompt, roles, _ in host.runs if prompt == "source"] == 3 * [("cond",)]


@pytest.mark.parametrize(
    ("control", "chain", "start", "more"),
    [
        (Values({"cond": "cond", "uncond": "cond"}), recorded(), None, {}),
        (Values(ONE), recorded(), recorded().start.repeat(2, 1, 1, 1), {}),
        (Values(ONE), recorded(), None, {"correction": UNCORRECTED}),
        (Values(ONE), None, None, {}),
    ],
    ids=["two readers", "many targets", "drifts", "two chains"],
)
def test_elsewhere_the_source_runs_before_the_target(control, chain, start, more):
    host, chain = Host(paired=True), chain or carried_along(couple)
    edit_along(chain, host, control=control, **more).run(start=start)
    of_source = [roles for prompt, roles, _ in host.runs if prompt == "source"]
    assert len(of_source) >= STEPS and not any(
        "beside" in role for roles in of_source for role in roles
    )


@pytest.mark.parametrize("control", [Values, Blocks], ids=["attention", "features"])
def test_a_source_whose_prompt_is_the_negative_runs_one_row_for_both_branches(control):
    """And the edit is what two rows would have made of it, as they say the same."""
    both = control({"cond": "cond", "uncond": "uncond"}, end=2)
    runs, latents = [], []
    for same in (True, False):
        host = Host(source_is_negative=same)
        latents.append(edit_along(recorded(), host, control=both).run().latent)
        runs.append([sorted(found) for prompt, found, _ in host.runs if prompt == "source"])
    assert runs == [[["cond"]] * 2, [["cond", "uncond"]] * 2]
    assert torch.equal(*latents)


def test_where_the_negative_is_another_the_source_has_two_rows():
    chain = recorded().with_carried(NegativeEmbedding(picture(1, 1, 2, 3)))
    both, host = Values({"cond": "cond", "uncond": "uncond"}), Host(source_is_negative=True)
    edit_along(chain, host, control=both).run()
    of_source = [sorted(found) for prompt, found, _ in host.runs if prompt == "source"]
    assert of_source == [["cond", "uncond"]] * STEPS


@pytest.mark.parametrize("control", [Values(ONE), Blocks(ONE)], ids=["attention", "features"])
def test_a_control_that_takes_all_of_the_source_paints_the_target_on_the_chain(control):
    """Whatever the target is, its network is shown the chain itself: a plain restatement."""
    chain, model = recorded(), Prompted(TARGET, CFG)
    x = chain.start
    for level in range(STEPS, 0, -1):
        sigma, below = SIGMAS[level], SIGMAS[level - 1]
        x = below / sigma * x + (1 - below / sigma) * model(chain.latents[level], sigma)
    done = edit_along(chain, Host(), control=control).run()
    assert distance(done.latent, x) < IDENTITY
    free = edit_along(chain, Host()).run()
    assert distance(done.latent, free.latent) > 0.01


def test_a_control_without_features_puts_no_hook_into_residual_blocks():
    host = Host()
    edit_along(recorded(), host, control=Values(ONE))
    assert all(asked.hooks.feature is None for asked in host.asked)
    assert any(asked.hooks.attention is not None for asked in host.asked)
    host = Host()
    edit_along(recorded(), host)
    assert all(asked.hooks == NO_HOOKS for asked in host.asked)


# -- what is carried -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["both", "source"])
def test_an_embedding_is_shown_to_the_rows_it_is_for_at_its_own_levels(rows):
    embedding = picture(STEPS, 1, 2, 3)
    chain, host = recorded().with_carried(NegativeEmbedding(embedding, rows)), Host()
    edit_along(chain, host)
    for asked in host.asked:
        shown = asked.prompt == "source" or rows == "both"
        assert (asked.negative is not None) == shown
        for level in range(1, STEPS + 1):
            if shown:
                assert torch.equal(asked.negative(SIGMAS[level].float()), embedding[level - 1])


def test_the_sources_own_guidance_is_asked_for():
    host = Host()
    edit_along(recorded(source_cfg=1.5), host)
    scales = {a.prompt: a.guidance and a.guidance(1.0) for a in host.asked}
    assert scales == {"source": 1.5, "target": None}


def carried_along(invert):
    """The chain of an inversion that brings a loop of its own."""
    made = invert(Prompted(SOURCE, CFG), X0, SIGMAS, family=VP)
    return Trajectory(made.latents, SIGMAS, X0, made.recipe, carried=made.carried)


def freshly_noised(denoise, x0, sigmas, *, family):
    """Two noises at every level, by the words of an inversion."""
    return fresh_noise(denoise, x0, sigmas, seeded(0), manner=FLOW_EDIT, whole=STEPS, draws=2)


OWN_LOOPS = {couple: CoupledEdit, uni_inv: AlignedEdit, freshly_noised: AlignedEdit}


@pytest.mark.parametrize("invert", [uni_inv, freshly_noised])
def test_at_recorded_points_the_source_runs_beside_the_target_too(invert):
    chain, hosts = carried_along(invert), [Host(paired=paired) for paired in (True, False)]
    beside, apart = (edit_along(chain, host, control=Values(ONE)).run() for host in hosts)
    assert torch.equal(beside.latent, apart.latent)
    ran, before = ([r for prompt, r, _ in host.runs if prompt == "source"] for host in hosts)
    draws = chain.carried[0].points.shape[1] if invert is freshly_noised else 1
    assert ran == [("cond beside cond",)] * STEPS * draws
    assert before == [("cond",)] * STEPS * draws


@pytest.mark.parametrize("invert", OWN_LOOPS)
def test_a_carried_value_brings_its_own_loop(invert):
    whole = edit_along(carried_along(invert), Host())
    assert isinstance(whole, OWN_LOOPS[invert])
    assert distance(whole.run().latent, X0) > 0.01


@pytest.mark.parametrize("control", [None, Values(ONE)], ids=["alone", "control"])
@pytest.mark.parametrize("invert", OWN_LOOPS)
def test_a_loop_of_its_own_runs_under_a_control_as_any_other(invert, control):
    chain, host = carried_along(invert), Host()
    edit_along(chain, host, control=control).run()
    target = next(asked for asked in host.asked if asked.prompt == "target")
    assert (target.hooks != NO_HOOKS) is (control is not None)
    assert any(prompt == "source" for prompt, *_ in host.runs) is (control is not None)


@pytest.mark.parametrize("correction", [DIRECT_INVERSION, UNCORRECTED], ids=["chain", "drifts"])
@pytest.mark.parametrize(
    "made",
    [recorded, drawn, *(partial(carried_along, invert) for invert in OWN_LOOPS)],
)
def test_what_bounds_an_edit_bounds_it_in_every_loop_and_is_told(made, correction):
    control = Bounding(ONE, end=2)
    edited = edit_along(
        made(), Host(), control=control, correction=correction, keep_source=True
    ).run()
    inside = left(X0.shape[-2:]) > 0
    assert torch.equal(edited.bounds, inside.double())
    off = (edited.latent - edited.source).abs()
    assert not off[(~inside).expand_as(off)].any() and off[inside.expand_as(off)].all()
    steps = {(step, read) for step, role, read, _ in control.seen if role == "cond"}
    assert steps == {(step, step < 2) for step in range(STEPS)}
    free = edit_along(made(), Host(), control=Values(ONE, end=2), correction=correction).run()
    assert free.bounds is None and edit_along(made(), Host()).run().bounds is None


@pytest.mark.parametrize("alone", [True, False])
def test_calls_of_the_source_are_left_only_where_no_one_else_takes_part(alone):
    whole = edit_along(recorded(), Host(alone=alone), control=Values(ONE))
    assert whole.bank.leaves is alone


def test_coupled_chains_refuse_what_draws_an_edit_to_one_chain():
    with pytest.raises(PalimpsestError, match="EDICT has two that are coupled: take"):
        carried_along(couple).with_carried(Proximal())


def test_a_drifting_source_is_followed_to_the_end_only_where_it_is_asked_for():
    edits = [edit_along(recorded(), Host(), correction=UNCORRECTED, **asked) for asked in KEPT]
    assert [edit.run().source is None for edit in edits] == [True, True, False]


KEPT = ({}, {"keep_source": False}, {"keep_source": True})


def test_what_does_not_hold_for_this_edit_is_refused():
    chain = recorded().with_carried(NegativeEmbedding(picture(1, 1, 2, 3), cfg=7.5))
    with pytest.raises(PalimpsestError, match=r"learned at cfg 7\.5, the edit's cfg is 3"):
        edit_along(chain, Host())
    edit_along(chain, Host(cfg=7.5))


@dataclass(frozen=True)
class Kept:
    """Features that would serve every step, of the source with a key."""

    key: str

    def serve(self, control, at):
        return True


@pytest.mark.parametrize(
    ("key", "correction", "read"),
    [
        ("", DIRECT_INVERSION, True),
        ("of another prompt", DIRECT_INVERSION, False),
        ("", UNCORRECTED, False),
    ],
)
def test_kept_features_are_read_where_they_are_this_sources_on_its_chain(key, correction, read):
    kept = Kept(key)
    chain = replace(recorded(), features=kept)
    control = Values({"cond": "cond"})
    edit = edit_along(chain, Host(), control=control, correction=correction)
    assert (edit.bank.features is kept) == read


# -- the residual --------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [DIRECT_INVERSION, UNCORRECTED, ADD_SOURCE])
def test_a_chain_that_says_its_strength_is_not_asked_what_is_wanted(wanted):
    chain = drawn(eta=1.0, strength=1.0)
    done = edit_along(chain, Host(), correction=wanted).run()
    assert torch.equal(done.latent, edit_along(chain, Host()).run().latent)
    free = edit_along(replace(chain, recipe=Recipe("markov", eta=1.0)), Host(), correction=wanted)
    assert torch.equal(free.run().latent, done.latent) == (wanted == ADD_SOURCE)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_strength_of_a_residual_is_not_bound_to_eta(strength):
    chain, model = drawn(strength=strength), Prompted(TARGET, CFG)
    x = chain.start
    for level in range(STEPS, 0, -1):
        sigma, below = SIGMAS[level], SIGMAS[level - 1]
        c, at, after = below / sigma, chain.latents[level], chain.latents[level - 1]
        residual = after - c * at - (1 - c) * chain.denoised[level - 1]
        x = c * x + (1 - c) * model(x, sigma) + strength * residual
    assert distance(edit_along(chain, Host()).run().latent, x) < IDENTITY


def test_an_independent_chain_at_eta_0_and_strength_1_is_flowedit():
    """Its published update, in flow time and velocities, on an inner part of the schedule."""
    times = torch.linspace(0, 0.8, STEPS + 1, dtype=torch.float64)
    sigmas, noises = sigma_from_t(times), seeded(3)
    source, target = Prompted(SOURCE, 1.5), Prompted(TARGET, 5.5)
    latents = independent(X0, sigmas, noises)
    guesses = denoise_chain(source, latents, sigmas, levels_at_once=1)
    recipe = Recipe("independent", strength=1.0)
    chain = Trajectory(latents, sigmas, X0, recipe, denoised=guesses)
    host = Host(cfg=5.5)
    ours = edit_along(chain, host).run().latent

    def velocity(model, z, t):
        return (z - model(z / (1 - t), t / (1 - t))) / t

    z_edit, again = X0, seeded(3)
    drawn_noise = [again(X0) for _ in range(STEPS)]
    for level in range(STEPS, 0, -1):
        t, below = times[level], times[level - 1]
        z_source = (1 - t) * X0 + t * drawn_noise[level - 1]
        z_target = z_edit + z_source - X0
        v = velocity(target, z_target, t) - velocity(source, z_source, t)
        z_edit = z_edit + (below - t) * v
    assert distance(ours, z_edit) < 1e-10  # times 5 at t = 0.8, and the guidance of 5.5
    assert distance(ours, X0) > 0.05


def test_where_nothing_is_edited_nothing_is_run():
    chain = drawn(eta=1.0, strength=1.0, source_key="the same")
    host = Host(keys={"target": "the same"})
    done = edit_along(chain, host).run()
    assert torch.equal(done.latent, X0)
    assert host.runs == []
    assert not torch.equal(edit_along(chain, Host(keys={"target": "other"})).run().latent, X0)


# -- before and after ----------------------------------------------------------------------------


def branches():
    return Branches(Prompted(TARGET, CFG), Prompted(SOURCE, CFG))


def test_what_comes_before_a_step_moves_the_target_alone():
    met = []

    chain, model = recorded(), Prompted(TARGET, CFG)

    def nudge(x, at):
        met.append((at.step, at.steps, float(at.sigma)))
        return x + 0.1, Guess(model(x + 0.1, at.sigma))

    done = Edit(chain, replace(branches(), stepping=nudge)).run()
    x = chain.start
    for level in range(STEPS, 0, -1):
        c = SIGMAS[level - 1] / SIGMAS[level]
        x = c * (x + 0.1) + (1 - c) * model(x + 0.1, SIGMAS[level])
    assert distance(done.latent, x) < IDENTITY
    assert torch.equal(done.source, X0)
    assert met == [(i, STEPS, float(SIGMAS[STEPS - i])) for i in range(STEPS)]


@dataclass
class Mark:
    """An after that notes what it was given, adds to the target, and may need the source."""

    name: str
    notes: list
    needs: int = 0

    def reads_source(self, at):
        return at.step < self.needs

    def __call__(self, rows, chain_next, at):
        self.notes.append((self.name, at.step, chain_next, rows))
        return rows._replace(target=rows.target + 1)


def test_what_comes_after_a_step_is_called_in_order_with_the_chain_where_the_rows_are():
    notes, chain = [], recorded()
    Edit(chain, branches(), after=(Mark("a", notes), Mark("b", notes))).run()
    assert [(n, i) for n, i, *_ in notes] == [(n, i) for i in range(STEPS) for n in "ab"]
    for (_, i, chain_a, first), (_, _, chain_b, second) in zip(
        notes[::2], notes[1::2], strict=True
    ):
        assert chain_a is chain_b
        assert torch.equal(chain_a, chain.latents[STEPS - i - 1])
        assert torch.equal(second.target, first.target + 1)
        assert first.guess is not None


def test_the_source_is_run_as_long_as_an_after_needs_it():
    ran = []
    record = lambda x, sigma: ran.append(x) or x
    made = replace(branches(), record=record)
    chain = recorded()
    whole = Edit(chain, made, after=(Mark("a", [], needs=2),))
    assert whole.source_rows == ["recorded"] * 2 + ["none"] * (STEPS - 2)
    whole.run()
    assert [torch.equal(x, chain.latents[STEPS - i]) for i, x in enumerate(ran)] == [True, True]
    drifts = Edit(chain, made, correction=UNCORRECTED, after=(Mark("a", [], needs=2),))
    assert drifts.source_rows == ["guided"] * 2 + ["none"] * (STEPS - 2)


def test_a_step_may_be_taken_alone():
    chain = recorded()
    whole, rows = Edit(chain, branches()), Rows(chain.start, chain.start)
    for i in range(STEPS):
        rows = whole.step(i, rows)
    assert torch.equal(rows.target, whole.run().latent)


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_a_step_that_leaves_the_finite_numbers_is_named(step):
    sigma = float(moment_at(SIGMAS, step).sigma)
    broken = lambda x, s: x * float("nan") if float(s) == sigma else x
    whole = Edit(recorded(), Branches(broken, broken))
    with pytest.raises(PalimpsestError, match=f"at step {step + 1} of {STEPS} .sigma {sigma:.4g}"):
        whole.run()


def test_hooks_of_several_observers_all_look():
    seen = []
    watch = lambda name: lambda site, qkv: seen.append((name, site))
    changes = lambda site, qkv: (qkv,)
    both = together([Hooks(watch("a")), Hooks(changes), Hooks(watch("b"), watch("c"))])
    site, qkv = Site("self", 0, "cond"), QKV(*torch.zeros(3, 1, 2, 4))
    assert both.attention(site, qkv) == (qkv,)
    assert [name for name, _ in seen] == ["a", "b"]
    assert both.feature(site, torch.zeros(1)) is None
    assert [name for name, _ in seen] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="2 hooks want to change"):
        together([Hooks(changes), Hooks(changes)]).attention(site, qkv)
    assert together([]) == NO_HOOKS
