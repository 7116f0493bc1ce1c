"""Negative-prompt inversion beside the published code, with and without proximal guidance.

The run script that the cases come from asks for inversion guidance and never hands the wish on: so
nothing is pulled here. Its quantile is over the source row too, whose difference is zero.
"""

from ...hosts.diffusers.negative_prompt import invert_negative_prompt
from ...pipelines.correction import UNCORRECTED
from ...pipelines.denoiser import RowCount
from ...pipelines.errors import PalimpsestError
from ...pipelines.proximal import Proximal
from ...pipelines.schedule import vp_scale
from .edit import edit_along, prompts_of
from .golden import Case, Folder, Result, input_latent

#: What the published code calls its thresholds.
THRESHOLDS = {"l0": "published l0", "l1": "published l1"}


def run_negative_prompt(folder: Folder, case: Case) -> Result:
    """Prompt-to-Prompt under the source prompt's own embedding, both rows from the top."""
    rows, sigmas = RowCount(), folder.sigmas(case)
    source, _, empty = prompts_of(folder, case)
    trajectory = invert_negative_prompt(
        folder.unet,
        input_latent(folder, case) / vp_scale(sigmas[0]),
        source,
        sigmas,
        negative=empty,
        interpolation=case.settings.get("npi_interp", 0.0),
        rows=rows,
    )
    limits = _proximal(case)
    if limits is not None:
        trajectory = trajectory.with_carried(limits)
    return edit_along(folder, case, trajectory, UNCORRECTED, rows)


def _proximal(case: Case) -> Proximal | None:
    """The published threshold of a case; a negative quantile is the threshold itself."""
    name = case.settings.get("prox")
    if name is None:
        return None
    if name not in THRESHOLDS:
        raise PalimpsestError(
            f"The case {case.name} has the threshold {name}, known are {', '.join(THRESHOLDS)}."
        )
    quantile = case.settings["quantile"]
    return Proximal(
        THRESHOLDS[name],
        quantile=max(quantile, 0.0),
        fixed=max(-quantile, 0.0),
        pull=0.0,
        over_source=True,
    )
