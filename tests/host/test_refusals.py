"""Bad input gets one sentence: which input, what it was, what it must be, what to do."""

from dataclasses import replace

import comfy.model_sampling
import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.files.trajectories import trajectory_from_latents
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.refusals import refuse_noise_mask
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def made(sd1):
    return agree.request(sd1, agree.Setting(latent_for(sd1)))[0]


def as_flow(model):
    """The model with a flow model's sampling, as core's ModelSamplingSD3 node sets it."""

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", Flow(model.model.model_config))
    return patched


def run_invert(sd1, model=None, latent=None, sigmas=None):
    source = agree.encode(sd1.clip, agree.SOURCE)
    picture = Picture(
        model or sd1.model,
        source,
        source,
        latent_for(sd1) if latent is None else latent,
        schedule(sd1.model, "simple", 3, 0.5) if sigmas is None else sigmas,
        1.0,
        "Invert (DDIM)",
    )
    return invert_ddim(picture, convention="destination", refinement=0)


def as_other(model):
    """The model with a sampling that we do not know: one that predicts the picture itself."""

    class Clean(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
        pass

    patched = model.clone()
    patched.add_object_patch("model_sampling", Clean(model.model.model_config))
    return patched


def test_a_model_of_an_unknown_kind_is_refused(sd1, made):
    sentence = "takes models that predict noise, v or a flow"
    with pytest.raises(PalimpsestError, match=rf"Invert \(DDIM\) {sentence}"):
        run_invert(sd1, model=as_other(sd1.model))
    with pytest.raises(PalimpsestError, match=f"Edit {sentence}"):
        edit(replace(made, model=as_other(sd1.model)))


def test_a_trajectory_of_a_flow_is_refused_by_a_model_that_is_none(sd1, made):
    flow, _ = run_invert(sd1, model=as_flow(sd1.model), sigmas=torch.tensor([0.6, 0.3, 0.0]))
    with pytest.raises(PalimpsestError, match="made with a flow model"):
        edit(replace(made, trajectory=flow))


def test_a_trajectory_of_another_model_is_refused(made, sd2_folder, sdxl_folder):
    for folder in (sd2_folder, sdxl_folder):
        other = load_folder(folder)
        with pytest.raises(PalimpsestError, match="made with another model than the one connected"):
            edit(replace(made, model=other.model, control=None))


def test_a_model_of_the_same_shape_and_other_weights_is_another(made, sd1_folder):
    other = load_folder(sd1_folder)
    bias = dict(other.model.model.named_parameters())["diffusion_model.time_embed.0.bias"]
    bias.data = torch.randn(bias.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(PalimpsestError, match="another model"):
        edit(replace(made, model=other.model))


def test_the_same_model_in_another_dtype_is_the_same(made, sd1_folder):
    other = load_folder(sd1_folder)
    bias = dict(other.model.model.named_parameters())["diffusion_model.time_embed.0.bias"]
    bias.data = bias.data.to(torch.bfloat16).float()
    edit(replace(made, model=other.model))


@pytest.mark.parametrize(
    ("latent", "sentence"),
    [
        (torch.full((1, 4, 8, 8), torch.nan), "The latent holds NaN"),
        (torch.zeros(1, 16, 8, 8), r"The latent is \(1, 16, 8, 8\), this model takes \[batch, 4"),
        (torch.zeros(1, 4, 1, 8, 8), r"The latent is \(1, 4, 1, 8, 8\)"),
    ],
)
def test_a_latent_that_the_model_cannot_take_is_refused(sd1, latent, sentence):
    with pytest.raises(PalimpsestError, match=sentence):
        run_invert(sd1, latent=latent)


def test_sigmas_that_do_not_fall_to_0_are_refused(sd1):
    sigmas = schedule(sd1.model, "simple", 3, 0.5)
    for bad in (sigmas.flip(0), sigmas[:-1], sigmas[:1]):
        with pytest.raises(PalimpsestError, match="The sigmas must"):
            run_invert(sd1, sigmas=bad)


@pytest.mark.parametrize(
    ("steps", "strength", "sentence"),
    [
        (0, 1.0, "Steps must be 1 to 1000, the model's training steps, got 0"),
        (1001, 1.0, "Steps must be 1 to 1000"),
        (50, 0.0, "Strength must be above 0 and at most 1, got 0.0"),
        (900, 0.01, "has no 900 different levels at strength 0.01"),
    ],
)
def test_a_schedule_that_is_not_there_is_refused(sd1, steps, strength, sentence):
    with pytest.raises(PalimpsestError, match=sentence):
        schedule(sd1.model, "simple", steps, strength)


def test_a_conditioning_that_is_not_the_controls_is_refused(sd1, made):
    other = agree.encode(sd1.clip, "something else")
    with pytest.raises(PalimpsestError, match="The target conditioning is not the one"):
        edit(replace(made, target=other))
    with pytest.raises(PalimpsestError, match="The source conditioning is not the one"):
        edit(replace(made, source=other))
    with pytest.raises(PalimpsestError, match="has 2 entries, a control takes one"):
        edit(replace(made, target=made.target + other))


def test_masks_of_another_batch_are_refused(made):
    with pytest.raises(PalimpsestError, match="The mask holds 3 pictures, 1 shall be edited"):
        edit(replace(made, mask=torch.ones(3, 64, 64)))


def test_a_noise_mask_is_refused():
    with pytest.raises(PalimpsestError, match="carries a noise mask"):
        refuse_noise_mask({"samples": None, "noise_mask": torch.ones(1, 64, 64)}, "Edit")


def test_a_latent_batch_that_its_sigmas_do_not_divide_is_refused(sd1):
    sigmas = schedule(sd1.model, "simple", 3, 0.5)
    with pytest.raises(PalimpsestError, match="holds 7 latents, which 4 levels do not divide"):
        trajectory_from_latents(sd1.model, torch.randn(7, 4, 8, 8), sigmas)
