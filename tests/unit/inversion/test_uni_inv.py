"""Uni-Inv beside its published loop, restated in flow time, and the edit at its points."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.editing import Edited
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.uni_inv import Aligned, uni_inv
from palimpsest.pipelines.proximal import Proximal
from palimpsest.pipelines.schedule import FLOW, VP, sigma_from_t, vp_scale
from palimpsest.pipelines.trajectory import Trajectory
from palimpsest.tests.unit.analytic import (
    Gaussian,
    Prompted,
    distance,
    geometric,
    picture,
    sample_euler,
)
from palimpsest.tests.unit.inversion.test_edict import Attending, Window

SOURCE, TARGET, CFG, STEPS = 0.4, -0.7, 3.0, 7
X0 = picture()
TIMES = torch.tensor([0, 0.1, 0.25, 0.45, 0.6, 0.8, 0.9, 0.98], dtype=torch.float64)
LEVELS = {"flow": sigma_from_t(TIMES), "vp": geometric(STEPS)}
FAMILIES = {"flow": FLOW, "vp": VP}

#: The same real numbers in another order of float64 operations; a flow divides by 0.02 at the top.
IDENTITY = 1e-11


def inverted(family="vp", denoise=None, x0=X0):
    sigmas = LEVELS[family].to(torch.float64)
    made = uni_inv(denoise or Prompted(SOURCE, CFG), x0, sigmas, family=FAMILIES[family])
    return Trajectory(made.latents, sigmas, x0, made.recipe, carried=made.carried)


def edit(trajectory, target=None, **options):
    plain = trajectory.find(Aligned).edit(trajectory, target or Prompted(TARGET, CFG))
    return replace(plain, **options)


def published(velocity, z, times):
    """Every z, and where the network was asked: the velocity found there leads the next guess."""
    v, chain, asked = torch.zeros_like(z), [z], []
    for t, t_next in pairwise(times):
        guess = z + (t_next - t) * v
        v = velocity(guess, t_next)
        z = z + (t_next - t) * v
        chain.append(z)
        asked.append(guess)
    return chain, asked


def test_on_a_flow_it_is_the_published_loop_in_z_and_t():
    model = Prompted(SOURCE, CFG)
    chain, asked = published(lambda z, t: (z - model(z / (1 - t), t / (1 - t))) / t, X0, TIMES)
    ours = inverted("flow")
    for level, z in enumerate(chain):
        assert distance(ours.latents[level] * (1 - TIMES[level]), z) < IDENTITY
    for level, z in enumerate(asked):
        point = ours.find(Aligned).points[level] * (1 - TIMES[level + 1])
        assert distance(point, z) < IDENTITY


def test_on_an_eps_model_it_is_the_same_loop_in_x_and_sigma():
    model = Prompted(SOURCE, CFG)
    chain, asked = published(lambda x, s: (x - model(x, s)) / s, X0, LEVELS["vp"])
    ours = inverted("vp")
    assert distance(ours.latents, torch.stack(chain)) < IDENTITY
    assert distance(ours.find(Aligned).points, torch.stack(asked)) < IDENTITY


@pytest.mark.parametrize("model", [Gaussian(), Prompted(SOURCE)], ids=["closed", "network"])
def test_the_way_back_misses_the_picture_by_the_square_of_a_step(model):
    """Plain steps down from the top: DDIM inversion, at the same cost, misses it by the step."""

    def missed(invert, steps):
        sigmas = geometric(steps)
        return distance(sample_euler(model, invert(sigmas)[-1], sigmas.flip(0)), X0)

    ways = {
        "uni": lambda sigmas: uni_inv(model, X0, sigmas, family=VP).latents,
        "ddim": lambda sigmas: ddim(model, X0, sigmas, scale=vp_scale),
    }
    order = {name: math.log2(missed(way, 40) / missed(way, 80)) for name, way in ways.items()}
    assert order["uni"] == pytest.approx(2, abs=0.2)
    assert order["ddim"] == pytest.approx(1, abs=0.2)


def test_it_costs_one_call_a_level():
    model = Prompted(SOURCE)
    inverted(denoise=model)
    assert model.calls == [len(X0)] * STEPS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_that_says_what_the_source_said_gives_the_picture_bit_for_bit(family, dtype):
    model, x0 = Prompted(SOURCE, CFG), X0.to(dtype)
    done = edit(inverted(family, model, x0), model).run()
    assert torch.equal(done.latent, x0)
    assert torch.equal(done.source, x0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edit_is_a_plain_loop_over_the_distance(family):
    chain = inverted(family)
    carried, apart, model = chain.find(Aligned), torch.zeros_like(X0), Prompted(TARGET, CFG)
    for k in range(STEPS, 0, -1):
        c = chain.sigmas[k - 1] / chain.sigmas[k]
        heard = model(carried.points[k - 1] + apart, chain.sigmas[k])
        apart = c * apart + (1 - c) * (heard - carried.guesses[k - 1])
    done = edit(chain).run()
    assert distance(done.latent, X0 + apart) < IDENTITY
    assert float(apart.abs().max()) > 0.05


def test_on_a_flow_the_edit_is_that_of_its_own_coordinates():
    """d = e / (1 + sigma), moved by the difference of velocities at the same point."""
    chain, model = inverted("flow"), Prompted(TARGET, CFG)
    carried, d = chain.find(Aligned), torch.zeros_like(X0)
    for k in range(STEPS, 0, -1):
        t, below, sigma = TIMES[k], TIMES[k - 1], chain.sigmas[k]
        z = carried.points[k - 1] * (1 - t)
        v_source = (z - carried.guesses[k - 1]) / t
        v_target = (z + d - model((z + d) / (1 - t), sigma)) / t
        d = d + (below - t) * (v_target - v_source)
    assert distance(edit(chain).run().latent, X0 + d) < IDENTITY


def test_outside_a_mask_the_picture_is_kept_bit_for_bit():
    mask = torch.ones(1, 1, 3, 5)
    mask[..., 3:] = 0
    chain = inverted(x0=X0.float())
    done = edit(chain, mask=mask).run()
    assert torch.equal(done.latent[..., 3:], chain.origin[..., 3:])
    assert distance(done.latent[..., :3], chain.origin[..., :3]) > 0.05
    whole = edit(chain, mask=torch.ones(1, 1, 3, 5)).run()
    assert torch.equal(whole.latent, edit(chain).run().latent)


def test_pictures_of_a_batch_do_not_meet():
    together = edit(inverted()).run().latent
    for row in range(len(X0)):
        alone = edit(inverted(x0=X0[row : row + 1])).run().latent
        assert distance(together[row : row + 1], alone) < IDENTITY


def test_many_targets_of_one_picture_start_where_it_does():
    chain = inverted(x0=X0[:1])
    done = edit(chain).run(start=chain.start.expand(3, -1, -1, -1))
    assert isinstance(done, Edited)
    for row in done.latent:
        assert distance(row, edit(chain).run().latent[0]) < IDENTITY


def test_a_control_reads_the_source_at_the_points_while_its_window_is_open():
    seen = Attending(SOURCE, lambda *_: None)
    chain = inverted(denoise=seen)
    bank = Bank(Window(3))
    record, target = Attending(SOURCE, bank.record), Attending(TARGET, bank.inject)
    done = edit(chain, target, record=record, bank=bank).run()
    points = chain.find(Aligned).points
    assert [torch.equal(x, points[STEPS - 1 - i]) for i, x in enumerate(record.seen)] == [True] * 3
    assert bank.empty
    free = edit(chain, Attending(TARGET, lambda *_: None)).run()
    assert distance(done.latent, free.latent) > 1e-3


def test_steps_are_told_with_the_latent_of_their_level():
    told, chain = [], inverted()
    done = edit(chain).run(lambda i, x, guess: told.append((i, x, guess.shape)))
    assert [i for i, *_ in told] == list(range(1, STEPS + 1))
    assert torch.equal(told[-1][1], done.latent)
    up = []
    made = uni_inv(Prompted(SOURCE), X0, LEVELS["vp"], family=VP, on_step=lambda *a: up.append(a))
    assert [i for i, *_ in up] == list(range(1, STEPS + 1))
    for (_, x, guess), latent, heard in zip(
        up, made.latents[1:], made.carried[0].guesses, strict=True
    ):
        assert torch.equal(x, latent) and torch.equal(guess, heard)


@dataclass
class Breaks:
    """A model that is not finite from a level on."""

    above: float

    def __call__(self, x, sigma):
        return x * (float("inf") if sigma > self.above else 0.5)


def test_a_model_that_is_not_finite_is_named_by_its_step():
    with pytest.raises(
        PalimpsestError, match=r"The inversion left the finite numbers at step 7 of 7"
    ):
        inverted(denoise=Breaks(10.0))
    with pytest.raises(PalimpsestError, match=r"The edit left the finite numbers at step 1 of 7"):
        edit(inverted(), Breaks(10.0)).run()


def test_levels_that_do_not_rise_are_refused():
    with pytest.raises(PalimpsestError, match="rising noise levels"):
        uni_inv(Prompted(SOURCE), X0, LEVELS["vp"].flip(0), family=VP)


@pytest.mark.parametrize("name", ["points", "guesses"])
def test_points_that_do_not_fit_are_refused(name):
    chain = inverted()
    carried = chain.find(Aligned)
    with pytest.raises(PalimpsestError, match=f"trajectory's {name} are"):
        chain.with_carried(replace(carried, **{name: getattr(carried, name)[1:]}))


def test_what_would_touch_the_chain_alone_is_refused():
    with pytest.raises(PalimpsestError, match="Proximal Guidance draws an edit back between"):
        inverted().with_carried(Proximal())
