"""The edit at recorded points beside the published loops, each restated in its own coordinates.

They walk z = (1 - t) x0 + t n by velocities v = (z - D) / t; ours walks x = x0 + sigma n.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from palimpsest.pipelines.aligned import FLOW_EDIT, Manner
from palimpsest.pipelines.correction import ADD_SOURCE
from palimpsest.pipelines.couplings import denoise_chain
from palimpsest.pipelines.denoiser import guide
from palimpsest.pipelines.editing import Branches, Edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.fresh_noise import FreshNoise, fresh_noise, noised
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.proximal import Proximal
from palimpsest.pipelines.schedule import sigma_from_t
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.unit.analytic import Prompted, distance, geometric, picture

SOURCE, TARGET = Prompted(0.4, 1.5), Prompted(-0.7, 5.5)
X0 = picture()
TIMES = torch.tensor([0, 0.1, 0.25, 0.45, 0.6, 0.8, 0.9, 0.95], dtype=torch.float64)
SIGMAS, STEPS, WHOLE = sigma_from_t(TIMES), len(TIMES) - 1, 10
SEED = 7

#: The same real numbers in another order of float64 operations.
IDENTITY = 1e-12


def along(manner=FLOW_EDIT, *, source=SOURCE, x0=X0, sigmas=SIGMAS, draws=1):
    """A picture's trajectory of fresh noise."""
    options = {"manner": manner, "whole": WHOLE, "draws": draws}
    made = fresh_noise(source, x0, sigmas, seeded(SEED), **options)
    return Trajectory(made.latents, sigmas, x0, made.recipe, carried=made.carried)


def edit(trajectory, target=TARGET, *, mask=None):
    return replace(trajectory.find(FreshNoise).edit(trajectory, target), mask=mask)


def edited(manner=FLOW_EDIT, *, target=TARGET, mask=None, **options):
    return edit(along(manner, **options), target, mask=mask).run().latent


def noise_of(draws=1):
    """The noises in the order in which they are drawn: from the noisiest level down."""
    draw = seeded(SEED)
    return iter([draw(X0) for _ in range(STEPS * draws + 1)])


def velocity(model, z, t):
    return (z - model(z / (1 - t), t / (1 - t))) / t


def falling():
    return pairwise(TIMES.flip(0))


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("n_min", [0, 2])
def test_flow_edit_is_the_published_loop(draws, n_min):
    noise, z_edit = noise_of(draws), X0.clone()
    for i, (t, t_next) in enumerate(falling()):
        if i >= STEPS - n_min:
            break
        ways = []
        for _ in range(draws):
            z_source = (1 - t) * X0 + t * next(noise)
            z_target = z_edit + z_source - X0
            ways.append(velocity(TARGET, z_target, t) - velocity(SOURCE, z_source, t))
        z_edit = z_edit + (t_next - t) * sum(ways) / draws
    if n_min:
        t = TIMES[n_min]
        last = next(noise)
        z_edit = z_edit + (1 - t) * X0 + t * last - X0
        for t, t_next in pairwise(TIMES[: n_min + 1].flip(0)):
            z_edit = z_edit + (t_next - t) * velocity(TARGET, z_edit, t)
    ours = edited(Manner(plain_steps=n_min), draws=draws)
    # The plain steps add noise to the picture and take it away again.
    assert distance(ours, z_edit) < IDENTITY * 100 ** bool(n_min)
    assert distance(ours, X0) > 0.1


def test_flow_edit_is_the_one_edit_loop_on_an_independent_chain():
    chain = noised(X0, SIGMAS[1:], seeded(SEED))[:, 0]
    latents = torch.cat([X0[None], chain])
    guesses = denoise_chain(SOURCE, latents, SIGMAS)
    recipe = Recipe("independent", strength=1.0)
    trajectory = Trajectory(latents, SIGMAS, X0, recipe, guesses)
    whole = Edit(trajectory, Branches(TARGET, SOURCE), ADD_SOURCE)
    assert distance(edited(), whole.run().latent) < IDENTITY * 100  # a chain of sigma 19 is added


