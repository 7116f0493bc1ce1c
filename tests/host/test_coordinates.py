"""The SDE family on rectified-flow models: one space for all families, core's predictions in it."""

from dataclasses import dataclass

import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from palimpsest.hosts.comfy import session as host
from palimpsest.hosts.comfy.coordinates import (
    OURS,
    Coordinates,
    coordinates_of,
    host_levels,
    rising_sigmas,
)
from palimpsest.hosts.comfy.edits.copy_paste import paste_on_latent
from palimpsest.hosts.comfy.edits.cycle_sde import CycleRequest, Draws, cycle_sde, diffedit
from palimpsest.hosts.comfy.edits.drag import DragRequest, start_drag
from palimpsest.hosts.comfy.edits.sdedit import (
    SDEditRequest,
    Strength,
    levels_of,
    noised,
    paint_anew,
)
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import part_of_schedule, schedule
from palimpsest.pipelines.copy_paste import Brush, Move, copy_paste
from palimpsest.pipelines.denoiser import constant, ramp
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.points import DragPoints
from palimpsest.pipelines.schedule import FLOW_T_MAX
from palimpsest.tests.host import flow
from palimpsest.tests.host.edits.test_edit import relative

#: float32, with the latent scaled in another order of operations.
FLOAT32 = 1e-6
#: The same through a network of random weights.
NETWORK = 1e-5

FLOWS = {"flux": flow.make_flux, "sd3": flow.make_sd3}


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module", params=FLOWS)
def model(request):
    return FLOWS[request.param]()


@pytest.fixture(scope="module")
def vae():
    return flow.make_vae()


