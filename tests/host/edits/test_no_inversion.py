"""Edits without inversion on ComfyUI's models: what is kept bit for bit, and what it costs."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import node_helpers
import pytest
import torch
from palimpsest.hosts.comfy.edits import no_inversion
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.no_inversion import (
    BY_MODEL,
    PRESETS,
    NoInversion,
    Numbers,
    edit_without_inversion,
    preset_of,
)
from palimpsest.hosts.comfy.inversions.memory import remembered
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.diffusers.no_inversion import noise_freshly
from palimpsest.nodes.control import PromptToPrompt
from palimpsest.nodes.no_inversion import LEFT, EditNoInversion, Own
from palimpsest.nodes.source_controls import PlugAndPlayNode
from palimpsest.pipelines.aligned import Manner
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.fresh_noise import FreshNoise
from palimpsest.pipelines.schedule import sigma_from_t
from palimpsest.tests.host import agree, flow, shapes
from palimpsest.tests.host.agree import encode
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.inversions.test_laws import settings_of

#: float32 in a batch of another size, through a network of random weights.
BATCHED = 1e-5
#: Two libraries' kernels in float32, at little noise (see agree.Setting).
HOSTS = 1e-4
#: The same formulas in other coordinates, in float32.
RESTATED = 1e-5

FEW = Numbers(6, 0.5, 1.5, 2.5)

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@cache
def made(make):
    """A network of random weights, which every test leaves as it was."""
    with torch.inference_mode(False):
        return make()


def on_a_flow(make=flow.make_flux, numbers=FEW, *, target=2, batch=1, **changes):
    model = made(make)
    generator = torch.Generator().manual_seed(5)
    source, wanted, empty = (flow.prompt(seed) for seed in (1, target, 0))
    samples = torch.randn(batch, flow.CHANNELS, 8, 8, generator=generator)
    request = NoInversion(model, source, wanted, empty, samples, numbers, "simple")
    return replace(request, **changes)


def on_a_unet(loaded, numbers=FEW, *, source="a red cat", target="a blue dog", **changes):
    prompts = (encode(loaded.clip, text) for text in (source, target, ""))
    request = NoInversion(loaded.model, *prompts, latent_for(loaded), numbers, "simple")
    return replace(request, **changes)


@pytest.fixture(params=["flux", "sd3", "sd1"])
def request_of(request):
    """Makes an edit on a distilled flow, a flow, and a model that predicts noise."""
    if request.param == "sd1":
        loaded = agree.in_comfyui(request.getfixturevalue("sd1_folder"))
        return lambda *args, target=2, **changes: on_a_unet(
            loaded, *args, target="a blue dog" if target == 2 else "a red cat", **changes
        )
    make = {"flux": flow.make_flux, "sd3": flow.make_sd3}[request.param]
    return lambda *args, **changes: on_a_flow(make, *args, **changes)


KINDS = [PRESETS[name] for name in ("FlowEdit (Flux)", "FlowAlign", "DVRF", "DDCM (few steps)")]


@pytest.mark.parametrize("numbers", KINDS, ids=["FlowEdit", "FlowAlign", "DVRF", "DDCM"])
def test_the_same_prompt_at_equal_guidance_gives_the_picture_bit_for_bit(request_of, numbers):
    few = replace(numbers, steps=4, strength=0.75)
    if not few.against_source:  # at whatever scale: it is guided away from itself
        few = replace(few, cfg=few.source_cfg)
    same = request_of(few, target=1)
    out = edit_without_inversion(same)
    assert torch.equal(out.latent, same.samples)
    assert out.spent.rows == out.trajectory.recipe.rows
    assert not torch.equal(edit_without_inversion(request_of(few)).latent, same.samples)


#: Rows of the published codes at their own numbers: Flux 24 x 2, SD 3 33 x 4, FlowAlign 33 x 3.
ROWS = {
    ("FlowEdit (Flux)", "flux"): 48,
    ("FlowEdit (SD 3)", "sd3"): 132,
    ("FlowAlign", "sd3"): 99,
    ("DVRF", "sd3"): 200,
    ("DDCM (few steps)", "sd3"): 12 * 3,
    ("DDCM (few steps)", "flux"): 12 * 2,
    ("FlowAlign", "flux"): 99,
}


@pytest.mark.parametrize(("preset", "model"), ROWS)
def test_rows_are_those_of_the_published_codes(preset, model):
    make = {"flux": flow.make_flux, "sd3": flow.make_sd3}[model]
    out = edit_without_inversion(on_a_flow(make, PRESETS[preset]))
    assert out.spent.rows == ROWS[preset, model]


def test_the_preset_is_chosen_by_the_model(sd1):
    assert preset_of(made(flow.make_flux)) == "FlowEdit (Flux)"
    assert preset_of(made(flow.make_sd3)) == "FlowEdit (SD 3)"
    assert preset_of(made(shapes.make_wan)) == "FlowEdit (SD 3)"
    assert preset_of(sd1.model) == "FlowEdit (UNet)"


def published_flow_edit(request, levels):
    """FlowEdit in z and t, the network asked through core's own model call."""
    model, numbers = request.model.model, request.numbers
    x0 = model.process_latent_in(request.samples.float())
    noises = torch.Generator().manual_seed(request.seed)

    def velocity(z, t, prompt, scale):
        embedding, more = prompt[0]
        guidance = torch.tensor([scale])
        rows = {"c_crossattn": embedding, "y": more["pooled_output"], "guidance": guidance}
        return (z - model.apply_model(z, t[None].float(), **rows)) / t

    z_edit = x0.clone()
    for t, t_next in pairwise(levels):
        noise = torch.randn(x0.shape, generator=noises)
        z_source = (1 - t) * x0 + t * noise
        z_target = z_edit + z_source - x0
        moved = velocity(z_target, t, request.target, numbers.cfg) - velocity(
            z_source, t, request.source, numbers.source_cfg
        )
        z_edit = z_edit + (t_next - t) * moved
    return model.process_latent_out(z_edit)


