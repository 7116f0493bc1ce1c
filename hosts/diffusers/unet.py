"""A diffusers UNet as the pipelines' denoiser: inversion and edits along its trajectories."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ...pipelines.attention.bank import AttentionHook, Bank, Control, Role
from ...pipelines.attention.features import FeatureRecorder
from ...pipelines.correction import DIRECT_INVERSION, Correction, correction_along
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
from ...pipelines.editing import Branches, Edit, Editing
from ...pipelines.errors import PalimpsestError
from ...pipelines.proximal import Mix, Proximal, ProximalGuidance, check_guided
from ...pipelines.schedule import ddim_timesteps, sigma_from_alpha, vp_scale
from ...pipelines.trajectory import Recipe, Trajectory
from .attention import hooked
from .edict import coupled_edit
from .prompt import Prompt, PromptAt, conditions, guided_key, with_uncond, with_values

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
        hook: AttentionHook | None = None,
        mix: Mix | None = None,
        rows: RowCount | None = None,
        gradients: bool = False,
    ) -> Denoiser:
        """The posterior mean under a prompt.

        Args:
            positive: What the picture shows, or what gives it for a level.
            negative: The other end of the guidance, or what gives it for a level; not evaluated at
                cfg 1.
            cfg: Guidance scale, or one for every level.
            hook: Sees every attention call.
            mix: Guides in the place of the plain sum.
            rows: Counts the rows spent.
            gradients: Whether they flow to the prompts.
        """
        guidance = constant(cfg) if isinstance(cfg, int | float) else cfg
        if negative is None and cfg != 1:
            named = "other than 1" if callable(cfg) else cfg
            raise PalimpsestError(f"Guidance {named} needs a negative prompt; none was given.")

        @(torch.enable_grad if gradients else torch.no_grad)()
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            scale = guidance_of(guidance, sigma, x)
            guided = negative is not None and bool(torch.as_tensor(scale != 1).any())
            below = negative(sigma) if callable(negative) else negative
            above = positive(sigma) if callable(positive) else positive
            prompts = [below, above] if guided else [above]
            roles: list[Role] = ["uncond", "cond"] if guided else ["cond"]
            if guided and hook is None and bool(torch.as_tensor(scale == 0).all()):
                prompts, roles = prompts[:1], roles[:1]  # no one reads the conditional row
            z = x * per_row(vp_scale(sigma).to(x.dtype), x)
            z = z.to(self.unet.dtype).repeat(len(prompts), 1, 1, 1)
            timesteps = self._timesteps(sigma).expand(len(x)).repeat(len(prompts))
            with hooked(self.unet, hook, roles, above.values):
                out = self.unet(z, timesteps, **conditions(prompts, len(x), z.dtype)).sample
            if rows is not None:
                rows.add(len(z))
            level = per_row(sigma, x).to(x.dtype)
            means = [self._mean(x, part.to(x.dtype), level) for part in out.chunk(len(prompts))]
            if len(means) == 1:
                return means[0]
            return mix(means[1], means[0], scale, sigma) if mix else guide(*means[::-1], scale)

        return denoise

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
            recorder: Keeps the source's features for later edits; with convention "current".
            rows: Counts the rows spent.
        """
        spent = RowCount()
        denoise = self.denoiser(prompt, hook=recorder.record if recorder else None, rows=spent)
        denoise = recorder.watch(denoise) if recorder else denoise
        latents = ddim(
            denoise, x0, sigmas, scale=vp_scale, convention=convention, refinement=refinement
        )
        if rows is not None:
            rows.add(spent.rows)
        recipe = Recipe("ddim", convention, refinement, rows=spent.rows)
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
        if trajectory.partner is not None:
            prompts, wishes = (source, target, negative), {"control": control, "mask": mask}
            return coupled_edit(self, trajectory, *prompts, cfg=cfg, rows=rows, **wishes)
        bank = bank_along(trajectory, source, control, correction)
        record, inject = (bank.record, bank.inject) if bank else (None, None)
        recipe, below = trajectory.recipe, with_uncond(negative, trajectory)
        recipe.check_cfg(cfg)
        window = recipe.value_window
        of_target = below if recipe.uncond_for == "both" else negative
        of_source, above = with_values(source, trajectory), with_values(target, trajectory, window)
        source_cfg = cfg if recipe.source_cfg is None else recipe.source_cfg
        proximal, mix, mix_source = limits(recipe.proximal, cfg)
        unedited = self.denoiser(above, of_target, cfg=cfg, mix=mix_source, rows=rows)
        branches = Branches(
            target=self.denoiser(above, of_target, cfg=cfg, hook=inject, mix=mix, rows=rows),
            source=self.denoiser(
                of_source, below, cfg=source_cfg, hook=record, mix=mix_source, rows=rows
            ),
            record=self.denoiser(of_source, hook=record, rows=rows),
            unedited=unedited if bank else None,
        )
        if recipe.eta and bank is None and trajectory.uncond is None:
            recorded = trajectory.denoised is not None
            known = recipe.source if recorded else guided_key(source, negative, source_cfg)
            if known == guided_key(target, negative, cfg):  # nothing is edited: nothing is run
                branches = replace(branches, source=branches.target)
        return Edit(
            trajectory,
            branches,
            correction=correction_along(trajectory, correction),
            eta=recipe.eta,
            bank=bank,
            mask=mask,
            keep_source=keep_source,
            proximal=proximal,
        )


def limits(
    settings: Proximal | None, cfg: float
) -> tuple[ProximalGuidance | None, Mix | None, Mix | None]:
    """Proximal guidance for one edit, and how it guides the target and any other row."""
    check_guided(settings, cfg)
    if settings is None:
        return None, None, None
    made = ProximalGuidance(settings)
    return made, made.mix, made.mix_source


def bank_along(
    trajectory: Trajectory, source: Prompt, control: Control | None, correction: Correction
) -> Bank | None:
    """The bank of a control, with the inversion's features where they are this source's."""
    if control is None:
        return None
    kept = trajectory.features
    on_chain = correction_along(trajectory, correction).on_chain
    same = kept is not None and kept.key == source.key
    return Bank(control, trajectory.steps, kept if on_chain and same else None)
