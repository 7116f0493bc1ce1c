"""Plug-and-Play beside the published code, on the recorded chain and on a reconstructed one."""

from dataclasses import replace

import torch

from ...hosts.diffusers.prompt import Prompt
from ...pipelines.attention.plug_and_play import PlugAndPlay
from ...pipelines.denoiser import RowCount
from ...pipelines.schedule import vp_scale
from ...pipelines.trajectory import Trajectory
from .edit import invert, published_scale
from .golden import Case, Folder, Result, error


def run_plug_and_play(folder: Folder, case: Case) -> Result:
    """The source row on the recorded chain."""
    rows = RowCount()
    trajectory = invert(folder, case, rows)
    return _edited(folder, case, trajectory, trajectory, rows)


def run_reconstructed_plug_and_play(folder: Folder, case: Case) -> Result:
    """The source row on the picture's reconstruction, one level too clean, as published."""
    rows = RowCount()
    trajectory = invert(folder, case, rows)
    denoise = folder.unet.denoiser(folder.prompt(case.settings["prompt_src"]), rows=rows)
    path = [trajectory.start]
    for level in range(trajectory.steps, 0, -1):
        sigma, below = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        path.append(path[-1] + (1 - below / sigma) * (denoise(path[-1], sigma) - path[-1]))
    scales = vp_scale(trajectory.sigmas)
    # At every level the network is shown the path at the level below, in its own scaling.
    shown = [path[-1]] + [
        path[-level] * (scales[level - 1] / scales[level]).to(path[-level])
        for level in range(1, trajectory.steps + 1)
    ]
    return _edited(folder, case, trajectory, replace(trajectory, latents=torch.stack(shown)), rows)


def _edited(
    folder: Folder, case: Case, inverted: Trajectory, walked: Trajectory, rows: RowCount
) -> Result:
    settings = case.settings
    # The published source row has the empty prompt, whatever the picture was inverted under.
    source, target = folder.prompt(""), folder.prompt(settings["prompt_tar"])
    negative = Prompt(case.tensors["neg_emb"], source.tokens)
    done = folder.unet.edit(
        walked,
        source,
        target,
        negative,
        cfg=settings["guidance_scale"],
        control=control_of(case),
        rows=rows,
    ).run()
    ours = published_scale(inverted.latents, inverted.sigmas)
    errors = {"inverted_x": error(ours, case.tensors["inverted_x"].view_as(ours))}
    edited = published_scale(done.latent[None], walked.sigmas[:1])[0]
    return Result(errors | {"final": error(edited, case.tensors["final"])}, rows.rows)


def control_of(case: Case) -> PlugAndPlay:
    """The published hooks of a case."""
    return PlugAndPlay((0.0, case.settings["pnp_attn_t"]), (0.0, case.settings["pnp_f_t"]))
