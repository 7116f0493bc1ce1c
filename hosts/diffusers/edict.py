"""EDICT on a diffusers UNet.

sigmas = edict_sigmas(unet, 50, strength=0.8)
trajectory = invert_edict(unet, latent, source, empty, sigmas)
edited = unet.edit(trajectory, source, target, empty, cfg=3.0).run()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ...pipelines.attention.bank import Bank, Control
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.edict import CoupledEdit, couple, drop_rests
from ...pipelines.schedule import ddim_timesteps, vp_scale
from ...pipelines.trajectory import Recipe, Trajectory

if TYPE_CHECKING:
    from .prompt import Prompt
    from .unet import DiffusersUNet


def edict_sigmas(model: DiffusersUNet, steps: int = 50, *, strength: float = 0.8) -> Tensor:
    """[N+1] the published levels: timesteps 0, 20, 40, ... and the lowest of them once more.

    Args:
        model: Knows the training schedule.
        steps: Of the whole way to pure noise.
        strength: In (0, 1], the part of them that is walked.
    """
    timesteps = ddim_timesteps(steps, train_steps=len(model.alphas_cumprod), offset=0)
    walked = timesteps[: int(steps * strength)]
    return model.sigmas[torch.cat([walked[:1], walked])]


def invert_edict(
    model: DiffusersUNet,
    x0: Tensor,
    prompt: Prompt,
    negative: Prompt,
    sigmas: Tensor,
    *,
    cfg: float = 3.0,
    mixing: float = 0.93,
    rows: RowCount | None = None,
) -> Trajectory:
    """EDICT inversion of a latent.

    Args:
        model: The network.
        x0: [B, C, h, w] the picture in x, at `sigmas[0]`.
        prompt: Describes the picture.
        negative: The other end of the guidance.
        sigmas: [N+1] noise levels; the lowest may be repeated, as on the published grid.
        cfg: Guidance of the source.
        mixing: See `edict.couple`.
        rows: Counts the rows spent.
    """
    spent = RowCount()
    denoise = model.denoiser(prompt, negative, cfg=cfg, rows=spent)
    levels, rests = drop_rests(sigmas)
    latents, partner, guesses = couple(denoise, x0, levels, scale=vp_scale, mixing=mixing)
    if rows is not None:
        rows.add(spent.rows)
    recipe = Recipe("edict", cfg=cfg, rows=spent.rows, mixing=mixing, rests=rests)
    return Trajectory(latents, levels, x0, recipe, partner=partner, guesses=guesses)


def coupled_edit(
    model: DiffusersUNet,
    trajectory: Trajectory,
    source: Prompt,
    target: Prompt,
    negative: Prompt,
    *,
    cfg: float,
    control: Control | None = None,
    mask: Tensor | None = None,
    record_at: Literal["chain", "edit"] = "chain",
    rows: RowCount | None = None,
) -> CoupledEdit:
    """What `DiffusersUNet.edit` gives for a trajectory of coupled chains.

    Args:
        model: The network.
        trajectory: From `invert_edict`.
        source: Describes the picture; only read by a control.
        target: Describes the edit.
        negative: The other end of the guidance.
        cfg: Guidance of the target.
        control: Attention control.
        mask: [1 or B, 1, h, w] in 0..1, 0 where the picture is kept.
        record_at: See `edict.CoupledEdit`.
        rows: Counts the rows spent.
    """
    bank = None if control is None else Bank(control, trajectory.steps)
    record, inject = (bank.record, bank.inject) if bank else (None, None)
    return CoupledEdit(
        trajectory,
        model.denoiser(target, negative, cfg=cfg, hook=inject, rows=rows),
        vp_scale,
        record=model.denoiser(source, hook=record, rows=rows) if bank else None,
        bank=bank,
        mask=mask,
        record_at=record_at,
    )
