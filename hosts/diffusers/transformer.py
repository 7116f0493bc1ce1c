"""A diffusers transformer of Flux's or SD 3's kind as the pipelines' denoiser."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...pipelines.attention.hooks import NO_HOOKS, Hooks, Role
from ...pipelines.denoiser import Denoiser, RowCount, guide, per_row
from ...pipelines.errors import PalimpsestError
from ...pipelines.schedule import flow_scale, t_from_sigma
from .joint import Hooked

#: Side of the patches that Flux's pipelines pack into one token.
PATCH = 2


@dataclass(frozen=True, eq=False)
class Words:
    """A prompt as a transformer sees it.

    Attributes:
        states: [1, tokens, channels] hidden states of the text encoders.
        pooled: [1, channels] what they make of the whole text.
        guidance: Distilled guidance, of models that are told it.
    """

    states: Tensor
    pooled: Tensor
    guidance: float | None = None


@dataclass(frozen=True, eq=False)
class DiffusersTransformer:
    """A FluxTransformer2DModel or SD3Transformer2DModel, which predicts the velocity of a flow.

    Attributes:
        network: The network.
    """

    network: nn.Module

    def denoiser(
        self,
        positive: Words,
        negative: Words | None = None,
        *,
        cfg: float = 1.0,
        rows: RowCount | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> Denoiser:
        """The posterior mean under a prompt.

        Args:
            positive: What the picture shows.
            negative: The other end of the guidance; not read at cfg 1.
            cfg: Guidance scale.
            rows: Counts the rows spent.
            hooks: See every attention.
        """
        if negative is None and cfg != 1:
            raise PalimpsestError(f"Guidance {cfg} needs a negative prompt; none was given.")

        @torch.no_grad()
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            cond = mean(x, sigma, positive, "cond")
            return cond if cfg == 1 else guide(cond, mean(x, sigma, negative, "uncond"), cfg)

        def mean(x: Tensor, sigma: Tensor, words: Words, role: Role) -> Tensor:
            if hooks.attention is None:
                return self._mean(x, sigma, words, rows)
            image = x.shape[-2:].numel() // self._patch**2
            with Hooked(self.network, hooks.attention, role, words.states.shape[1], image):
                return self._mean(x, sigma, words, rows)

        return denoise

    @property
    def _patch(self) -> int:
        """Side of the cells that are one token; Flux's are packed before they come to it."""
        sd3 = type(self.network).__name__ == "SD3Transformer2DModel"
        return self.network.config.patch_size if sd3 else PATCH

    def _mean(self, x: Tensor, sigma: Tensor, words: Words, rows: RowCount | None) -> Tensor:
        """z - t v, of z = x (1 - t)."""
        scale = per_row(flow_scale(sigma), x).to(x)
        z, t = x * scale, t_from_sigma(sigma).to(x).expand(len(x))
        if rows is not None:
            rows.add(len(z))
        return z - per_row(t, x) * self._velocity(z, t, words)

    def _velocity(self, z: Tensor, t: Tensor, words: Words) -> Tensor:
        """What the network makes of [B, C, h, w] at times [B]."""
        states, pooled = (w.expand(len(z), *w.shape[1:]) for w in (words.states, words.pooled))
        shown = {"encoder_hidden_states": states, "pooled_projections": pooled}
        if type(self.network).__name__ == "SD3Transformer2DModel":
            return self.network(hidden_states=z, timestep=1000 * t, **shown).sample
        rows, columns = (side // PATCH for side in z.shape[-2:])
        guidance = None if words.guidance is None else torch.full((len(z),), words.guidance).to(z)
        tokens = self.network(
            hidden_states=packed(z),
            timestep=t,
            guidance=guidance,
            img_ids=places(rows, columns).to(z),
            txt_ids=torch.zeros(states.shape[1], 3).to(z),
            **shown,
        ).sample
        return unpacked(tokens, rows)


def packed(z: Tensor) -> Tensor:
    """[B, C, h, w] as tokens [B, h/2 * w/2, 4 C], as Flux's pipelines pack them."""
    patches = z.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # [B, C, h/2, 2, w/2, 2]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, rows: int) -> Tensor:
    """The latent of `rows` rows of tokens: `packed` undone."""
    patches = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (rows, -1))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def places(rows: int, columns: int) -> Tensor:
    """Where tokens lie for RoPE: [rows * columns, 3] of 0, row and column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1).float()


def load_transformer(part: Path) -> DiffusersTransformer:
    """Read the folder of a transformer.

    Raises:
        PalimpsestError: If it is of another class.
    """
    import diffusers

    name = json.loads((part / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name not in ("FluxTransformer2DModel", "SD3Transformer2DModel"):
        raise PalimpsestError(
            f"The transformer {part} is a {name}, it must be a FluxTransformer2DModel or "
            "SD3Transformer2DModel: choose another model."
        )
    network = getattr(diffusers, name).from_pretrained(part, torch_dtype=torch.float32)
    return DiffusersTransformer(network.eval().requires_grad_(False))