def test_flow_align_is_the_published_loop():
    """Euler on what target and source say of the edited point, less a part of what they make."""
    omega, zeta, source = 7.5, 0.01, Prompted(0.4)
    noise, d = noise_of(), torch.zeros_like(X0)
    for t, t_next in falling():
        z_source = (1 - t) * X0 + t * next(noise)
        z = z_source + d
        v_edit = guide(velocity(Prompted(-0.7), z, t), velocity(source, z, t), omega)
        v_source = velocity(source, z_source, t)
        clean, clean_source = z - t * v_edit, z_source - t * v_source
        d = d + (t_next - t) * (v_edit - v_source) + zeta * (clean_source - clean)

    def guided(x, sigma):
        return guide(Prompted(-0.7)(x, sigma), source(x, sigma), omega)

    ours = edited(Manner(zeta=zeta), source=source, target=guided)
    assert distance(ours, X0 + d) < IDENTITY * 10


@pytest.mark.parametrize("lag", ["fading", "whole", "none"])
def test_dvrf_is_the_published_step(lag):
    """The target is asked at z_source + c_t (its own offset); c_t = t is FlowEdit, 0 is DDS."""
    noise, d = noise_of(), torch.zeros_like(X0)
    for i, (t, t_next) in enumerate(falling()):
        step = WHOLE - STEPS + i
        c_t = {"fading": t * step / WHOLE, "whole": 0.0, "none": t}[lag]
        z_source = (1 - t) * X0 + t * next(noise)
        x, sigma = z_source / (1 - t) + (1 + c_t / (1 - t)) * d, t / (1 - t)
        difference = TARGET(x, sigma) - SOURCE(z_source / (1 - t), sigma)
        r = t_next / t
        d = (1 - (1 - r) * (1 - t + c_t)) * d + (1 - r) * difference
    assert distance(edited(Manner(lag=lag)), X0 + d) < IDENTITY


def test_the_whole_lag_is_delta_denoising():
    """The current edit is noised anew, and both are asked there: a step of its gradient."""
    noise, y = noise_of(), X0.clone()
    for t, t_next in falling():
        n = next(noise)
        z, z_source = (1 - t) * y + t * n, (1 - t) * X0 + t * n
        y = y + (t_next - t) * (velocity(TARGET, z, t) - velocity(SOURCE, z_source, t))
    assert distance(edited(Manner(lag="whole")), y) < IDENTITY


def test_without_what_is_carried_over_it_is_the_virtual_inversion():
    """DDCM: the edit of a level is the picture and the difference of the two guesses."""
    noise, y = noise_of(), X0.clone()
    for t, _ in falling():
        sigma, n = t / (1 - t), next(noise)
        y = X0 + TARGET(y + sigma * n, sigma) - SOURCE(X0 + sigma * n, sigma)
    assert distance(edited(Manner(renoise=True)), y) < IDENTITY


MANNERS = {
    "FlowEdit": FLOW_EDIT,
    "FlowAlign": Manner(zeta=0.01),
    "DVRF": Manner(lag="fading"),
    "DDS": Manner(lag="whole"),
    "DDCM": Manner(renoise=True),
    "plain": Manner(plain_steps=2),
}
each = pytest.mark.parametrize("manner", MANNERS.values(), ids=MANNERS)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outside_a_mask_nothing_moves_by_a_bit(manner, dtype):
    mask = torch.ones(1, 1, 3, 5)
    mask[..., 3:] = 0
    x0 = X0.to(dtype)

    def low(model):
        return lambda x, sigma: model(x.double(), sigma).to(dtype)

    chain = along(manner, source=low(SOURCE), x0=x0)
    out = edit(chain, low(TARGET), mask=mask.to(dtype)).run().latent
    assert torch.equal(out[..., 3:], x0[..., 3:])
    assert distance(out[..., :3], x0[..., :3]) > 0.05
    whole = edit(chain, low(TARGET), mask=torch.ones_like(mask).to(dtype)).run().latent
    assert torch.equal(whole, edit(chain, low(TARGET)).run().latent)


@pytest.mark.parametrize("name", [name for name in MANNERS if name != "plain"])
@pytest.mark.parametrize("draws", [1, 2])
def test_a_target_that_says_what_the_source_said_gives_the_picture_bit_for_bit(name, draws):
    """Both asked in calls of one size: a kernel rounds otherwise in others."""
    x0 = X0.float()
    chain = along(MANNERS[name], x0=x0, draws=draws)
    kept = chain.find(FreshNoise)
    alone = torch.stack(
        [
            torch.stack([SOURCE(point, sigma) for point in points])
            for points, sigma in zip(kept.points, SIGMAS[1:], strict=True)
        ]
    )
    chain = chain.with_carried(replace(kept, guesses=alone))
    assert torch.equal(edit(chain, SOURCE).run().latent, x0)