def noise(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latent_for(model, height=8, width=8, batch=1):
    """LATENT samples whose scaled numbers are normal; flow models also shift them."""
    return model.model.process_latent_out(noise(batch, flow.CHANNELS, height, width))


SOURCE, TARGET, EMPTY = (flow.prompt(seed) for seed in (1, 2, 3))


# --- levels


@pytest.mark.parametrize(
    "coordinates", [OURS, Coordinates(1.0), Coordinates(1.7)], ids=["vp", "flow", "scaled"]
)
def test_levels_and_sigmas_are_one_anothers_inverse(coordinates):
    sigmas = torch.tensor([0.0, 0.01, 0.3, 1.0, 14.6, 900.0], dtype=torch.float64)
    back = coordinates.sigma(coordinates.level(sigmas))
    torch.testing.assert_close(back, sigmas, rtol=1e-12, atol=0)  # float64; t is near 1 at 900
    falling = host_levels(coordinates, sigmas)
    assert falling.dtype == torch.float32 and bool((falling.diff() < 0).all())
    # float32 levels: near t = 1 one unit in the last place is 6e-8 / (1 - t) of sigma.
    torch.testing.assert_close(rising_sigmas(coordinates, falling), sigmas, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_flow_is_shown_what_it_was_trained_on(scale):
    x0, eps = noise(2, 3, 4, 4).double(), noise(2, 3, 4, 4, seed=4).double()
    t = torch.tensor([0.25, 0.9], dtype=torch.float64).view(2, 1, 1, 1)
    coordinates = Coordinates(scale)
    sigma = coordinates.sigma(t)
    z = (1 - t) * x0 + t * scale * eps
    torch.testing.assert_close(
        coordinates.shown(x0 + sigma * eps, sigma), z, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(coordinates.scale(sigma), 1 - t, rtol=1e-12, atol=0)


def test_an_eps_model_is_shown_x_and_scales_it_by_itself():
    x, sigma = noise(1, 4, 2, 2), torch.tensor(3.0)
    assert OURS.shown(x, sigma) is x
    assert float(OURS.scale(sigma)) == pytest.approx(10**-0.5)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_pure_noise_of_a_flow_is_cut_just_below_1(scale):
    coordinates = Coordinates(scale)
    sigma = coordinates.sigma(torch.tensor(1.0, dtype=torch.float64))
    assert float(sigma) == pytest.approx(scale * FLOW_T_MAX / (1 - FLOW_T_MAX), rel=1e-12)
    assert float(coordinates.level(sigma)) == pytest.approx(FLOW_T_MAX, rel=1e-12)


def test_two_levels_above_the_cut_are_refused(model):
    levels = part_of_schedule(model, "beta", 100, 1.0)
    assert float(levels[1]) > FLOW_T_MAX
    with pytest.raises(PalimpsestError, match=r"closer to pure noise.*fewer steps"):
        cycle_sde(request(model, levels=levels))


# --- families


def test_every_family_is_known_by_its_sampling(sd1_folder, sd2_folder):
    for folder in (sd1_folder, sd2_folder):
        assert coordinates_of(load_folder(folder).model, "X") == OURS
    assert coordinates_of(flow.make_flux(), "X") == Coordinates(1.0)
    assert coordinates_of(flow.make_sd3(), "X") == Coordinates(1.0)
    assert coordinates_of(flow.make_sd3(noise_scale=1.7), "X") == Coordinates(1.7)


FAMILIES = comfy.model_sampling
OTHERS = {
    "image to image": (FAMILIES.ModelSamplingDiscrete, FAMILIES.IMG_TO_IMG),
    "flow from an image": (FAMILIES.ModelSamplingDiscreteFlow, FAMILIES.IMG_TO_IMG_FLOW),
    "x0": (FAMILIES.ModelSamplingDiscrete, FAMILIES.X0),
    "cosmos": (FAMILIES.ModelSamplingCosmosRFlow, FAMILIES.COSMOS_RFLOW),
}


@pytest.mark.parametrize("kind", [*OTHERS, "edm"])
def test_other_families_are_refused_by_name(model, kind):
    other = model.clone()
    if kind == "edm":
        bases = FAMILIES.ModelSamplingContinuousEDM, FAMILIES.EDM
        sampling = type("Sampling", bases, {})()
        sampling.set_parameters(0.002, 80.0, 0.5)
    else:
        sampling = type("Sampling", OTHERS[kind], {})()
    other.add_object_patch("model_sampling", sampling)
    name = type(model.model).__name__
    sentence = f"SDEdit takes models that predict noise, v or a flow .* this {name} model"
    with pytest.raises(PalimpsestError, match=sentence):
        coordinates_of(other, "SDEdit")


# --- predictions


def in_session(model, algorithm, samples, levels, cfg=2.5):
    guider = host.BranchGuider(model)
    guider.set_conds(TARGET, EMPTY)
    guider.set_source(SOURCE, EMPTY)
    guider.set_cfg(cfg)
    return host.run(guider, samples, levels, algorithm, coordinates=coordinates_of(model, "X"))


def cores_own(model, samples, level, cfg=2.5, conditioning=TARGET):
    """What core's sampler is at and predicts there, beginning at x without noise of its own."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, EMPTY)
    guider.set_cfg(cfg)
    seen = []
    guider.sample(
        torch.zeros_like(samples),
        samples,
        comfy.samplers.ksampler("euler"),
        torch.tensor([level, 0.0]),
        callback=lambda step, denoised, z, total: seen.append((z.clone(), denoised.clone())),
        seed=0,
    )
    return seen[0]


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("level", [0.03, 0.5, 0.97])
def test_our_denoiser_is_cores_prediction(level, scale):
    for model in (flow.make_flux(), flow.make_sd3(noise_scale=scale)):
        samples = latent_for(model)
        coordinates = coordinates_of(model, "X")
        # Core's level is a float32: 3e-8 off 0.97, which would be 1e-6 of the 0.03 that is left.
        sigma = coordinates.sigma(torch.tensor(level).double())
        leftover = noised(model, {"samples": samples}, float(sigma), 5, None)

        def ours(session, sigma=sigma):
            return session.denoiser(session.target)(session.x0, sigma)

        predicted, spent = in_session(model, ours, leftover, torch.tensor([level, 0.0]))
        z, denoised = cores_own(model, leftover, level)
        x = model.model.process_latent_in(leftover)
        assert relative(z, coordinates.shown(x, sigma)) < FLOAT32
        assert relative(predicted, denoised) < NETWORK
        assert spent.rows == 2
        # The prompt and the guidance are heard, or agreeing would say little.
        assert relative(cores_own(model, leftover, level, conditioning=SOURCE)[1], denoised) > 1e-3
        assert relative(cores_own(model, leftover, level, cfg=1.0)[1], denoised) > 1e-3


@pytest.mark.parametrize(
    "guidance", [constant(1.0), constant(3.0), "ramp"], ids=["one", "three", "ramp"]
)
def test_a_level_per_row_is_a_call_per_level(model, guidance):
    levels = schedule(model, "simple", 4, 0.8)
    sigmas = rising_sigmas(coordinates_of(model, "X"), levels)
    scale = ramp(sigmas, 3.0) if guidance == "ramp" else guidance
    x0 = model.model.process_latent_in(latent_for(model))
    chain = torch.cat([x0 + float(sigma) * noise(*x0.shape, seed=7) for sigma in sigmas[1:]])

    def algorithm(session):
        denoise = session.denoiser(session.target, guidance=scale)
        apart = [denoise(x, s) for x, s in zip(chain.split(1), sigmas[1:], strict=True)]
        return denoise(chain, sigmas[1:]), torch.cat(apart)

    (together, apart), _ = in_session(model, algorithm, latent_for(model), levels)
    assert relative(together, apart) < NETWORK  # guided, in another batch


# --- Cycle-SDE and DiffEdit


def request(model, **changes):
    batch = changes.pop("batch", 1)
    defaults = {
        "source": SOURCE,
        "target": TARGET,
        "negative": EMPTY,
        "samples": latent_for(model, batch=batch),
        "levels": part_of_schedule(model, "simple", 6, 0.5),
        "cfg": 2.0,
        "seed": 1,
    }
    return CycleRequest(model, **(defaults | changes))


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("t0", [0.5, 1.0])
def test_an_unedited_latent_comes_back_bit_for_bit(model, eta, t0):
    levels = part_of_schedule(model, "simple", 4, t0)
    same = request(model, target=SOURCE, source_cfg=2.0, eta=eta, levels=levels, batch=2)
    latent, chain, spent = cycle_sde(same)
    assert torch.equal(latent, same.samples)
    assert bool(torch.isfinite(chain.latents).all())
    assert spent.rows == (0 if eta else 2 * chain.steps)  # DDIM inversion of two pictures


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_cycle_sde_edits_under_its_mask_alone(model, eta):
    mask = torch.zeros(1, 64, 64)
    mask[:, :40, :24] = 1
    asked = request(model, mask=mask, eta=eta)
    latent, _, _ = cycle_sde(asked)
    same = latent == asked.samples
    assert same[..., 5:, :].all() and same[..., 3:].all()
    assert not same[..., :5, :3].all(1).any()
    assert bool(torch.isfinite(latent).all())


def test_cycle_sde_from_pure_noise_is_finite(model):
    asked = request(model, levels=part_of_schedule(model, "simple", 4, 1.0))
    latent, chain, _ = cycle_sde(asked)
    assert float(chain.sigmas[-1]) == pytest.approx(FLOW_T_MAX / (1 - FLOW_T_MAX))
    assert bool(torch.isfinite(latent).all())
    assert relative(latent, asked.samples) > 0.01


def test_how_many_levels_go_into_a_call_is_a_matter_of_speed(model):
    one, many = (cycle_sde(request(model, levels_at_once=n))[0] for n in (1, 8))
    assert relative(one, many) < NETWORK


def test_a_second_edit_of_the_chain_costs_the_target_alone(model):
    asked = request(model)
    first, chain, spent = cycle_sde(asked)
    again, _, less = cycle_sde(request(model, samples=None, levels=None, trajectory=chain))
    assert torch.equal(again, first)
    assert (spent.rows, less.rows) == (3 * chain.steps, 2 * chain.steps)


def test_the_chain_of_another_flow_model_is_refused(model):
    _, chain, _ = cycle_sde(request(model))
    other = FLOWS["flux" if "SD3" in type(model.model).__name__ else "sd3"]()
    with pytest.raises(PalimpsestError, match="another model"):
        cycle_sde(request(other, samples=None, levels=None, trajectory=chain))


def test_the_chain_of_a_flow_model_of_the_same_shape_and_other_weights_is_refused(model):
    _, chain, _ = cycle_sde(request(model))
    other = FLOWS["sd3" if "SD3" in type(model.model).__name__ else "flux"]()
    flow.randomise(other.model.diffusion_model, seed=9)
    with pytest.raises(PalimpsestError, match="another model"):
        cycle_sde(request(other, samples=None, levels=None, trajectory=chain))


def test_diffedit_finds_a_mask_and_edits_there_alone(model):
    asked = request(model, feature="DiffEdit")
    latent, mask, _, spent = diffedit(asked, Draws(count=2, ratio=2.0))
    assert mask.shape == (1, 8, 8) and set(mask.unique().tolist()) == {0.0, 1.0}
    same = (latent == asked.samples).all(1)
    assert same[mask == 0].all() and not same[mask == 1].any()
    # Two draws under two guided prompts, then the edit.
    assert spent.rows == 2 * 4 + 3 * (len(asked.levels) - 1)


# --- SDEdit and inpainting


def painting(model, **changes):
    defaults = {
        "samples": latent_for(model),
        "levels": schedule(model, "simple", 3, 0.6),
        "cfg": 2.0,
        "seed": 1,
    }
    return SDEditRequest(model, TARGET, EMPTY, **(defaults | changes))


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_painting_keeps_every_bit_outside_the_mask(model, eta, order, strength):
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:, 16:48] = 1
    levels = schedule(model, "simple", 4, strength)
    asked = painting(
        model, levels=levels, mask=mask, eta=eta, order=order, wipe=strength == 1, repeats=2
    )
    latent, spent = paint_anew(asked)
    same = (latent == asked.samples).all(1)
    assert same[:, :2].all() and same[..., :2].all() and same[..., 6:].all()
    assert not same[:, 2:, 2:6].any()
    assert bool(torch.isfinite(latent).all())
    assert spent.rows == 2 * 4 * 2


def test_what_was_wiped_is_forgotten(model):
    samples = latent_for(model)
    other = samples.clone()
    other[..., 4:, :] += noise(1, flow.CHANNELS, 4, 8, seed=8)
    mask = torch.zeros(1, 64, 64)
    mask[:, 32:] = 1
    levels = schedule(model, "simple", 3, 0.5)
    wishes = {"mask": mask, "levels": levels}

    def difference(**more):
        one, two = (
            paint_anew(painting(model, samples=s, **wishes, **more))[0] for s in (samples, other)
        )
        return relative(one, two)

    # What is wiped is taken away in float32, and the rounding goes through the network.
    assert difference(wipe=True) < NETWORK
    assert difference() > 1e-2


@dataclass
class FirstCall:
    """A clone of a model that keeps what its first call was shown, and at which level."""

    model: object
    seen: list

    @classmethod
    def of(cls, model):
        seen = []

        def keep(executor, x, t, *args, **options):
            if not seen:
                seen.append((x[:1].clone(), float(t[0])))
            return executor(x, t, *args, **options)

        watched = model.clone()
        watched.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, keep)
        return cls(watched, seen)


@pytest.mark.parametrize(
    "strength",
    [Strength("denoise", 0.6), Strength("t0 (VP)", 0.5), Strength("t0 (VE)", 0.5)],
    ids=lambda s: s.unit,
)
def test_a_noised_guide_starts_cores_samplers_where_sdedit_starts(model, strength):
    """z on both sides: SDEdit in x, scaled for the model, and the LATENT through core's scaling."""
    ours, custom, advanced = (FirstCall.of(model) for _ in range(3))
    samples = latent_for(model)
    levels, sigma = levels_of(model, strength, "simple", 3)
    paint_anew(painting(ours.model, levels=levels, seed=4))
    leftover = noised(model, {"samples": samples}, sigma, 4, None)
    SamplerCustom.execute(
        custom.model,
        False,
        0,
        2.0,
        TARGET,
        EMPTY,
        comfy.samplers.ksampler("euler"),
        levels,
        {"samples": leftover},
    )
    (z, t), (other, other_t) = ours.seen[0], custom.seen[0]
    assert t == pytest.approx(other_t, rel=1e-6)  # float32
    assert relative(z, other) < FLOAT32
    if strength.unit != "denoise":
        return
    comfy.sample.sample(  # as KSampler (Advanced) with added noise disabled
        advanced.model,
        torch.zeros_like(leftover),
        5,
        2.0,
        "euler",
        "simple",
        TARGET,
        EMPTY,
        leftover,
        disable_noise=True,
        start_step=2,
    )
    other, other_t = advanced.seen[0]
    assert t == pytest.approx(other_t, rel=1e-6)
    assert relative(z, other) < FLOAT32


def test_cores_sampler_finishes_a_noised_guide_as_our_ode_does(model):
    levels, sigma = levels_of(model, Strength("denoise", 0.6), "simple", 4)
    samples = latent_for(model)
    ours, _ = paint_anew(painting(model, levels=levels, eta=0.0, seed=4))
    leftover = {"samples": noised(model, {"samples": samples}, sigma, 4, None)}
    euler = comfy.samplers.ksampler("euler")
    core = SamplerCustom.execute(model, False, 0, 2.0, TARGET, EMPTY, euler, levels, leftover)
    # Rounding of every step goes through the network again.
    assert relative(core.args[0]["samples"], ours) < 1e-4


# --- SDE-Drag and Copy-Paste


def dragging(model, vae, **changes):
    defaults = {
        "image": noise(1, 64, 64, 3).sigmoid(),
        "points": DragPoints((64, 64), (((20, 20), (44, 20)),)),
        "levels": part_of_schedule(model, "simple", 5, 0.6),
        "brush": Brush(1),
        "cfg": 2.0,
        "seed": 1,
    }
    wishes = defaults | changes
    return DragRequest(model, TARGET, EMPTY, vae, **wishes)


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_a_drag_keeps_every_bit_outside_its_mask(model, vae, eta):
    mask = torch.zeros(1, 64, 64)
    mask[:, 8:32] = 1
    path, drag = start_drag(dragging(model, vae, mask=mask, eta=eta))
    undragged = path.latent
    drag.run(path, lambda *_: None)
    same = (path.latent == undragged).all(1)
    assert same[:, 0].all() and same[:, 4:].all() and not same[:, 1:4].any()
    assert len(path.pictures) == path.steps + 1 == 3
    assert bool(torch.isfinite(path.latent).all())
    steps, invert = 3, 0 if eta else 3
    # At the lowest level guidance is 1: one row of the target, and the source is one call.
    assert path.rows == path.steps * (4 * steps - 1 + invert)


def test_copy_paste_is_the_copying_in_x(model):
    levels = torch.tensor([0.7, 0.4, 0.0])
    sigma = float(coordinates_of(model, "X").sigma(levels[0].double()))
    leftover = noised(model, {"samples": latent_for(model)}, sigma, 5, None)
    points, brush = DragPoints((64, 64), (((20, 20), (44, 28)),)), Brush(1)
    pasted = paste_on_latent(leftover, points, model, levels, brush=brush, seed=6)
    x = model.model.process_latent_in(leftover)
    expected = copy_paste(x, [Move(0, (2, 2), (5, 3))], sigma, brush=brush, draw=seeded(6))
    assert relative(model.model.process_latent_in(pasted), expected) < FLOAT32
    touched = expected != x
    assert touched.any() and torch.equal(pasted[~touched], leftover[~touched])
