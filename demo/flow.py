"""The flow model: a small transformer of Flux's kind, with the UNet's texts and autoencoder.

It is told z = (1 - t) x0 + t n, a latent between a picture (t = 0) and noise (t = 1), and gives the
velocity v = n - x0 of the straight line between them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..hosts.diffusers.transformer import PATCH, packed, places, unpacked
from .model_files import token_ids

#: Tokens of a text: every caption of a scene fits, and they are few beside 64 of the picture.
TEXT_LENGTH = 32
LATENT_SIZE = 16


@dataclass(frozen=True)
class Words:
    """What a text encoder makes of texts: a state of every token, and that of the first end token.

    `states [N, 32, 96]`, `pooled [N, 96]`.
    """

    states: Tensor
    pooled: Tensor

    def at(self, index: Tensor) -> "Words":
        """Those of some texts."""
        return Words(self.states[index], self.pooled[index])

    def to(self, device: torch.device) -> "Words":
        """The same on a device."""
        return Words(self.states.to(device), self.pooled.to(device))


@dataclass(frozen=True)
class FlowPainter:
    """All that turns a text into a latent."""

    transformer: FluxTransformer2DModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    def to(self, device: torch.device) -> "FlowPainter":
        """The same painter with its networks moved to a device."""
        networks = self.transformer.to(device), self.text_encoder.to(device)
        return FlowPainter(*networks, self.tokenizer)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Words:
        """What the text encoder makes of texts."""
        made = self.text_encoder(token_ids(self.tokenizer, texts).to(self.text_encoder.device))
        return Words(made.last_hidden_state, made.pooler_output)

    def velocity(self, z: Tensor, t: Tensor, words: Words) -> Tensor:
        """v `[B, 4, H, W]` of latents z of that shape at times t `[B]` in 0..1."""
        rows, columns = (side // PATCH for side in z.shape[-2:])
        (tokens,) = self.transformer(
            hidden_states=packed(z),
            encoder_hidden_states=words.states,
            pooled_projections=words.pooled,
            timestep=t,
            img_ids=places(rows, columns).to(z.device),
            txt_ids=torch.zeros(words.states.shape[1], 3, device=z.device),
            return_dict=False,
        )
        return unpacked(tokens, rows)


def make_transformer(double: int, single: int, heads: int) -> FluxTransformer2DModel:
    """An untrained transformer with heads of 32, for the texts of `weights/`."""
    return FluxTransformer2DModel(
        in_channels=4 * PATCH**2,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=96,
        pooled_projection_dim=96,
        axes_dims_rope=(8, 12, 12),
    )


def make_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Times that are evenly spread."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)


@torch.no_grad()
def sample_flow(
    painter: FlowPainter, texts: list[str], *, cfg: float = 4.0, steps: int = 30, seed: int = 0
) -> Tensor:
    """Latents `[len(texts), 4, 16, 16]` painted from noise by Euler steps, with two rows a text."""
    scheduler = make_flow_scheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    generator = torch.Generator().manual_seed(seed)
    shape = (len(texts), 4, LATENT_SIZE, LATENT_SIZE)
    z = torch.randn(shape, generator=generator).to(painter.transformer.device)
    words = painter.embed([""] * len(texts) + texts)
    for timestep in scheduler.timesteps:
        t = (timestep / 1000).expand(2 * len(texts)).to(z)
        empty, full = painter.velocity(torch.cat([z, z]), t, words).chunk(2)
        z = scheduler.step(empty + cfg * (full - empty), timestep, z).prev_sample
    return z
