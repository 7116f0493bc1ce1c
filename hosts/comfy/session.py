"""Running a pipeline inside a sampling session of ComfyUI.

The algorithm stands where ComfyUI expects a sampler: loading, offloading, LoRA, hooks, ControlNet,
previews and interruption are the host's own. A denoiser exists only while the session does.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import latent_preview
import torch
from comfy.conds import CONDCrossAttn
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ...pipelines.attention.hooks import NO_HOOKS, Hooks, Role
from ...pipelines.denoiser import Denoiser, Guidance, RowCount, per_row
from ...pipelines.lending import Mix
from .beside import RowsBeside, with_rows_beside
from .calls import Call
from .coordinates import OURS, Coordinates
from .cost import Spent
from .guests import read_the_level
from .guidance import (
    BranchGuider,
    Conds,
    CondsAt,
    attributed,
    conditional_shown,
    guided,
    needs_negative_alone,
    negative_alone,
)
from .hooked import seen, with_own_call


@dataclass(frozen=True, eq=False)
class Session:
    """What an algorithm may use while the model is loaded.

    Attributes:
        guider: Holds the processed conditionings.
        options: The model's options for this run.
        rows: Rows spent so far.
        x0: [B, C, h, w] the latent that was given, in model scale, on the model's device.
        on_step: Shows progress and a preview.
        coordinates: How the model's coordinates relate to x.
    """

    guider: BranchGuider
    options: dict[str, Any]
    rows: RowCount
    x0: Tensor
    on_step: Callable[[int, Tensor, Tensor], None]
    coordinates: Coordinates = OURS

    @property
    def target(self) -> Conds:
        """Conditionings of the target."""
        return self.guider.conds

    @property
    def source(self) -> Conds:
        """Conditionings of the source."""
        return self.guider.source_conds

    def denoiser(
        self,
        conds: Conds | CondsAt,
        hooks: Hooks = NO_HOOKS,
        *,
        guidance: Guidance | None = None,
        mix: Mix | None = None,
        conditional: Tensor | None = None,
        beside: RowsBeside | None = None,
    ) -> Denoiser:
        """A guided denoiser; what other nodes hook into guidance takes effect.

        Args:
            conds: `target` or `source`, or what makes such of a level.
            hooks: See the network from inside.
            guidance: Scale of every level; the guider's own cfg if not given.
            mix: Guides in the place of the plain sum.
            conditional: [B, C, h, w] what the prompt's row is shown in the place of x.
            beside: Rows of a source that run in one call with these.
        """
        guider, options = self.guider, self._options()
        if mix is not None:
            options["sampler_cfg_function"] = self._core_guidance(mix)
        wrappers = comfy.patcher_extension.get_all_wrappers(
            WrappersMP.PREDICT_NOISE, options, is_model_options=True
        )

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            here = conds(sigma) if callable(conds) else conds

            def predict(x: Tensor, level: Tensor, options: dict, seed: int | None) -> Tensor:
                # The guider's cfg is read anew: core's CFGOverride changes it for some steps.
                cfg = guider.cfg if guidance is None else self._cfg_of(guidance, level)
                if hooks == NO_HOOKS and needs_negative_alone(cfg, options):
                    return negative_alone(guider.inner_model, x, level, here, options)
                waiting = beside.at(sigma) if beside else {}
                if waiting or hooks.branches_apart:
                    shown = {
                        index: (entry, self._called_with(place, sigma)[0])
                        for index, (entry, place) in waiting.items()
                    }
                    options = with_rows_beside(options, x, hooks, shown)
                elif hooks != NO_HOOKS:
                    options = with_own_call(options, x, hooks)
                if conditional is not None:
                    other, _ = self._called_with(conditional, sigma)
                    options = conditional_shown(options, x, other)
                return guided(guider.inner_model, x, level, here, cfg, options, seed)

            executor = WrapperExecutor.new_class_executor(predict, guider, wrappers)
            return executor.execute(*self._called_with(x, sigma), options, None)

        return denoise

    def _core_guidance(self, mix: Mix) -> Callable[[dict[str, Any]], Tensor]:
        """A guidance as core's samplers call it: what they add to the input, negated."""

        def guidance(args: dict[str, Any]) -> Tensor:
            sigma = self.coordinates.sigma(args["sigma"].double()).to(args["input"])
            guesses = args["cond_denoised"], args["uncond_denoised"]
            return args["input"] - mix(*guesses, args["cond_scale"], sigma)

        return guidance

    def _cfg_of(self, guidance: Guidance, levels: Tensor) -> float | Tensor:
        """One scale, or one per row, of ComfyUI's levels."""
        scales = [guidance(sigma) for sigma in self.coordinates.sigma(levels.double()).tolist()]
        if len(set(scales)) == 1:
            return scales[0]
        return torch.tensor(scales, device=levels.device, dtype=torch.float32)

    def _called_with(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Latent and level of every row, as core's model calls take them."""
        shown = self.coordinates.shown(x, per_row(sigma, x))
        level = self.coordinates.level(sigma).to(device=x.device, dtype=torch.float32)
        return shown, level.expand(len(x))

    def recorder(
        self, conds: Conds, hooks: Hooks = NO_HOOKS, *, roles: Sequence[Role] = ("cond",)
    ) -> Denoiser:
        """Some rows alone, without guidance: for what is seen in them, or for their prediction.

        Args:
            conds: `target` or `source`.
            hooks: See the network from inside.
            roles: Which rows: of the prompt, of the negative, or both; the denoised guess is that
                of the last of them.
        """
        options, model = self._options(), self.guider.inner_model
        # Core numbers the branches by their place: the prompt must be the first.
        branches = [conds["positive"] if "cond" in roles else None]
        if "uncond" in roles:
            branches.append(conds["negative"])
        wanted = 1 if roles[-1] == "uncond" else 0

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            shown, level = self._called_with(x, sigma)
            looked_at = seen(model, options, hooks, Call.of(branches, shown))
            return comfy.samplers.calc_cond_batch(model, branches, shown, level, looked_at)[wanted]

        return denoise

    def with_negative(self, conds: Conds, embedding_at: Callable[[Tensor], Tensor]) -> CondsAt:
        """Conditionings in whose negative another embedding stands at every level.

        Everything else of the negative stays: its pooled output, for example.

        Args:
            conds: `target` or `source`.
            embedding_at: Gives the [B or 1, tokens, channels] embedding of a 0-d level.
        """
        template = conds["negative"][0]

        def here(sigma: Tensor) -> Conds:
            embedding = CONDCrossAttn(embedding_at(sigma))
            of_model = template["model_conds"] | {"c_crossattn": embedding}
            return conds | {"negative": [template | {"model_conds": of_model}]}

        return here

    def levels_per_call(self, wanted: int, *branches: Conds) -> int:
        """How many levels may go into one call: one, where anything may depend on the level.

        Core looks at the first row's level for all rows where an entry has a span of steps, a
        ControlNet or hooks; so does what other nodes put on the model.
        """
        entries = [entry for conds in branches for kind in conds.values() for entry in kind]
        spans = {"timestep_start", "timestep_end", "control", "hooks", "gligen"}
        apart = read_the_level(self.guider.model_patcher, self.options) or any(
            entry.get(key) is not None for entry in entries for key in spans
        )
        return 1 if apart else wanted

    def restore(self, x: Tensor, x0: Tensor, origin: Tensor) -> Tensor:
        """A latent at the lowest level as LATENT samples; what is unedited comes back bit for bit.

        Args:
            x: [B, C, h, w] in model scale, on the model's device.
            x0: What it was before the edit, in the same scale.
            origin: The same, as LATENT samples.
        """
        out = self.guider.inner_model.process_latent_out(x.float())
        return torch.where(x == x0, origin.to(out), out)

    def _options(self) -> dict[str, Any]:
        """A copy of the options in which rows are counted."""
        options = attributed(create_model_options_clone(self.options))
        comfy.patcher_extension.add_wrapper_with_key(
            WrappersMP.APPLY_MODEL, "palimpsest", _counter(self.rows), options, True
        )
        return options


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
    coordinates: Coordinates
    total: int
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
        def on_step(done: int, x: Tensor, denoised: Tensor) -> None:
            callback(done - 1, denoised, x, self.total)

        options = extra_args["model_options"]
        session = Session(guider, options, self.rows, latent_image, on_step, self.coordinates)
        self.result = self.algorithm(session)
        return latent_image


def run(
    guider: BranchGuider,
    samples: Tensor,
    levels: Tensor,
    algorithm: Callable[[Session], Any],
    *,
    coordinates: Coordinates = OURS,
    total: int | None = None,
    callback: Callable[[int, Tensor, Tensor, int], None] | None = None,
) -> tuple[Any, Spent]:
    """Call `algorithm` with the model loaded.

    Args:
        guider: The model and its conditionings.
        samples: [B, C, h, w] LATENT samples that the run is about.
        levels: [N+1] the falling levels that it will visit, as core's SIGMAS.
        algorithm: What to do; its tensors live on the model's device.
        coordinates: How the model's coordinates relate to x.
        total: Steps of which `on_step` is going to tell; one per level if not given.
        callback: Told of every step as core's samplers tell (step, denoised, latent, total);
            core's own progress and previews if not given.

    Returns:
        What `algorithm` returned, and what it cost.
    """
    began = time.perf_counter()
    total = len(levels) - 1 if total is None else total
    sampler = _SessionSampler(algorithm, coordinates, total)
    callback = callback or latent_preview.prepare_callback(guider.model_patcher, total)
    guider.sample(
        torch.zeros_like(samples), samples, sampler, levels, callback=callback, disable_pbar=True
    )
    return sampler.result, Spent(sampler.rows.rows, time.perf_counter() - began)
