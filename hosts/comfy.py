"""Running a pipeline inside a sampling session of ComfyUI.

The algorithm stands where ComfyUI expects a sampler: loading, offloading, LoRA, hooks, ControlNet,
previews and interruption are the host's own. A denoiser exists only while the session does.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..pipelines.attention.bank import AttentionHook
from ..pipelines.denoiser import Denoiser, RowCount
from ..pipelines.errors import PalimpsestError
from ..pipelines.trajectory import Trajectory
from .comfy_attention import hooked_options

#: What core's nodes pass as CONDITIONING.
Conditioning = list[list[Any]]

#: Conditionings as a session holds them, per branch of the guidance.
Conds = dict[str, list[dict[str, Any]]]


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


@dataclass(frozen=True, eq=False)
class Session:
    """What an algorithm may use while the model is loaded.

    Attributes:
        guider: Holds the processed conditionings.
        options: The model's options for this run.
        rows: Rows spent so far.
        x0: [B, C, h, w] the latent that was given, in model scale, on the model's device.
        on_step: Shows progress and a preview.
    """

    guider: BranchGuider
    options: dict[str, Any]
    rows: RowCount
    x0: Tensor
    on_step: Callable[[int, Tensor, Tensor], None]

    @property
    def target(self) -> Conds:
        """Conditionings of the target."""
        return self.guider.conds

    @property
    def source(self) -> Conds:
        """Conditionings of the source."""
        return self.guider.source_conds

    def denoiser(self, conds: Conds, hook: AttentionHook | None = None) -> Denoiser:
        """Denoiser at the guider's own guidance; what other nodes hook into that takes effect.

        Args:
            conds: `target` or `source`.
            hook: Sees every attention.
        """
        guider, options = self.guider, self._options(hook)

        def predict(x: Tensor, timestep: Tensor, model_options: dict, seed: int | None) -> Tensor:
            return comfy.samplers.sampling_function(
                guider.inner_model,
                x,
                timestep,
                conds["negative"],
                conds["positive"],
                guider.cfg,  # read at every call: core's CFGOverride changes it for some steps
                model_options=model_options,
                seed=seed,
            )

        wrappers = comfy.patcher_extension.get_all_wrappers(
            WrappersMP.PREDICT_NOISE, options, is_model_options=True
        )

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            executor = WrapperExecutor.new_class_executor(predict, guider, wrappers)
            return executor.execute(x, _timestep(x, sigma), options, None)

        return denoise

    def recorder(self, conds: Conds, hook: AttentionHook) -> Denoiser:
        """The conditional rows alone, for the attention that `hook` reads from them."""
        options = self._options(hook)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            (denoised,) = comfy.samplers.calc_cond_batch(
                self.guider.inner_model, [conds["positive"]], x, _timestep(x, sigma), options
            )
            return denoised

        return denoise

    def restore(self, x: Tensor, trajectory: Trajectory) -> Tensor:
        """A latent at the lowest level as LATENT samples; what is unedited comes back bit for bit.

        Args:
            x: [B, C, h, w] in model scale, on the model's device.
            trajectory: The chain it came from, on the same device.
        """
        out = self.guider.inner_model.process_latent_out(x.float())
        return torch.where(x == trajectory.latents[0], trajectory.origin.to(out), out)

    def _options(self, hook: AttentionHook | None) -> dict[str, Any]:
        options = create_model_options_clone(self.options)
        if hook is not None:
            options = hooked_options(self.guider.inner_model, options, hook)
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, "palimpsest", _counter(self.rows), options, True
        )
        return options


def _timestep(x: Tensor, sigma: Tensor) -> Tensor:
    """The level of every row, as core's model calls take it."""
    return sigma.to(device=x.device, dtype=torch.float32).expand(len(x))


def _counter(rows: RowCount) -> Callable[..., Tensor]:
    def count(executor: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows.add(len(x))
        return executor(x, *args, **options)

    return count


@dataclass(eq=False)
class _SessionSampler(comfy.samplers.Sampler):
    """Stands in a sampler's place and keeps what the algorithm returns."""

    algorithm: Callable[[Session], Any]
    rows: RowCount = field(default_factory=RowCount)
    result: Any = None

    def sample(
        self,
        guider: BranchGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        steps = len(sigmas) - 1

        def on_step(done: int, x: Tensor, denoised: Tensor) -> None:
            callback(done - 1, denoised, x, steps)

        session = Session(guider, extra_args["model_options"], self.rows, latent_image, on_step)
        self.result = self.algorithm(session)
        return latent_image


def run(
    guider: BranchGuider, samples: Tensor, sigmas: Tensor, algorithm: Callable[[Session], Any]
) -> tuple[Any, int]:
    """Call `algorithm` with the model loaded.

    Args:
        guider: The model and its conditionings.
        samples: [B, C, h, w] LATENT samples that the run is about.
        sigmas: [N+1] falling levels it will visit.
        algorithm: What to do; its tensors live on the model's device.

    Returns:
        What `algorithm` returned, and the rows spent.
    """
    sampler = _SessionSampler(algorithm)
    callback = latent_preview.prepare_callback(guider.model_patcher, len(sigmas) - 1)
    guider.sample(
        torch.zeros_like(samples), samples, sampler, sigmas, callback=callback, disable_pbar=True
    )
    return sampler.result, sampler.rows.rows


def require_variance_preserving(model: ModelPatcher, feature: str) -> None:
    """Refuse models that are not eps- or v-prediction models.

    Raises:
        PalimpsestError: Naming the model and the feature.
    """
    sampling = model.get_model_object("model_sampling")
    known = isinstance(sampling, comfy.model_sampling.EPS) and sampling.sigma_data == 1.0
    if not known or isinstance(sampling, comfy.model_sampling.X0):
        raise PalimpsestError(
            f"{feature} takes models that predict noise or v (SD 1.x, SD 2.x, SDXL), this "
            f"{type(model.model).__name__} model predicts something else: load such a checkpoint."
        )


def fingerprint(model: ModelPatcher) -> str:
    """What tells a model from others: its architecture and a few of its weights, as text."""
    config = {k: str(v) for k, v in model.model.model_config.unet_config.items() if k != "dtype"}
    key = "diffusion_model.time_embed.0.bias"
    probe = [
        round(float(value), 4)
        for weight, *_ in model.get_key_patches(key).get(key, [])[:1]
        for value in (weight[0] if isinstance(weight, tuple) else weight).flatten()[:8]
    ]
    kind = type(model.model).__name__
    return json.dumps({"kind": kind, "config": config, "probe": probe}, sort_keys=True)


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model, whatever dtype it was loaded in."""
    a, b = json.loads(one), json.loads(other)
    alike = len(a["probe"]) == len(b["probe"]) and all(
        # bf16 keeps 8 bits of a weight, fp8 four: what is meant is the same number.
        abs(x - y) <= 0.07 * max(abs(x), abs(y)) + 1e-3
        for x, y in zip(a["probe"], b["probe"], strict=True)
    )
    return alike and a["kind"] == b["kind"] and a["config"] == b["config"]