def test_on_flux_it_is_the_published_loop_in_flow_time_with_distilled_guidance():
    request = on_a_flow(flow.make_flux, replace(FEW, strength=5 / 6))
    out = edit_without_inversion(request)
    levels = out.trajectory.falling_sigmas
    wanted = published_flow_edit(request, levels)
    assert relative(out.latent, wanted) < RESTATED
    assert relative(out.latent, request.samples) > 0.01


def test_the_distilled_guidance_of_a_prompt_that_has_its_own_is_left_alone():
    request = on_a_flow()
    own = node_helpers.conditioning_set_values(request.target, {"guidance": 9.0})
    mine = edit_without_inversion(replace(request, target=own))
    said = edit_without_inversion(replace(request, numbers=replace(FEW, cfg=9.0)))
    assert torch.equal(mine.latent, said.latent)
    assert not torch.equal(mine.latent, edit_without_inversion(request).latent)


def test_a_mask_keeps_the_rest_bit_for_bit(request_of):
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    request = request_of(mask=mask)
    out = edit_without_inversion(request).latent
    kept = out == request.samples
    assert bool(kept[..., 4:].all()) and not bool(kept[..., :4].all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_the_rest_and_the_picture_too(sd1_folder, monkeypatch, dtype):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp16_unet" if dtype == torch.float16 else "bf16_unet", True)
    half = load_folder(sd1_folder)
    assert half.model.model.get_dtype() == dtype
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    request = on_a_unet(half, mask=mask)
    out = edit_without_inversion(request).latent
    assert torch.equal(out[..., 4:], request.samples[..., 4:])
    same = on_a_unet(half, replace(FEW, cfg=1.5), target="a red cat")
    assert torch.equal(edit_without_inversion(same).latent, same.samples)


def test_pictures_of_a_batch_are_edited_as_they_are_alone(request_of):
    numbered = request_of(batch_index=(0,)).samples
    two = torch.cat([numbered, -numbered])
    together = edit_without_inversion(request_of(samples=two, batch_index=(0, 1))).latent
    for row in range(2):
        one = request_of(samples=two[row : row + 1], batch_index=(row,))
        assert relative(together[row : row + 1], edit_without_inversion(one).latent) < BATCHED


def test_a_video_is_edited_frame_beside_frame():
    model = made(shapes.make_wan)
    samples = shapes.latent_for(model, frames=2)
    prompts = [flow.prompt(seed) for seed in (1, 2, 0)]
    request = NoInversion(model, *prompts, samples, FEW, "simple")
    mask = torch.zeros(1, *(8 * n for n in samples.shape[-2:]))
    mask[..., :8] = 1
    out = edit_without_inversion(replace(request, mask=mask)).latent
    assert out.shape == samples.shape
    assert torch.equal(out[..., 1:], samples[..., 1:])
    assert not torch.equal(out[..., :1], samples[..., :1])


def test_another_seed_is_another_edit_and_more_draws_are_steadier():
    def apart(draws):
        numbers = replace(FEW, draws=draws)
        outs = [edit_without_inversion(on_a_flow(numbers=numbers, seed=s)).latent for s in range(3)]
        return float(torch.stack(outs).std(0).mean())

    assert apart(6) < 0.7 * apart(1)


def test_what_the_source_says_is_asked_once_for_every_edit(monkeypatch, sd1):
    monkeypatch.setattr(no_inversion, "remembered", remembered)
    first = edit_without_inversion(on_a_unet(sd1))
    again = edit_without_inversion(on_a_unet(sd1, target="a green bird"))
    assert not first.known and again.known
    source = first.trajectory.recipe.rows
    assert first.spent.rows - source == again.spent.rows == 3 * 2
    monkeypatch.setattr(no_inversion, "remembered", lambda m, w, invert, s: (invert(), False))
    assert torch.equal(
        again.latent, edit_without_inversion(on_a_unet(sd1, target="a green bird")).latent
    )


def test_how_it_is_walked_does_not_ask_the_source_anew(monkeypatch, sd1):
    monkeypatch.setattr(no_inversion, "remembered", remembered)
    edit_without_inversion(on_a_unet(sd1))
    for manner in (Manner(zeta=0.1), Manner(renoise=True), Manner(lag="fading")):
        out = edit_without_inversion(on_a_unet(sd1, replace(FEW, manner=manner)))
        assert out.known and out.trajectory.find(FreshNoise).zeta == manner.zeta
    plain = replace(FEW, manner=Manner(plain_steps=1))
    for changed in (
        plain,
        replace(FEW, draws=2),
        replace(FEW, steps=8),
        replace(FEW, source_cfg=2.0),
    ):
        assert not edit_without_inversion(on_a_unet(sd1, changed)).known
    assert not edit_without_inversion(on_a_unet(sd1, seed=1)).known
    assert not edit_without_inversion(on_a_unet(sd1, source="a red hat")).known


def test_its_trajectory_serves_another_edit(sd1):
    request = on_a_unet(sd1)
    out = edit_without_inversion(request)
    prompts = (request.source, request.target, request.negative)
    rest = (None, None, DIRECT_INVERSION)
    along = edit(EditRequest(sd1.model, out.trajectory, *prompts, FEW.cfg, *rest))
    assert torch.equal(along.latent, out.latent)
    assert along.spent.rows == out.spent.rows - out.trajectory.recipe.rows


@pytest.mark.parametrize("control", [False, True])
def test_both_hosts_agree(sd1_folder, control):
    setting = agree.Setting(latent_for(agree.in_comfyui(sd1_folder)))
    loaded, model = agree.in_comfyui(sd1_folder), agree.headless(sd1_folder)
    texts = (setting.source, setting.target, "")
    numbers = Numbers(10, 0.3, 1.5, 2.5)
    request = on_a_unet(loaded, numbers, source=setting.source, target=setting.target)
    words = None
    if control:
        told = settings_of(PromptToPrompt) | dict(zip(("source", "target"), texts, strict=False))
        made = PromptToPrompt.execute(clip=loaded.clip, **told).args
        request = replace(request, source=made[1], target=made[2], control=made[0])
        words = made[0].control
    ours = edit_without_inversion(request)
    scale = loaded.model.model.latent_format.scale_factor
    source, target, empty = (model.prompt(text) for text in texts)
    trajectory = noise_freshly(
        model.unet,
        request.samples * scale,
        source,
        ours.trajectory.sigmas,
        whole=numbers.steps,
        negative=empty,
        source_cfg=numbers.source_cfg,
    )
    whole = model.unet.edit(trajectory, source, target, empty, cfg=numbers.cfg, control=words)
    assert relative(ours.latent, whole.run().latent / scale) < HOSTS
    assert relative(ours.latent, request.samples) > 0.01


def test_a_control_reads_the_source_in_every_noise(sd1):
    told = settings_of(PromptToPrompt) | {"source": "a red cat", "target": "a blue cat"}
    control, source, target = PromptToPrompt.execute(clip=sd1.clip, **told).args[:3]
    request = replace(
        on_a_unet(sd1, replace(FEW, draws=2)), source=source, target=target, control=control
    )
    free = edit_without_inversion(replace(request, control=None))
    held = edit_without_inversion(request)
    assert not torch.equal(held.latent, free.latent)
    read = held.spent.rows - free.spent.rows
    assert 0 < read <= 2 * 3


def test_a_control_that_cannot_be_is_refused_before_the_source_is_asked(sd1, monkeypatch):
    told = settings_of(PromptToPrompt) | {"source": "a red cat", "target": "a blue cat"}
    control = PromptToPrompt.execute(clip=sd1.clip, **told).args[0]
    monkeypatch.setattr(no_inversion, "fresh_noise", lambda *_, **__: pytest.fail("it was asked"))
    structure = PlugAndPlayNode.execute(**settings_of(PlugAndPlayNode)).args[0]
    with pytest.raises(PalimpsestError, match="edit without the control"):
        edit_without_inversion(on_a_flow(control=structure))
    with pytest.raises(PalimpsestError, match="source conditioning is not the one this control"):
        edit_without_inversion(on_a_unet(sd1, source="a dog", control=control))


def execute(sd1, **changes):
    """The node, with what its widgets say."""
    inputs = {wanted.id: wanted for wanted in EditNoInversion.GET_SCHEMA().inputs}
    own = {key: wanted.default for key, wanted in inputs.items() if hasattr(wanted, "default")}
    prompts = {
        name: encode(sd1.clip, text)
        for name, text in (("source", "a cat"), ("target", "a dog"), ("negative", ""))
    }
    given = {**own, "steps": 4, "model": sd1.model, **prompts}
    given |= {"latent": {"samples": latent_for(sd1)}, "control": None, "mask": None}
    return EditNoInversion.execute(**(given | changes))


def test_the_node_tells_which_numbers_it_took(sd1):
    told = execute(sd1).ui["palimpsest_text"][0]
    numbers = PRESETS["FlowEdit (UNet)"]
    walked = round(4 * numbers.strength)
    assert told.startswith(
        f"FlowEdit (UNet): the last {walked} of 4 steps, guidance {numbers.source_cfg:g} and "
        f"{numbers.cfg:g}\n"
    )
    said = {"preset": "FlowAlign", "cfg": 2.0, "draws": 2, "zeta": 0.0, "plain_steps": 1}
    told = execute(sd1, **said).ui["palimpsest_text"][0]
    assert told.startswith(
        "FlowAlign: the last 4 of 4 steps, guidance 1 and 2, 2 noises a step, 1 of them plain\n"
    )


def test_every_number_of_ones_own_takes_the_place_of_the_presets():
    left = Own(
        strength=-1.0, cfg=-1.0, source_cfg=-1.0, steps=-1, draws=-1, zeta=-1.0, plain_steps=-1
    )
    align = PRESETS["FlowAlign"]
    assert left.over(align) == align
    said = Own(strength=0.5, cfg=0.0, source_cfg=2.0, steps=9, draws=3, zeta=0.0, plain_steps=2)
    manner = replace(align.manner, zeta=0.0, plain_steps=2)
    assert said.over(align) == Numbers(9, 0.5, 2.0, 0.0, 3, manner, against_source=True)
    assert LEFT == -1 and BY_MODEL not in PRESETS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"negative": None}, r"negative is not connected, which guidance 3 of the source and 5 of"),
        ({"strength": 0.0}, r"Strength 0 of 4 steps leaves no step to walk"),
        ({"plain_steps": 4}, r"The last 4 steps shall be plain sampling, of 2 that are walked"),
        ({"draws": 0}, r"At least 1 noise is drawn at every level, got 0"),
        ({"mask": torch.ones(2, 64, 64)}, r"The mask holds 2 pictures, 1 shall be edited"),
        ({"preset": "FlowEdit"}, r"preset is 'FlowEdit', it must be one of those in its list"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(sd1, changes, said):
    with pytest.raises(PalimpsestError, match=said):
        execute(sd1, **changes)


def test_no_negative_is_needed_where_none_is_read(sd1):
    without, with_one = (
        execute(sd1, preset="FlowAlign", **more).args[0]["samples"]
        for more in ({"negative": None}, {})
    )
    assert torch.equal(without, with_one)
    flux = on_a_flow(negative=None)
    assert torch.equal(
        edit_without_inversion(flux).latent, edit_without_inversion(on_a_flow()).latent
    )


def test_pure_noise_of_a_flow_is_cut_just_below(request_of):
    out = edit_without_inversion(request_of(replace(FEW, strength=1.0)))
    top = float(out.trajectory.sigmas[-1])
    assert top <= float(sigma_from_t(torch.tensor(1.0, dtype=torch.float64)))
    assert bool(torch.isfinite(out.latent).all())
