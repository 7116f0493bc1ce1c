"""MasaCtrl beside the published code, along DDIM inversion with and without its correction."""

from ...hosts.diffusers.attention import transformer_blocks
from ...pipelines.attention.masactrl import MasaCtrl
from ...pipelines.correction import DIRECT_INVERSION, UNCORRECTED, Correction
from ...pipelines.denoiser import RowCount
from ...pipelines.schedule import vp_scale
from .edit import published_scale, walked_beside
from .golden import Case, Folder, Result, error, input_latent


def run_masactrl(folder: Folder, case: Case) -> Result:
    """The source row on the recorded chain."""
    return _run(folder, case, DIRECT_INVERSION)


def run_uncorrected_masactrl(folder: Folder, case: Case) -> Result:
    """The source row drifting."""
    return _run(folder, case, UNCORRECTED)


def _run(folder: Folder, case: Case, correction: Correction) -> Result:
    settings, rows = case.settings, RowCount()
    source, target, empty = (
        folder.prompt(text) for text in (settings["prompt_src_branch"], settings["prompt_tar"], "")
    )
    sigmas = folder.sigmas(case)
    x0 = input_latent(folder, case) / vp_scale(sigmas[0])
    # Published under guidance, on two rows that are shown the same: one says what both do.
    trajectory = folder.unet.invert(x0, source, sigmas, rows=rows)
    whole = folder.unet.edit(
        trajectory,
        source,
        target,
        empty,
        cfg=settings["guidance_scale"],
        control=control_of(folder, case),
        correction=correction,
        keep_source=True,
        rows=rows,
    )
    errors = walked_beside(case, whole)
    if "inv_traj" in case.tensors:
        ours, published = published_scale(trajectory.latents, sigmas), case.tensors["inv_traj"]
        errors["inv_traj"] = error(ours, published.view_as(ours))
    return Result(errors, rows.rows)


def control_of(folder: Folder, case: Case) -> MasaCtrl:
    """The published controller of a case, which counts steps and layers."""
    settings, layers = case.settings, len(transformer_blocks(folder.unet.unet))
    steps = (settings["start_step"] / settings["steps"], 1.0)
    return MasaCtrl(steps, (settings["start_layer"] / layers, 1.0))
