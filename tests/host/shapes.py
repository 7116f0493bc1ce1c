"""Tiny random models whose latents are not [batch, channels, height / 8, width / 8].

Flux.2       [batch, 128, height / 16, width / 16]
Qwen-Image   [batch, 16, 1, height / 8, width / 8]
Wan          [batch, 16, frames, height / 8, width / 8], as is all video of its kind
"""

import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.sd
import comfy.supported_models
import torch
from palimpsest.tests.host import flow
from palimpsest.tests.host.tiny import randomise

FLUX2 = {
    "image_model": "flux2",
    "guidance_embed": False,
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "context_in_dim": flow.WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 3.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "qkv_bias": False,
    "ops_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": flow.WIDTH,
    "axes_dims_rope": (8, 12, 12),
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": flow.WIDTH,
    "num_heads": 2,
    "num_layers": 1,
}


def make_flux2():
    """Flux.2: cells of 16 pixels and 128 channels."""
    return flow.make(comfy.supported_models.Flux2, FLUX2, {"shift": 2.02})


def make_qwen_image():
    """Qwen-Image: a picture is a video of one frame."""
    return flow.make(comfy.supported_models.QwenImage, QWEN_IMAGE, {"shift": 1.15})


def make_wan():
    """Wan: video, four frames to one of the latent."""
    return flow.make(comfy.supported_models.WAN21_T2V, WAN, {"shift": 3.0})


def make_flux2_vae():
    """The VAE of Flux.2, narrow and with random weights: 2 x 2 cells of 8 pixels in one of 16."""
    ddconfig = {
        "double_z": True,
        "z_channels": 32,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": True,
    }
    params = {"embed_dim": 32, "ddconfig": ddconfig}
    network = randomise(comfy.ldm.models.autoencoder.AutoencoderKL(**params))
    vae = comfy.sd.VAE(sd=network.state_dict(), config={"params": params})
    vae.downscale_ratio = vae.upscale_ratio = 16
    vae.latent_channels = 128
    return vae


def make_wan_vae():
    """The VAE of Qwen-Image and Wan with random weights."""
    network = comfy.ldm.wan.vae.WanVAE(
        dim=8, z_dim=16, num_res_blocks=2, temperal_downsample=[False, True, True]
    )
    return comfy.sd.VAE(sd=randomise(network).state_dict())


def latent_for(model, batch=1, frames=1, height=4, width=6):
    """LATENT samples of the shape that a model's own VAE gives, normal in the model's scale."""
    known = model.get_model_object("latent_format")
    size = (frames, height, width) if known.latent_dimensions == 3 else (height, width)
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randn(batch, known.latent_channels, *size, generator=generator)
    return model.model.process_latent_out(numbers)
