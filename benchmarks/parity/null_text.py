"""Null-text inversion beside the published code.

Adam divides by the root of its second moment, which is rounding where a slope is all but zero: so
latents are compared, not embeddings, and less closely than elsewhere.
"""

from dataclasses import replace

from ...hosts.diffusers.null_text import invert_null_text
from ...pipelines.correction import DIRECT_INVERSION
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.null_text import NullText
from ...pipelines.schedule import vp_scale
from .edit import edit_along, prompts_of
from .golden import Case, Folder, Result, input_latent

#: Norm of the difference over norm of the published tensor, per tensor and row.
TOLERANCE = 1e-2


def run_null_text(folder: Folder, case: Case) -> Result:
    """Prompt-to-Prompt along the path that the learned embeddings lead."""
    rows, sigmas = RowCount(), folder.sigmas(case)
    source, _, empty = prompts_of(folder, case)
    settings = NullText(
        case.settings["guidance_scale"],
        case.settings["num_inner_steps"],
        case.settings["early_stop_epsilon"],
    )
    x0 = input_latent(folder, case) / vp_scale(sigmas[0])
    trajectory, _ = invert_null_text(folder.unet, x0, source, empty, sigmas, settings, rows=rows)
    outcome = edit_along(folder, case, trajectory, DIRECT_INVERSION, rows)
    return replace(outcome, tolerance=TOLERANCE)
