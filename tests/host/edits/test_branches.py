"""Source and target each have their own conditioning, ControlNet included; core's samplers fit."""

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.noise import noise_of_trajectory
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.correction import UNCORRECTED, Correction
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def controlnet(sd1):
    """A random ControlNet of the model's shape, loud enough to be heard."""
    config = {k: v for k, v in sd1.model.model.model_config.unet_config.items()}
    config.pop("out_channels")
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, operations=comfy.ops.disable_weight_init, device="cpu"
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return comfy.controlnet.ControlNet(
        network.float().requires_grad_(False), load_device=torch.device("cpu")
    )


def with_controlnet(conditioning, controlnet):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    hinted = controlnet.copy().set_cond_hint(picture, 1.0, (0.0, 1.0))
    return [
        [embedding, {**extra, "control": hinted, "control_apply_to_uncond": True}]
        for embedding, extra in conditioning
    ]


def uncorrected(sd1, **changes):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), correction=UNCORRECTED))
    return replace(made, control=None, **changes)


def test_a_controlnet_on_the_target_leaves_the_source_alone(sd1, controlnet):
    plain = uncorrected(sd1)
    hinted = replace(plain, target=with_controlnet(plain.target, controlnet))
    before, after = edit(plain), edit(hinted)
    assert torch.equal(before[1], after[1])
    assert relative(after[0], before[0]) > 0.01


def test_a_controlnet_on_the_source_leaves_the_target_alone(sd1, controlnet):
    plain = uncorrected(sd1)
    hinted = replace(plain, source=with_controlnet(plain.source, controlnet))
    before, after = edit(plain), edit(hinted)
    assert torch.equal(before[0], after[0])
    assert relative(after[1], before[1]) > 0.01


def test_a_controlnet_between_prompt_to_prompt_and_edit_is_let_through(sd1, controlnet):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1)))
    hinted = replace(made, target=with_controlnet(made.target, controlnet))
    assert relative(edit(hinted)[0], edit(made)[0]) > 0.01


