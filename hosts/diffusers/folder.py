"""The pipelines without ComfyUI: on a diffusers model folder, headless.

    model = load_folder(Path("stable-diffusion-v1-5"))
    source, target, empty = map(model.prompt, ("a cat on a sofa", "a tiger on a sofa", ""))
    trajectory = model.unet.invert(model.encode(image), source, model.unet.ddim_sigmas(50))
    control = rewrite_prompt(source.tokens, target.tokens)
    edited = model.unet.edit(trajectory, source, target, empty, control=control).run()
    picture = model.decode(edited.latent)

diffusers and transformers are imported where a folder is loaded, not where this file is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...pipelines.errors import PalimpsestError
from .prompt import Prompt, prompt_tokens, token_ids
from .unet import DiffusersUNet


@dataclass(frozen=True, eq=False)
class DiffusersModel:
    """A whole model folder.

    Attributes:
        unet: The network and its schedule.
        vae: AutoencoderKL or AutoencoderTiny.
        encoders: Text encoders with their tokenizers, one or (SDXL) two.
    """

    unet: DiffusersUNet
    vae: nn.Module
    encoders: tuple[tuple[nn.Module, Any], ...]

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Latent [B, 4, H/8, W/8] of images [B, H, W, 3] in 0..1, in model scale."""
        posterior = self.vae.encode(image.movedim(-1, 1) * 2 - 1)
        mean = posterior.latents if hasattr(posterior, "latents") else posterior.latent_dist.mode()
        return mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Images [B, H, W, 3] in 0..1 of latents in model scale."""
        image = self.vae.decode(latent / self.vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    @torch.no_grad()
    def prompt(self, text: str, *, size: tuple[int, int] = (1024, 1024)) -> Prompt:
        """Encode a prompt.

        Args:
            text: The prompt; no weight syntax.
            size: Height and width in pixels, which SDXL is told.
        """
        tokens = prompt_tokens(self.encoders[0][1], text)
        if len(self.encoders) == 1:
            encoder, tokenizer = self.encoders[0]
            return Prompt(encoder(token_ids(tokenizer, text)).last_hidden_state, tokens)
        outs = [e(token_ids(t, text), output_hidden_states=True) for e, t in self.encoders]
        embedding = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=embedding.dtype)
        added = {"text_embeds": outs[-1].text_embeds, "time_ids": time_ids}
        return Prompt(embedding, tokens, added)


def load_folder(folder: Path) -> DiffusersModel:
    """Load a Stable Diffusion 1.x, 2.x or XL folder in float32.

    Raises:
        PalimpsestError: If it is no such folder.
    """
    if not (folder / "model_index.json").is_file():
        raise PalimpsestError(
            f"{folder} is not a diffusers model: it holds no model_index.json. "
            "Give the folder that has unet/, vae/ and text_encoder/ in it."
        )
    import diffusers
    import transformers

    unet = diffusers.UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=torch.float32, use_safetensors=True
    )
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    network = DiffusersUNet(
        unet.eval().requires_grad_(False),
        scheduler.alphas_cumprod,
        scheduler.config.prediction_type,
    )
    classes = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    encoders = tuple(
        (
            cls.from_pretrained(folder, subfolder=f"text_encoder{n}").float().eval(),
            transformers.CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{n}"),
        )
        for n, cls in zip(("", "_2"), classes, strict=True)
        if (folder / f"text_encoder{n}").is_dir()
    )
    return DiffusersModel(network, _load_vae(folder).float().eval(), encoders)


def _load_vae(folder: Path) -> nn.Module:
    """The autoencoder, of the class that its config names."""
    import diffusers

    for cls in (diffusers.AutoencoderTiny, diffusers.AutoencoderKL):
        if cls.load_config(folder, subfolder="vae").get("_class_name") == cls.__name__:
            return cls.from_pretrained(folder, subfolder="vae", use_safetensors=True)
    raise PalimpsestError(f"{folder}/vae must be an AutoencoderKL or an AutoencoderTiny.")