@each
def test_where_the_target_is_the_source_nothing_is_asked(manner):
    assert torch.equal(edit(along(manner), None).run().latent, X0)


@each
def test_pictures_of_a_batch_do_not_meet_and_frames_do_not_matter(manner):
    together = edited(manner)
    chain = along(manner)
    kept = chain.find(FreshNoise)
    for row in range(len(X0)):
        one = slice(row, row + 1)
        own = replace(
            kept,
            points=kept.points[:, :, one],
            guesses=kept.guesses[:, :, one],
            noise=kept.noise[one],
        )
        alone = Trajectory(chain.latents[:, one], SIGMAS, X0[one], chain.recipe, carried=(own,))
        assert distance(edit(alone).run().latent, together[one]) < IDENTITY
    video = along(manner, x0=picture(1, 4, 2, 3, 5))
    assert edit(video).run().latent.shape == (1, 4, 2, 3, 5)


def test_it_walks_an_eps_models_levels_too():
    sigmas = geometric(6)
    assert distance(edited(sigmas=sigmas), X0) > 0.1


def test_the_source_is_asked_many_levels_a_call_and_the_target_once_a_noise():
    source, target = Prompted(0.4), Prompted(-0.7)
    edited(source=source, target=target, draws=2)
    assert source.calls == [8 * len(X0), 6 * len(X0)]
    assert target.calls == [len(X0)] * STEPS * 2
    told = []
    options = {"manner": FLOW_EDIT, "whole": WHOLE, "levels_at_once": 1}
    fresh_noise(source, X0, SIGMAS, seeded(0), **options, on_levels=told.append)
    assert source.calls[2:] == [len(X0)] * STEPS
    assert told == list(range(1, STEPS + 1))


def test_every_level_and_draw_has_noise_of_its_own():
    points = noised(X0, SIGMAS[1:], seeded(1), draws=2)
    noise = (points - X0) / SIGMAS[1:].view(-1, 1, 1, 1, 1, 1)
    flat = noise.flatten(0, 1).flatten(1)
    alike = torch.corrcoef(flat) - torch.eye(len(flat))
    assert float(alike.abs().max()) < 0.5
    assert float(flat.std()) == pytest.approx(1, abs=0.1)


def test_steps_are_told_with_the_latent_of_their_level():
    told, chain = [], along()
    done = edit(chain).run(lambda i, x, guess: told.append((i, x, guess.shape)))
    assert [i for i, *_ in told] == list(range(1, STEPS + 1))
    assert torch.equal(told[-1][1], done.latent)
    assert torch.equal(done.source, X0)


def test_many_targets_of_one_picture_start_where_it_does():
    chain = along(x0=X0[:1], draws=2)
    done = edit(chain).run(start=chain.start.expand(3, -1, -1, -1))
    for row in done.latent:
        assert distance(row, edit(chain).run().latent[0]) < IDENTITY


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Manner(zeta=1.5), r"Zeta is 1.5, it must be 0 to 1"),
        (lambda: Manner(plain_steps=-1), r"plain steps are -1: set 0 or more"),
        (lambda: along(Manner(plain_steps=7)), r"last 7 steps .* of 7 that are walked"),
        (lambda: along(draws=0), r"At least 1 noise .* got 0"),
        (lambda: along(sigmas=SIGMAS.flip(0)), r"rising noise levels"),
        (
            lambda: fresh_noise(
                SOURCE, X0, SIGMAS, seeded(0), manner=FLOW_EDIT, whole=7, levels_at_once=0
            ),
            r"At least 1 level goes into a call, got 0",
        ),
        (lambda: along().with_carried(Proximal()), r"Proximal Guidance draws an edit back"),
        (
            lambda: edit(along(), lambda x, sigma: x * float("inf")).run(),
            r"The edit left the finite numbers at step 1 of 7",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, said):
    with pytest.raises(PalimpsestError, match=said):
        make()


@pytest.mark.parametrize("name", ["points", "guesses", "noise"])
def test_tensors_that_do_not_fit_are_refused(name):
    chain = along()
    kept = chain.find(FreshNoise)
    with pytest.raises(PalimpsestError, match=f"trajectory's {name} are"):
        chain.with_carried(replace(kept, **{name: getattr(kept, name)[..., :2]}))
