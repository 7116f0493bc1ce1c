"""A diffusers UNet as the pipelines' denoiser: inversion and edits along its trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ...pipelines.attention.control import Control
from ...pipelines.attention.features import FeatureRecorder
from ...pipelines.attention.hooks import BESIDE, NO_HOOKS, Hooks, Role
from ...pipelines.correction import DIRECT_INVERSION, Correction
from ...pipelines.couplings import Convention, ddim
from ...pipelines.denoiser import (
    Denoiser,
    Guidance,
    RowCount,
    constant,
    guidance_of,
    guide,
    per_row,
)
from ...pipelines.edit_along import edit_along
from ...pipelines.editing import Editing
from ...pipelines.errors import PalimpsestError
from ...pipelines.inversion.method import Inversion
from ...pipelines.lending import Mix
from ...pipelines.schedule import VP, ddim_timesteps, sigma_from_alpha, vp_scale
from ...pipelines.trajectory import Recipe, Trajectory
from .attention import hooked
from .lent import Lent
from .prompt import Prompt, PromptAt, Prompts, RowsBeside, conditions

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, eq=False)
class DiffusersUNet:
    """A UNet2DConditionModel and the schedule it was trained on.

    Attributes:
        unet: The network.
        alphas_cumprod: [train steps] cumulative alphas.
        prediction: What it predicts.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    @property
    def sigmas(self) -> Tensor:
        """[train steps] float64 noise level of every training timestep, rising."""
        return sigma_from_alpha(self.alphas_cumprod.double())

    def ddim_sigmas(self, steps: int) -> Tensor:
        """[steps + 1] rising levels: 0, and the published grid of timesteps 1, 21, 41, ..."""
        timesteps = ddim_timesteps(steps, train_steps=len(self.alphas_cumprod))
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.sigmas[timesteps]])

    def denoiser(
        self,
        positive: Prompt | PromptAt,
        negative: Prompt | PromptAt | None = None,
        *,
        cfg: float | Guidance = 1.0,
        hooks: Hooks = NO_HOOKS,
        mix: Mix | None = None,
        rows: RowCount | None = None,
        gradients: bool = False,
        conditional: Tensor | None = None,
        beside: RowsBeside | None = None,
    ) -> Denoiser:
        """The posterior mean under a prompt.

        Args:
            positive: What the picture shows, or what gives it for a level.
            negative: The other end of the guidance, or what gives it for a level; not evaluated at
                cfg 1.
            cfg: Guidance scale, or one for every level.
            hooks: See the network from inside.
            mix: Guides in the place of the plain sum.
            rows: Counts the rows spent.
            gradients: Whether they flow to the prompts.
            conditional: [B, C, h, w] what the prompt's row is shown in the place of x; its noise is
                taken over to x.
            beside: Rows of a source that run in one call with these.
        """
        guidance = constant(cfg) if isinstance(cfg, int | float) else cfg
        if negative is None and cfg != 1:
            named = "other than 1" if callable(cfg) else cfg
            raise PalimpsestError(f"Guidance {named} needs a negative prompt; none was given.")

        @(torch.enable_grad if gradients else torch.no_grad)()
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            scale = guidance_of(guidance, sigma, x)
            guided = negative is not None and bool(torch.as_tensor(scale != 1).any())
            prompts = {"uncond": negative, "cond": positive} if guided else {"cond": positive}
            if guided and hooks == NO_HOOKS and bool(torch.as_tensor(scale == 0).all()):
                del prompts["cond"]  # no one reads the conditional row
            waiting = beside.waiting() if beside else {}
            if waiting or hooks.branches_apart:
                means = []
                for role, prompt in prompts.items():
                    every, places = {role: prompt}, [x]
                    if role in waiting:
                        shown, place = waiting[role]
                        every, places = {BESIDE[role]: shown, **every}, [place, x]
                    means.append(self._means(every, places, sigma, hooks, rows)[-1])
            elif conditional is None:
                means = self._means(prompts, x, sigma, hooks, rows)
            else:
                shown = {role: conditional if role == "cond" else x for role in prompts}
                means = [
                    self._means({role: prompts[role]}, z, sigma, hooks, rows)[0] + (x - z)
                    for role, z in shown.items()
                ]
            if len(means) == 1:
                return means[0]
            return mix(means[1], means[0], scale, sigma) if mix else guide(*means[::-1], scale)

        return denoise

    def rows_of(
        self,
        prompts: dict[Role, Prompt | PromptAt],
        *,
        hooks: Hooks = NO_HOOKS,
        rows: RowCount | None = None,
        gradients: bool = False,
    ) -> Denoiser:
        """Rows of the guidance without its sum, for what hooks see in them.

        Args:
            prompts: What each row is shown; the denoised guess is that of the last.
            hooks: See the network from inside.
            rows: Counts the rows spent.
            gradients: Whether they flow from what the hooks see to x.
        """

        @(torch.enable_grad if gradients else torch.no_grad)()
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self._means(prompts, x, sigma, hooks, rows)[-1]

        return denoise

    def _means(
        self,
        prompts: dict[Role, Prompt | PromptAt],
        at: Tensor | list[Tensor],
        sigma: Tensor,
        hooks: Hooks,
        rows: RowCount | None,
    ) -> list[Tensor]:
        """The posterior mean under every prompt, from one call of the network.

        Args:
            prompts: By the branch of their rows.
            at: [B, C, h, w] where all of them stand, or where each does.
            sigma: The level.
            hooks: See the network from inside.
            rows: Counts the rows spent.
        """
        here = {role: p(sigma) if callable(p) else p for role, p in prompts.items()}
        count = len(here)
        places = at if isinstance(at, list) else [at] * count
        x = places[0]
        scale = per_row(vp_scale(sigma).to(x.dtype), x)
        z = torch.cat([place * scale for place in places]).to(self.unet.dtype)
        timesteps = self._timesteps(sigma).expand(len(x)).repeat(count)
        values = here["cond"].values if "cond" in here else None
        with hooked(self.unet, hooks, tuple(here), values):
            shown = conditions(list(here.values()), len(x), z.dtype)
            if rows is not None:
                rows.add(len(z))
            out = self.unet(z, timesteps, **shown).sample
        level = per_row(sigma, x).to(x.dtype)
        return [
            self._mean(place, part.to(place.dtype), level)
            for place, part in zip(places, out.chunk(count), strict=True)
        ]

    def _timesteps(self, sigma: Tensor) -> Tensor:
        """The training timestep nearest to every level, in the shape of `sigma`."""
        distance = self.sigmas.log().unsqueeze(-1) - sigma.double().log().reshape(1, -1)
        return distance.abs().argmin(0).reshape(sigma.shape)

    def _mean(self, x: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
        """The posterior mean from what the network predicted."""
        if self.prediction == "epsilon":
            return x - sigma * predicted
        return x / (1 + sigma**2) - sigma * vp_scale(sigma) * predicted

    def invert(
        self,
        x0: Tensor,
        prompt: Prompt,
        sigmas: Tensor,
        *,
        convention: Convention = "destination",
        refinement: int = 0,
        regularise: Callable[[Tensor], Tensor] | None = None,
        recorder: FeatureRecorder | None = None,
        rows: RowCount | None = None,
    ) -> Trajectory:
        """DDIM inversion of a latent at cfg 1.

        Args:
            x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
            prompt: Describes the picture.
            sigmas: [N+1] rising noise levels.
            convention: See `couplings.ddim`.
            refinement: See `couplings.ddim`.
            regularise: See `couplings.ddim`.
            recorder: Keeps the source's features for later edits; with convention "current".
            rows: Counts the rows spent.
        """
        spent = RowCount()
        denoise = self.denoiser(prompt, hooks=recorder.hooks if recorder else NO_HOOKS, rows=spent)
        denoise = recorder.watch(denoise) if recorder else denoise
        latents = ddim(
            denoise,
            x0,
            sigmas,
            scale=vp_scale,
            convention=convention,
            refinement=refinement,
            regularise=regularise,
        )
        if rows is not None:
            rows.add(spent.rows)
        regularised = regularise is not None
        recipe = Recipe("ddim", convention, refinement, rows=spent.rows, regularised=regularised)
        kept = recorder.result(prompt.key) if recorder else None
        return Trajectory(latents, sigmas, x0, recipe, features=kept)

    def edit(
        self,
        trajectory: Trajectory,
        source: Prompt,
        target: Prompt,
        negative: Prompt,
        *,
        cfg: float = 7.5,
        control: Control | None = None,
        correction: Correction = DIRECT_INVERSION,
        mask: Tensor | None = None,
        keep_source: bool = False,
        rows: RowCount | None = None,
    ) -> Editing:
        """An edit along a trajectory, ready to `run`.

        Args:
            trajectory: The recorded chain of the source.
            source: Describes the picture.
            target: Describes the edit.
            negative: The other end of the guidance.
            cfg: Guidance scale.
            control: Attention control, for example from `rewrite_prompt`.
            correction: What is done about the residual.
            mask: [1 or B, 1, h, w] in 0..1, 0 where the picture is kept.
            keep_source: Follow a drifting source row to the end.
            rows: Counts the rows spent.
        """
        return edit_along(
            trajectory,
            Lent(self, Prompts(source, target, negative), cfg, rows),
            control=control,
            correction=correction,
            mask=mask,
            keep_source=keep_source,
        )

    def invert_by(
        self,
        x0: Tensor,
        prompt: Prompt,
        sigmas: Tensor,
        method: Inversion,
        *,
        negative: Prompt | None = None,
        cfg: float = 1.0,
        rows: RowCount | None = None,
    ) -> Trajectory:
        """Invert a latent by a method that asks nothing but its denoiser.

        Args:
            x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
            prompt: Describes the picture.
            sigmas: [N+1] rising noise levels.
            method: One of `pipelines.inversion`, its settings bound.
            negative: The other end of the guidance; not read at guidance 1.
            cfg: Guidance of the source.
            rows: Counts the rows spent.
        """
        spent = RowCount()
        denoise = self.denoiser(prompt, negative, cfg=cfg, rows=spent)
        made = method(denoise, x0, sigmas, family=VP)
        if rows is not None:
            rows.add(spent.rows)
        recipe = replace(made.recipe, cfg=cfg, rows=spent.rows)
        return Trajectory(made.latents, sigmas, x0, recipe, made.denoised, made.image, made.carried)
