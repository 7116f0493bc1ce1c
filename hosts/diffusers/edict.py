"""EDICT on a diffusers UNet.

sigmas = edict_sigmas(unet, 50, strength=0.8)
trajectory = invert_edict(unet, latent, source, empty, sigmas)
edited = unet.edit(trajectory, source, target, empty, cfg=3.0).run()
"""

from functools import partial

import torch
from torch import Tensor

from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.edict import couple, drop_rests
from ...pipelines.schedule import ddim_timesteps
from ...pipelines.trajectory import Trajectory
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
    levels, rests = drop_rests(sigmas)
    method = partial(couple, mixing=mixing, rests=rests)
    return model.invert_by(x0, prompt, levels, method, negative=negative, cfg=cfg, rows=rows)
