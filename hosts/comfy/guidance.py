"""Core's guidance, for two pairs of conditionings and a scale for every row."""

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...pipelines.denoiser import guide, per_row

#: What core's nodes pass as CONDITIONING.
Conditioning = list[list[Any]]

#: Conditionings as a session holds them, per branch of the guidance.
Conds = dict[str, list[dict[str, Any]]]

#: Conditionings that change with the noise level.
CondsAt = Callable[[Tensor], Conds]


class BranchGuider(comfy.samplers.CFGGuider):
    """Core's guider with a second pair of conditionings: those of the source.

    The pairs are processed apart, since core lends the positive's ControlNet to all others.
    """

    def set_source(self, positive: Conditioning, negative: Conditioning) -> None:
        """Give the source's conditionings; `set_conds` gives the target's."""
        self.inner_set_conds({"source": positive, "source_negative": negative})

    def inner_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        device: torch.device,
        sampler: comfy.samplers.Sampler,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
        callback: Callable | None,
        disable_pbar: bool,
        seed: int | None,
        latent_shapes: list | None = None,
    ) -> Tensor:
        model, every = self.inner_model, self.conds
        pair = {"positive": every.pop("source"), "negative": every.pop("source_negative")}
        shown = model.process_latent_in(latent_image) if latent_image.any() else latent_image
        self.source_conds = comfy.samplers.process_conds(
            model, noise, pair, device, shown, denoise_mask, seed, latent_shapes=latent_shapes
        )
        try:
            return super().inner_sample(
                noise,
                latent_image,
                device,
                sampler,
                sigmas,
                denoise_mask,
                callback,
                disable_pbar,
                seed,
                latent_shapes=latent_shapes,
            )
        finally:
            # Core cleans up every ControlNet it finds here.
            self.conds |= {f"source_{key}": conds for key, conds in self.source_conds.items()}
            del self.source_conds


#: Where other nodes take part in guidance; they are written for one scale and one level a call.
_GUIDANCE_HOOKS = {
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
}


def needs_negative_alone(cfg: float | Tensor, options: dict[str, Any]) -> bool:
    """Whether nothing reads the conditional prediction."""
    hooks = _GUIDANCE_HOOKS | {"sampler_calc_cond_batch_function"}
    return not isinstance(cfg, Tensor) and cfg == 0 and not hooks & options.keys()


def negative_alone(
    model: Any, x: Tensor, levels: Tensor, conds: Conds, options: dict[str, Any]
) -> Tensor:
    """Guidance 0; core itself would run the conditional row as well."""
    pair = [None, conds["negative"]]
    return comfy.samplers.calc_cond_batch(model, pair, x, levels, options)[1]


def guided(
    model: Any,
    x: Tensor,
    levels: Tensor,
    conds: Conds,
    cfg: float | Tensor,
    options: dict[str, Any],
    seed: int | None,
) -> Tensor:
    """Core's guided prediction, also for a scale per row; rows of one level lie together."""
    pair = conds["negative"], conds["positive"]
    if _GUIDANCE_HOOKS & options.keys():
        sizes = levels.unique_consecutive(return_counts=True)[1].tolist()
    elif isinstance(cfg, Tensor):
        cond, uncond = comfy.samplers.calc_cond_batch(model, [*reversed(pair)], x, levels, options)
        return guide(cond, uncond, per_row(cfg, x))
    else:
        sizes = [len(x)]
    if isinstance(cfg, Tensor):
        scales = [float(part[0]) for part in cfg.split(sizes)]
    else:
        scales = [cfg] * len(sizes)
    parts = [
        comfy.samplers.sampling_function(
            model, rows, level, *pair, scale, model_options=options, seed=seed
        )
        for rows, level, scale in zip(x.split(sizes), levels.split(sizes), scales, strict=True)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]
