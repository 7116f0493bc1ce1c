"""EDICT inside ComfyUI: round trips, agreement with the other host, and flow models."""

from dataclasses import replace
from functools import partial

import comfy.samplers
import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.inversions.picture import Picture, invert
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.diffusers.edict import invert_edict as invert_in_diffusers
from palimpsest.pipelines.correction import DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import Coupled, couple
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_edit import latent_for, relative

#: fp32 on both sides; kernels and the order of sums differ.
HOSTS_AGREE = 3e-4
#: Up and down again, random weights let rounding grow ten thousand times above this much noise.
CALM = 0.1

STEPS, CFG = 3, 3.0


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def inverted(model, source, empty, latent, levels, cfg=CFG):
    picture = Picture(model, source, empty, latent, levels, cfg, "Invert (EDICT)")
    return invert(picture, partial(couple, mixing=0.93))


def request(loaded, latent, *, target=agree.TARGET, steps=STEPS, strength=0.35, control=False):
    """Invert the picture and make the request of an edit, and what the inversion spent."""
    made, _ = agree.request(
        loaded, agree.Setting(latent, steps, strength, CFG, target=target, control=control)
    )
    levels = schedule(loaded.model, "simple", steps, strength)
    trajectory, spent = inverted(loaded.model, made.source, made.negative, latent, levels)
    return replace(made, trajectory=trajectory), spent


@pytest.mark.parametrize(
    ("kind", "steps"), [("sd1_folder", 40), ("sd2_folder", 5), ("sdxl_folder", 5)]
)
def test_steps_at_guidance_three_give_the_latent_back_bit_for_bit(kind, steps, request_fixture):
    loaded = agree.in_comfyui(request_fixture(kind))
    latent = latent_for(loaded)
    made, spent = request(loaded, latent, target=agree.SOURCE, steps=steps, strength=0.8)
    back, source, spent_again, _ = edit(made)
    assert torch.equal(back, latent)
    assert torch.equal(source, latent)
    assert spent.rows == spent_again.rows == steps * 4


@pytest.fixture
def request_fixture(request):
    return request.getfixturevalue


@pytest.mark.parametrize("kind", ["sd1_folder", "sd2_folder", "sdxl_folder"])
def test_both_hosts_make_the_same_edit(kind, request_fixture):
    folder = request_fixture(kind)
    loaded = agree.in_comfyui(folder)
    latent = latent_for(loaded)
    steps = 4
    made, spent = request(loaded, latent, steps=steps, strength=CALM, control=True)
    ours, _, spent_again, _ = edit(made)
    model = agree.headless(folder)
    scale = loaded.model.model.latent_format.scale_factor
    size = tuple(8 * n for n in latent.shape[-2:])
    prompts = [model.prompt(text, size=size) for text in (agree.SOURCE, agree.TARGET, "")]
    source, target, empty = prompts
    rows = RowCount()
    trajectory = invert_in_diffusers(
        model.unet, latent * scale, source, empty, made.trajectory.sigmas, rows=rows
    )
    pairs = [t.find(Coupled) for t in (made.trajectory, trajectory)]
    assert relative(pairs[0].partner, pairs[1].partner) < HOSTS_AGREE
    control = agree.words(source.tokens, target.tokens)
    whole = model.unet.edit(trajectory, *prompts, cfg=CFG, control=control, rows=rows)
    theirs = whole.run().latent / scale
    assert relative(ours, theirs) < HOSTS_AGREE
    # 4 steps of 4 rows each way; the control's windows are open in 3 of them, 2 rows more.
    assert spent.rows + spent_again.rows == rows.rows == 2 * steps * 4 + 2 * 3
    free, _, _, _ = edit(replace(made, control=None))
    assert relative(free, ours) > 30 * HOSTS_AGREE


def test_outside_the_mask_the_latent_is_bit_equal(sd1):
    mask = torch.zeros(1, 64, 96)
    mask[:, :24, :40] = 1
    latent = latent_for(sd1, 8, 12)
    made, _ = request(sd1, latent)
    done, _, _, _ = edit(replace(made, mask=mask))
    same = done == latent
    assert same[..., 3:, :].all() and same[..., 5:].all()
    assert not same[..., :3, :5].any()


def test_the_correction_is_not_read(sd1):
    made, _ = request(sd1, latent_for(sd1))
    results = [edit(replace(made, correction=c)) for c in (DIRECT_INVERSION, UNCORRECTED)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[1][1], made.trajectory.origin)
    assert results[0][2].rows == results[1][2].rows


