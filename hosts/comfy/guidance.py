"""Core's guidance, for two pairs of conditionings and a scale for every row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pipelines.denoiser import guide, per_row
from ...pipelines.errors import PalimpsestError

#: What core's nodes pass as CONDITIONING.
Conditioning = list[list[Any]]

#: Conditionings as a session holds them, per branch of the guidance.
Conds = dict[str, list[dict[str, Any]]]

#: Conditionings that change with the noise level.
CondsAt = Callable[[Tensor], Conds]


#: Of a conditioning: what says where or when alone it holds.
RESTRICTED = {
    "area": "an area",
    "end_percent": "a span of steps",
    "mask": "a mask",
    "start_percent": "a span of steps",
}

#: What the inputs are called that a guider's conditionings come from.
_INPUTS = {"positive": "positive (or target)", "source_negative": "negative"}


def check_width(model: ModelPatcher, conditioning: Conditioning, role: str) -> None:
    """Refuse embeddings that are not as wide as those that a UNet was trained with.

    Args:
        model: From the wire.
        conditioning: From the wire.
        role: Of its input.

    Raises:
        PalimpsestError: In one sentence.
    """
    width = model.model.model_config.unet_config.get("context_dim")
    if not isinstance(model.model.diffusion_model, UNetModel) or not isinstance(width, int):
        return
    for embedding, *_ in conditioning:
        if isinstance(embedding, Tensor) and embedding.shape[-1] != width:
            raise PalimpsestError(
                f"The {role} conditioning is {embedding.shape[-1]} wide, this model takes {width}: "
                "encode the prompt with the CLIP that belongs to the model."
            )


def carried_by(entry: Sequence[Any], names: Mapping[str, str]) -> str:
    """What of these an entry of a CONDITIONING carries, for messages; "" for nothing."""
    return " and ".join(sorted({names[key] for key in names.keys() & entry[1].keys()}))


class BranchGuider(comfy.samplers.CFGGuider):
    """Core's guider with a second pair of conditionings: those of the source.

    The pairs are processed apart, since core lends the positive's ControlNet to all others.
    """

    def __init__(self, model: ModelPatcher) -> None:
        """Take a model.

        Raises:
            PalimpsestError: Where another node waits on it for a noise mask, which no one gives it.
        """
        super().__init__(model)
        if "denoise_mask_function" in self.model_options:
            raise PalimpsestError(
                "The model carries Differential Diffusion, which reads the noise mask of a core "
                "sampler and nothing here: connect the model as it was before that node."
            )

    def set_source(self, positive: Conditioning, negative: Conditioning) -> None:
        """Give the source's conditionings; `set_conds` gives the target's."""
        self.inner_set_conds({"source": positive, "source_negative": negative})

    def inner_set_conds(self, conds: dict[str, Conditioning]) -> None:
        for role, conditioning in conds.items():
            check_width(self.model_patcher, conditioning, _INPUTS.get(role, role))
        super().inner_set_conds(conds)

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


def attributed(options: dict[str, Any]) -> dict[str, Any]:
    """Options in which it is said whose guidance failed, where another node's does."""
    kinds = {"sampler_pre_cfg_function", "sampler_post_cfg_function"} & options.keys()
    return options | {kind: [_attributed(fn) for fn in options[kind]] for kind in kinds}


def _attributed(guidance: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def called(args: dict[str, Any]) -> Any:
        try:
            return guidance(args)
        except RuntimeError as error:
            if comfy.model_management.is_oom(error):
                raise
            name = guidance.__module__.rpartition(".")[2]
            raise PalimpsestError(
                f"The guidance of another node ({name}) failed: it is made for samplers, which "
                "call the model level by level with the same rows (momentum of APG needs that): "
                f"take that node away, or its momentum. It said: {str(error)[:80]}"
            ) from error

    return called


def asked_by_core(args: dict[str, Any]) -> list[Tensor]:
    """Core's own way of asking the network, as what other nodes put in its place is called."""
    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )


def conditional_shown(options: dict[str, Any], x: Tensor, other: Tensor) -> dict[str, Any]:
    """Options in which the prompt's row of core's own call at `x` is shown another latent.

    Its noise is taken over: to whoever guides it looks as if it had been predicted at `x`.
    """
    given = options.get("sampler_calc_cond_batch_function", asked_by_core)

    def ask(args: dict[str, Any]) -> list[Tensor]:
        if args["input"] is not x:
            return given(args)
        prompt, *others = args["conds"]
        (guess, *_) = given(args | {"conds": [prompt, *[None for _ in others]], "input": other})
        return [guess + (x - other), *given(args | {"conds": [None, *others]})[1:]]

    return options | {"sampler_calc_cond_batch_function": ask}


def guided(
    model: Any,
    x: Tensor,
    levels: Tensor,
    conds: Conds,
    cfg: float | Tensor,
    options: dict[str, Any],
    seed: int | None,
) -> Tensor:
    """Core's guided prediction; a scale per row where no other node takes part in guidance."""
    negative, positive = conds["negative"], conds["positive"]
    if isinstance(cfg, Tensor):
        ask = options.get("sampler_calc_cond_batch_function", asked_by_core)
        branches = {"conds": [positive, negative], "input": x, "sigma": levels, "model": model}
        cond, uncond = ask(branches | {"model_options": options})
        return guide(cond, uncond, per_row(cfg, x))
    return comfy.samplers.sampling_function(
        model, x, levels, negative, positive, cfg, model_options=options, seed=seed
    )
