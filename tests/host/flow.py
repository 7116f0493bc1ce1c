"""Tiny random rectified-flow models in the shapes of Flux and SD 3, as ComfyUI's MODEL and VAE."""

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch
from palimpsest.tests.host.tiny import randomise

CHANNELS, TOKENS, WIDTH, POOLED = 16, 7, 48, 40

FLUX = {
    "image_model": "flux",
    "guidance_embed": True,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "patch_size": 2,
    "vec_in_dim": POOLED,
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
SD3 = {
    "in_channels": CHANNELS,
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 16,
    "num_patches": 16 * 16,
    "input_size": None,
    "patch_size": 2,
    "depth": 1,
    "num_blocks": 2,
    "adm_in_channels": POOLED,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": WIDTH, "out_features": 64},
    },
}


def make_flux(**sampling):
    """Flux: a shift as large as that of its large pictures."""
    return make(comfy.supported_models.Flux, FLUX, {"shift": 1.15} | sampling)


def make_sd3(**sampling):
    """SD 3: shift 3, and unless it is told otherwise noise of size 1."""
    return make(comfy.supported_models.SD3, SD3, {"shift": 3.0} | sampling)


def make(family, unet_config, sampling):
    """A model of a family of core's with random weights, on the CPU."""
    config = family({**unet_config, "dtype": torch.float32})
    config.sampling_settings |= sampling
    model = config.get_model({})
    randomise(model.diffusion_model)
    positions = getattr(model.diffusion_model, "pos_embed", None)
    if positions is not None:
        generator = torch.Generator().manual_seed(1)
        positions.copy_(0.3 * torch.randn(positions.shape, generator=generator))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)


def make_vae():
    """Core's TAESD of 16 channels with random weights."""
    network = randomise(comfy.taesd.taesd.TAESD(latent_channels=CHANNELS))
    return comfy.sd.VAE(sd=network.state_dict())


def prompt(seed):
    """A CONDITIONING of random numbers, which stands for a text."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, TOKENS, WIDTH, generator=generator)
    return [[tokens, {"pooled_output": torch.randn(1, POOLED, generator=generator)}]]
