"""The latents of a folder: its autoencoder, their scale in the model, and its noise levels."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.loading.unet import load_unet
from palimpsest.hosts.comfy.loading.vae import load_vae
from palimpsest.tests.host import tiny


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_vae_folder(tmp_path_factory):
    return tiny.make_sd1(tmp_path_factory.mktemp("models") / "tiny", vae=tiny.make_tiny_vae())


@pytest.fixture
def edited_folder(sd1_folder, tmp_path):
    """Copy the SD 1.x folder and edit one of its JSON files."""

    @contextmanager
    def edit(name):
        folder = shutil.copytree(sd1_folder, tmp_path / "edited")
        config = json.loads((folder / name).read_text())
        yield folder, config
        (folder / name).write_text(json.dumps(config))

    return edit


def relative_error(value, truth):
    return ((value - truth).abs().max() / truth.abs().max()).item()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- the autoencoder


def check_vae(vae, reference, encode):
    """Encoding, and decoding before ComfyUI clamps it, in [-1, 1] with channels first."""
    pixels = noise(1, 3, 64, 48).sigmoid()
    latent = vae.encode(pixels.movedim(1, -1))
    assert latent.shape == (1, 4, 8, 6)
    assert relative_error(latent, encode(pixels * 2 - 1)) < 1e-4
    decoded = vae.decode(latent).movedim(-1, 1)
    truth = reference.decode(latent).sample / 2 + 0.5
    inside = (truth > 0) & (truth < 1)
    assert inside.float().mean() > 0.2
    assert relative_error(decoded, truth.clamp(0, 1)) < 1e-4


@pytest.mark.parametrize("shape", ["sd1_folder", "sdxl_folder"])
def test_the_vae_is_diffusers_autoencoder(shape, request):
    folder = request.getfixturevalue(shape)
    reference = AutoencoderKL.from_pretrained(folder / "vae").eval()
    check_vae(load_vae(folder), reference, lambda x: reference.encode(x).latent_dist.mean)


def test_the_vae_may_be_an_autoencoder_tiny(tiny_vae_folder):
    reference = AutoencoderTiny.from_pretrained(tiny_vae_folder / "vae").eval().float()
    loaded = load_folder(tiny_vae_folder)
    check_vae(loaded.vae, reference, lambda x: reference.encode(x).latents)
    latent = noise(1, 4, 8, 8)
    assert torch.equal(loaded.model.model.process_latent_in(latent), latent)


@pytest.mark.parametrize(("shape", "scale"), [("sd1_folder", 0.18215), ("sdxl_folder", 0.13025)])
def test_the_model_scales_latents_as_the_vae_says(shape, scale, request):
    model = load_unet(request.getfixturevalue(shape)).model
    latent = noise(1, 4, 8, 8)
    assert torch.equal(model.process_latent_in(latent), latent * scale)
    assert relative_error(model.process_latent_out(model.process_latent_in(latent)), latent) < 1e-6
    assert len(model.latent_format.latent_rgb_factors) == 4


def test_a_vae_that_does_not_say_its_scale_has_sd1s(edited_folder):
    with edited_folder("vae/config.json") as (folder, config):
        del config["scaling_factor"]
    latent = noise(1, 4, 8, 8)
    assert torch.equal(load_unet(folder).model.process_latent_in(latent), latent * 0.18215)


def test_latents_with_a_mean_and_a_deviation_are_normalised(edited_folder):
    with edited_folder("vae/config.json") as (folder, config):
        config |= {"latents_mean": [1, 2, 3, 4], "latents_std": [2, 2, 2, 4]}
    model = load_unet(folder).model
    latent = torch.tensor([3.0, 4.0, 5.0, 8.0]).reshape(1, 4, 1, 1)
    assert torch.allclose(model.process_latent_in(latent), torch.full_like(latent, 0.18215))
    assert torch.allclose(model.process_latent_out(model.process_latent_in(latent)), latent)


# --- noise levels


SCHEDULES = {
    "scaled_linear": {},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.01 * (n + 1) for n in range(20)], "num_train_timesteps": 20},
    "short": {"num_train_timesteps": 100},
    "zero_snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("change", SCHEDULES.values(), ids=SCHEDULES)
def test_the_noise_levels_are_the_schedulers(edited_folder, change):
    with edited_folder("scheduler/scheduler_config.json") as (folder, config):
        config |= change
    betas = DDIMScheduler.from_pretrained(folder / "scheduler").betas.double()
    alphas = torch.cumprod(1 - betas, dim=0)
    if "rescale_betas_zero_snr" in change:
        assert alphas[-1] == 0
        alphas[-1] = 4.8973451890853435e-08  # what ComfyUI puts for it
    truth = ((1 - alphas) / alphas) ** 0.5
    sampling = load_unet(folder).model.model_sampling
    assert sampling.num_timesteps == len(truth)
    assert ((sampling.sigmas - truth) / truth).abs().max() < 1e-4


def test_a_tiny_autoencoder_gets_previews_in_the_colours_it_decodes(tiny_vae_folder):
    loaded = load_folder(tiny_vae_folder)
    latents = loaded.model.model.latent_format
    factors = torch.tensor(latents.latent_rgb_factors)
    for channel in range(4):
        probe = torch.zeros(2, 4, 4, 4)
        probe[0, channel], probe[1, channel] = 1, -1
        means = 2 * loaded.vae.decode(latents.process_out(probe)).mean((1, 2)) - 1
        assert torch.allclose((means[0] - means[1]) / 2, factors[channel], atol=1e-5)
    plain = 2 * loaded.vae.decode(torch.zeros(1, 4, 4, 4)).mean((0, 1, 2)) - 1
    assert torch.allclose(plain, torch.tensor(latents.latent_rgb_factors_bias), atol=1e-5)
    assert factors.abs().max() > 1e-3