def test_a_batch_is_edited_as_its_pictures_are(sd1):
    latent = latent_for(sd1, 6, 10, batch=2)
    both, _, _, _ = edit(request(sd1, latent)[0])
    single = [edit(request(sd1, latent[i : i + 1])[0])[0] for i in range(2)]
    assert relative(both, torch.cat(single)) < 1e-4


def test_a_batch_of_prompts_edits_one_picture(sd1):
    made, _ = request(sd1, latent_for(sd1))
    texts = (agree.TARGET, "a green heart on grass")
    targets = [agree.encode(sd1.clip, text) for text in texts]
    (embedding, more), (other, _) = targets[0][0], targets[1][0]
    batch = [[torch.cat([embedding, other]), more]]
    both, _, _, _ = edit(replace(made, target=batch))
    single = [edit(replace(made, target=target))[0] for target in targets]
    assert relative(both, torch.cat(single)) < 1e-4
    assert relative(single[0], single[1]) > 1e-3


def test_the_same_inversion_twice_has_the_same_bits(sd1):
    first, second = (request(sd1, latent_for(sd1))[0].trajectory for _ in "ab")
    assert torch.equal(first.latents, second.latents)
    for name in ("partner", "guesses"):
        assert torch.equal(*(getattr(t.find(Coupled), name) for t in (first, second)))


def test_no_sampler_walks_both_chains(sd1):
    made, _ = request(sd1, latent_for(sd1))
    with pytest.raises(PalimpsestError, match="EDICT's, whose two chains no sampler"):
        EditGuider(made)


# -- rectified flow ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["flux", "sd3", "sd3 noise scale 0.5"])
def flow_model(request):
    makers = {
        "flux": flow.make_flux,
        "sd3": flow.make_sd3,
        "sd3 noise scale 0.5": lambda: flow.make_sd3(noise_scale=0.5),
    }
    return makers[request.param]()


def flow_request(model, target, steps, strength):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, flow.CHANNELS, 8, 8, generator=generator)
    latent = model.model.process_latent_out(noise)
    source, empty = flow.prompt(1), flow.prompt(0)
    levels = schedule(model, "simple", steps, strength)
    trajectory, spent = inverted(model, source, empty, latent, levels)
    made = EditRequest(model, trajectory, source, target, empty, CFG, None, None, DIRECT_INVERSION)
    return made, spent, latent


@pytest.mark.parametrize("strength", [0.8, 1.0])
def test_flow_models_give_the_latent_back_bit_for_bit(flow_model, strength):
    made, spent, latent = flow_request(flow_model, flow.prompt(1), 5, strength)
    back, source, spent_again, _ = edit(made)
    assert torch.equal(back, latent)
    assert torch.equal(source, latent)
    assert spent.rows == spent_again.rows == 5 * 4
    assert made.trajectory.find(Coupled).partner.isfinite().all()


def test_an_edit_of_a_flow_model_is_the_recurrence_in_its_own_coordinates(flow_model):
    """z = (1 - t) x0 + t s noise: the clean end and the noise of a step, s the noise scale."""
    made, _, latent = flow_request(flow_model, flow.prompt(2), STEPS, 0.8)
    ours, _, _, _ = edit(made)
    trajectory, scale = made.trajectory, made.trajectory.recipe.noise_scale
    times = (trajectory.sigmas / (scale + trajectory.sigmas)).float()
    chains = trajectory.latents, trajectory.find(Coupled).partner
    pair = [c[-1] * (1 - times[-1]) for c in chains]
    for i in range(STEPS):
        t, below = times[STEPS - i], times[STEPS - i - 1]
        for own in (0, 1) if i % 2 == 0 else (1, 0):
            other = pair[1 - own]
            noise = (other - (1 - t) * flow_denoised(made, other, t)) / t
            clean = (pair[own] - t * noise) / (1 - t)
            pair[own] = (1 - below) * clean + below * noise
        pair[0] = 0.93 * pair[0] + 0.07 * pair[1]
        pair[1] = 0.07 * pair[0] + 0.93 * pair[1]
    expected = flow_model.model.process_latent_out(pair[0])
    assert relative(ours, expected) < HOSTS_AGREE
    assert relative(ours, latent) > 10 * HOSTS_AGREE


def flow_denoised(made, z, t):
    """Core's own guided prediction of the clean latent."""
    guider, found = comfy.samplers.CFGGuider(made.model), []
    guider.set_conds(made.target, made.negative)
    guider.set_cfg(made.cfg)

    def ask_once(model, x, sigmas, extra_args, **_):
        found.append(model(z, t.expand(len(z)), **extra_args))
        return x

    empty, levels = torch.zeros_like(z), torch.tensor([float(t), 0.0])
    guider.sample(empty, empty, comfy.samplers.KSAMPLER(ask_once), levels, disable_pbar=True)
    return found[0]
