"""Edit-Friendly DDPM beside the published code: recorded draws, skipped levels, its last step.

The published noise is z = (x_next - mean(x)) / s_up, with that of the last step set to 0: the last
step then is the mean alone, and the source row misses the picture by as much. Its windows count the
steps after the skip, in fractions of all.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...hosts.diffusers.noise_space import invert_noise
from ...hosts.diffusers.prompt import Prompt
from ...pipelines.attention.prompt_to_prompt import PromptToPrompt, rewrite_prompt
from ...pipelines.correction import DIRECT_INVERSION, residual
from ...pipelines.denoiser import RowCount
from ...pipelines.editing import Edit
from ...pipelines.errors import PalimpsestError
from ...pipelines.inversion.noise_space import EDIT_FRIENDLY
from ...pipelines.rows import Rows
from ...pipelines.schedule import Step, step_down, vp_scale
from ...pipelines.trajectory import Trajectory
from .golden import Case, Folder, Result, error, input_latent
from .sde import replay

#: Its attention store runs with little memory, and keeps maps up to this many pixels.
SELF_PIXELS = 16**2


@dataclass(frozen=True)
class Windows:
    """Published windows, which end at a step, as fractions of the steps that are walked.

    Attributes:
        steps: Of the whole schedule.
        walked: Of them, those below the skip.
    """

    steps: int
    walked: int

    def cross(self, bound: float | list[float]) -> tuple[float, float]:
        """Of the words: the published schedule has a row more than steps."""
        return self._fractions(bound, self.steps + 1, self.walked + 1)

    def own(self, bound: float | list[float]) -> tuple[float, float]:
        """Of self-attention."""
        return self._fractions(bound, self.steps, self.walked)

    def _fractions(
        self, bound: float | list[float], published: int, ours: int
    ) -> tuple[float, float]:
        start, end = (0.0, bound) if isinstance(bound, int | float) else bound
        ends = (min(int(part * published), ours) for part in (start, end))
        # Half a step more is the same step, out of reach of rounding.
        first, last = ((step + 0.5) / ours if 0 < step < ours else step / ours for step in ends)
        return first, last


def run_edit_friendly(folder: Folder, case: Case) -> Result:
    """Edit-Friendly inversion and its edit, with Prompt-to-Prompt where the case has a control."""
    rows, settings = RowCount(), case.settings
    if settings["eta"] != 1:
        raise PalimpsestError(
            f"{case.name} has eta {settings['eta']}, at which the published mean and noise belong "
            "to different steps: only eta 1 is compared."
        )
    trajectory = _invert(folder, case, rows)
    source, target = (folder.prompt(text) for text in _texts(settings))
    whole = folder.unet.edit(
        trajectory,
        source,
        target,
        folder.prompt(""),
        cfg=settings["cfg_tar"],
        control=_control(settings, source, target, trajectory.steps),
        rows=rows,
    )
    walked = _walk(whole)
    scale = vp_scale(trajectory.sigmas).float().flip(0)
    ours = {"target": torch.stack(walked) * scale.view(-1, 1, 1, 1, 1)}
    if len(settings["prompts"]) > 1:  # the source runs beside the target
        ours = {"source": _source_end(trajectory)[None] * scale[-1], **ours}
    errors = _chain_errors(case, trajectory)
    for i, (row, latents) in enumerate(ours.items()):
        errors[f"final.{row}"] = error(latents[-1], case.tensors["final"][i : i + 1])
    if "traj" in case.tensors and len(ours) == 1:
        published = case.tensors["traj"].view_as(ours["target"])
        errors["traj.target"] = error(ours["target"], published)
    return Result(errors, rows.rows)


def _texts(settings: dict[str, Any]) -> tuple[str, str]:
    return settings["prompt_src"], settings["prompts"][-1]


def _invert(folder: Folder, case: Case, rows: RowCount) -> Trajectory:
    """The chain from the recorded draws; the image lies at the lowest published level."""
    sigmas, x0 = folder.sigmas(case), input_latent(folder, case)
    walked = len(sigmas) - case.settings["skip"]
    from_zero = torch.cat([torch.zeros(1, dtype=sigmas.dtype), sigmas[1:walked]])
    trajectory = invert_noise(
        folder.unet,
        EDIT_FRIENDLY,
        x0,
        folder.prompt(case.settings["prompt_src"]),
        from_zero,
        negative=folder.prompt(""),
        source_cfg=case.settings["cfg_src"],
        draw=replay(iter(case.tensors["noise_draws"])),
        rows=rows,
    )
    lowest = x0 / vp_scale(sigmas[0]).float()
    latents = torch.cat([lowest[None], trajectory.latents[1:]])
    return replace(trajectory, latents=latents, sigmas=sigmas[:walked])


def _walk(whole: Edit) -> list[Tensor]:
    """The target at every level, noisy to clean; the last step repeats no noise."""
    chain, last = whole.trajectory, replace(whole, correction=DIRECT_INVERSION)
    walked = [Rows(chain.start, chain.start)]
    for i in range(chain.steps):
        edit = last if i == chain.steps - 1 else whole
        walked.append(edit.step(i, walked[-1]))
    return [rows.target for rows in walked]


def _steps(trajectory: Trajectory) -> list[Step]:
    """The steps down to the levels 0 to N - 1."""
    levels = trajectory.sigmas
    return [step_down(levels[k + 1], levels[k], 1.0) for k in range(trajectory.steps)]


def _source_end(trajectory: Trajectory) -> Tensor:
    """Where the published source row ends: on the chain up to the last step, which is its mean."""
    c = _steps(trajectory)[0].c
    return c * trajectory.latents[1] + (1 - c) * trajectory.denoised[0]


def _chain_errors(case: Case, trajectory: Trajectory) -> dict[str, float]:
    """Of the levels that are walked: the chain, and the noise of all steps but the last."""
    chain, tensors = trajectory.latents, case.tensors
    noise = [
        residual(chain[k + 1], chain[k], trajectory.denoised[k], step) / step.sigma_up
        for k, step in enumerate(_steps(trajectory))
    ]
    found = {"zs": error(torch.cat(noise[1:]), tensors["zs"][1 : trajectory.steps])}
    if "wts" in tensors:
        scale = vp_scale(trajectory.sigmas).view(-1, 1, 1, 1).float()
        found["wts"] = error(chain[:, 0] * scale, tensors["wts"][: trajectory.steps + 1])
    return found


def _control(
    settings: dict[str, Any], source: Prompt, target: Prompt, walked: int
) -> PromptToPrompt | None:
    """The published controller of a case; None where it only stores."""
    if settings["controller"] == "AttentionStore":
        return None
    windows = Windows(settings["steps"], walked)
    cross = settings["cross_replace_steps"]
    cross = cross if isinstance(cross, dict) else {"default_": cross}
    known = {word.text for word in target.tokens.words}
    control = rewrite_prompt(
        source.tokens,
        target.tokens,
        mode="replace" if settings["controller"] == "AttentionReplace" else "refine",
        cross_window=windows.cross(cross.get("default_", 1.0)),
        self_window=windows.own(settings["self_replace_steps"]),
        word_windows={word: windows.cross(b) for word, b in cross.items() if word in known},
        published_tail=True,
    )
    return replace(control, self_pixels=SELF_PIXELS)