def lora_weights(model):
    """A random LoRA on every cross-attention's value projection."""
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for key, value in model.model.state_dict().items():
        if key.endswith("attn2.to_v.weight"):
            name = key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
            rows, columns = value.shape
            weights[f"lora_unet_{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
            weights[f"lora_unet_{name}.lora_down.weight"] = torch.randn(
                2, columns, generator=generator
            )
    return weights


def lora(model, strength):
    """The model under that LoRA."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora_weights(model), strength, 0.0)
    return patched


def test_a_lora_takes_effect_on_inversion_and_edit(sd1):
    setting = agree.Setting(latent_for(sd1))
    plain, _ = agree.request(sd1, setting)
    patched, _ = agree.request(sd1, setting, model=lora(sd1.model, 0.05))
    assert relative(patched.trajectory.start, plain.trajectory.start) > 1e-3
    assert relative(edit(patched)[0], edit(plain)[0]) > 1e-3
    again, _ = agree.request(sd1, setting)
    assert torch.equal(again.trajectory.latents, plain.trajectory.latents)


def inverted(sd1, refinement, steps=8):
    sigmas = schedule(sd1.model, "simple", steps, 0.5)
    source = agree.encode(sd1.clip, agree.SOURCE)
    picture = Picture(sd1.model, source, source, latent_for(sd1), sigmas, 1.0, "Invert (DDIM)")
    trajectory, _ = invert_ddim(picture, convention="destination", refinement=refinement)
    return trajectory, source


def sample(sd1, source, noise, latent, sigmas, guider=None, sampler="euler"):
    """What SamplerCustomAdvanced does."""
    if guider is None:
        guider = comfy.samplers.CFGGuider(sd1.model)
        guider.set_conds(source, source)
        guider.set_cfg(1.0)
    return guider.sample(noise, latent, comfy.samplers.ksampler(sampler), sigmas, seed=0)


def test_the_inverted_latent_comes_back_through_core_euler(sd1):
    errors = {}
    for refinement in (0, 6):
        trajectory, source = inverted(sd1, refinement)
        leftover = trajectory.in_host_scale(trajectory.start)
        back = sample(sd1, source, torch.zeros_like(leftover), leftover, trajectory.falling_sigmas)
        errors[refinement] = relative(back, trajectory.origin)
    assert errors[6] < 1e-3 < errors[0]


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("latent", ["empty", "the picture"])
def test_the_noise_output_starts_core_where_the_inversion_ended(sd1, strength, latent):
    sigmas = schedule(sd1.model, "simple", 4, strength)
    source = agree.encode(sd1.clip, agree.SOURCE)
    picture = Picture(sd1.model, source, source, latent_for(sd1), sigmas, 1.0, "Invert (DDIM)")
    trajectory, _ = invert_ddim(picture, convention="current", refinement=0)
    noise = noise_of_trajectory(sd1.model, trajectory)
    base = trajectory.origin if latent == "the picture" else torch.zeros_like(trajectory.origin)
    first = []

    def keep_first(step, denoised, x, total):
        first.append(x) if step == 0 else None

    guider = comfy.samplers.CFGGuider(sd1.model)
    guider.set_conds(source, source)
    guider.sample(
        noise.generate_noise({"samples": base}),
        base,
        comfy.samplers.ksampler("euler"),
        sigmas,
        callback=keep_first,
        seed=0,
    )
    assert relative(first[0], trajectory.start) < 1e-5


@pytest.mark.parametrize("correction", [Correction(), UNCORRECTED], ids=["direct", "none"])
def test_the_guider_walks_as_edit_does(sd1, correction):
    mask = torch.zeros(1, 64, 64)
    mask[:, :40, :40] = 1
    setting = agree.Setting(latent_for(sd1), correction=correction, mask=mask)
    made, _ = agree.request(sd1, setting)
    made = replace(made, keep_source=False)
    expected, _, _, _ = edit(made)
    start = made.trajectory.in_host_scale(made.trajectory.start)
    for _ in range(2):  # core hands the same guider to every later run
        out = sample(
            sd1,
            None,
            torch.zeros_like(start),
            start,
            made.trajectory.falling_sigmas,
            guider := EditGuider(made),
        )
        assert relative(out, expected) < 1e-4
        assert torch.equal(out[..., 5:, :], setting.latent[..., 5:, :])
    assert guider.walk is None


def test_the_guider_refuses_what_it_cannot_walk(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1)))
    start = made.trajectory.in_host_scale(made.trajectory.start)
    zeros, sigmas = torch.zeros_like(start), made.trajectory.falling_sigmas
    guider = EditGuider(made)
    with pytest.raises(PalimpsestError, match="euler and ddim, the sampler is heun"):
        sample(sd1, None, zeros, start, sigmas, guider, "heun")
    with pytest.raises(PalimpsestError, match="the trajectory's own sigmas"):
        sample(sd1, None, zeros, start, sigmas[1:], guider)
    with pytest.raises(PalimpsestError, match="does not start where the inversion ended"):
        sample(sd1, None, torch.randn_like(start), zeros, sigmas, guider)
    with pytest.raises(PalimpsestError, match="use Edit Inverted Image for the others"):
        EditGuider(replace(made, correction=Correction(scale=0.5)))


def test_what_other_nodes_do_to_the_guidance_takes_effect_once(sd1):
    from comfy_extras.nodes_custom_sampler import CFGOverride

    setting = agree.Setting(latent_for(sd1), cfg=2.0)
    made, _ = agree.request(sd1, setting)
    stronger, _, _, _ = edit(replace(made, cfg=4.0))
    (patched,) = CFGOverride.execute(sd1.model, 4.0, 0.0, 1.0).args
    overridden = replace(made, model=patched)
    # Under another's node the source runs apart from the target: other sizes of batch.
    assert relative(edit(overridden)[0], stronger) < 1e-4
    start = made.trajectory.in_host_scale(made.trajectory.start)
    sigmas = made.trajectory.falling_sigmas
    out = sample(sd1, None, torch.zeros_like(start), start, sigmas, EditGuider(overridden))
    assert relative(out, stronger) < 1e-4
    assert relative(edit(made)[0], stronger) > 1e-3


def test_cancel_stops_before_the_next_call_of_the_network(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1)))
    calls = []

    def cancel_in_the_third(executor, *args, **options):
        calls.append(len(args[0]))
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return executor(*args, **options)

    model = sd1.model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, cancel_in_the_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        edit(replace(made, model=model))
    assert len(calls) == 3
    assert torch.equal(edit(made)[1], made.trajectory.origin)  # and the next run is whole
