"""What Prompt-to-Prompt edits have in common beside the published code, and those along DDIM."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...hosts.diffusers.prompt import Prompt
from ...pipelines.attention.control import Control
from ...pipelines.attention.local_blend import LocalBlend, blend_columns
from ...pipelines.attention.prompt_to_prompt import PromptToPrompt, rewrite_prompt
from ...pipelines.attention.stack import stacked
from ...pipelines.correction import DIRECT_INVERSION, UNCORRECTED, Correction, residual
from ...pipelines.denoiser import RowCount
from ...pipelines.editing import Edit
from ...pipelines.rows import Rows
from ...pipelines.schedule import step_down, vp_scale
from ...pipelines.trajectory import Trajectory
from .golden import Case, Folder, Result, error, input_latent


def run_inversion(folder: Folder, case: Case) -> Result:
    """DDIM inversion under the source prompt."""
    rows = RowCount()
    trajectory = invert(folder, case, rows)
    ours = published_scale(trajectory.latents, trajectory.sigmas)
    return Result({"traj": error(ours, case.tensors["traj"].view_as(ours))}, rows.rows)


def run_offsets(folder: Folder, case: Case) -> Result:
    """Direct Inversion's offsets: the residual of the guided mean, for source and target."""
    rows = RowCount()
    trajectory = invert(folder, case, rows)
    source, target, empty = prompts_of(folder, case)
    cfg = case.settings["guidance_scale"]
    offsets = []
    for level in range(trajectory.steps, 0, -1):
        chain, chain_next = trajectory.latents[level], trajectory.latents[level - 1]
        sigma, sigma_next = trajectory.sigmas[level], trajectory.sigmas[level - 1]
        step = step_down(sigma, sigma_next)
        both = [
            residual(
                chain,
                chain_next,
                folder.unet.denoiser(prompt, empty, cfg=cfg, rows=rows)(chain, sigma),
                step,
            )
            for prompt in (source, target)
        ]
        offsets.append(torch.cat(both) * vp_scale(sigma_next))
    return Result(
        rowwise("offset", torch.stack(offsets, 1), by_row(case, "noise_loss_list")), rows.rows
    )


def run_direct_inversion(folder: Folder, case: Case) -> Result:
    """Prompt-to-Prompt with the source row on the recorded chain."""
    return run_edit(folder, case, DIRECT_INVERSION)


def run_uncorrected(folder: Folder, case: Case) -> Result:
    """Prompt-to-Prompt with the source row drifting."""
    return run_edit(folder, case, UNCORRECTED)


def run_edit(folder: Folder, case: Case, correction: Correction) -> Result:
    """Prompt-to-Prompt along the chain of DDIM inversion."""
    rows = RowCount()
    return edit_along(folder, case, invert(folder, case, rows), correction, rows)


def edit_along(
    folder: Folder, case: Case, trajectory: Trajectory, correction: Correction, rows: RowCount
) -> Result:
    """Prompt-to-Prompt along a trajectory: source and target row beside the published ones."""
    source, target, empty = prompts_of(folder, case)
    whole = folder.unet.edit(
        trajectory,
        source,
        target,
        empty,
        cfg=case.settings["guidance_scale"],
        control=control_of(case, source, target),
        correction=correction,
        keep_source=True,
        rows=rows,
    )
    return Result(walked_beside(case, whole), rows.rows)


def walked_beside(case: Case, whole: Edit) -> dict[str, float]:
    """Errors of both rows of an edit, at its end and where the case has it at every level."""
    trajectory = whole.trajectory
    walked, masks = [Rows(trajectory.start, trajectory.start)], []
    for i in range(trajectory.steps):
        walked.append(whole.step(i, walked[-1]))
        masks.append(whole.bank and whole.bank.bounds)
    ours = torch.stack([torch.cat([rows_at.source, rows_at.target]) for rows_at in walked], 1)
    ours = torch.stack([published_scale(row, trajectory.sigmas.flip(0)) for row in ours])
    errors = rowwise("final", ours[:, -1], case.tensors["final"])
    if "traj" in case.tensors:
        errors |= rowwise("traj", ours, by_row(case, "traj"))
    if "lb_masks" in case.tensors:
        errors["lb_masks"] = _differing(masks, case.tensors["lb_masks"])
    return errors


def _differing(ours: list[Tensor | None], published: Tensor) -> float:
    """Part of the cells of LocalBlend's masks that differ; of every step that has one.

    Args:
        ours: [B, 1, h, w] of every step, None before the first.
        published: [calls, rows, 1, h, w]; the last row is the target's.
    """
    found = [mask for mask in ours if mask is not None]
    if len(found) != len(published):
        return math.inf
    return float((torch.cat(found) != published[:, -1]).double().mean())


def control_of(case: Case, source: Prompt, target: Prompt) -> Control:
    """The published controller of a case, and its LocalBlend."""
    controls = [_rewrite_of(case, source, target)]
    if case.settings.get("blend_words"):
        controls.append(_blend_of(case, source, target))
    return stacked(controls)


def _blend_of(case: Case, source: Prompt, target: Prompt) -> LocalBlend:
    """The published LocalBlend of a case."""
    settings = case.settings
    words = settings["blend_words"], settings.get("substruct_words") or ([], [])
    columns = [
        blend_columns([prompt.tokens], *chosen, role="prompt")
        for prompt, *chosen in zip((source, target), *words, strict=True)
    ]
    return LocalBlend(
        *columns, *settings.get("lb_threshold", (0.3, 0.3)), settings.get("lb_start_blend", 0.2)
    )


def _rewrite_of(case: Case, source: Prompt, target: Prompt) -> PromptToPrompt:
    """The published controller; it passes over words that the target does not have."""
    settings = case.settings
    cross = settings["cross_replace_steps"]
    cross = cross if isinstance(cross, dict) else {"default_": cross}
    windows = {w: _window(b) for w, b in ({"default_": 1.0} | cross).items()}
    weights = settings.get("eq_params") or {"words": [], "values": []}
    default, known = windows.pop("default_"), {word.text for word in target.tokens.words}
    return rewrite_prompt(
        source.tokens,
        target.tokens,
        mode="replace" if settings["is_replace_controller"] else "refine",
        cross_window=default,
        self_window=_window(settings["self_replace_steps"]),
        weights=_of_words(known, zip(weights["words"], weights["values"], strict=True)),
        word_windows=_of_words(known, windows.items()),
        published_tail=True,
    )


def _of_words(known: set[str], pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {word: value for word, value in pairs if word in known}


def _window(bound: float | list[float]) -> tuple[float, float]:
    return (0.0, bound) if isinstance(bound, int | float) else (bound[0], bound[1])


def invert(folder: Folder, case: Case, rows: RowCount) -> Trajectory:
    """The DDIM inversion of a case's picture under its source prompt."""
    sigmas = folder.sigmas(case)
    x0 = input_latent(folder, case)
    prompt = folder.prompt(case.settings["prompt_src"])
    return folder.unet.invert(x0 / vp_scale(sigmas[0]), prompt, sigmas, rows=rows)


def prompts_of(folder: Folder, case: Case) -> tuple[Prompt, Prompt, Prompt]:
    """Source, target and empty prompt of a case."""
    texts = (case.settings["prompt_src"], case.settings["prompt_tar"], "")
    source, target, empty = (folder.prompt(text) for text in texts)
    return source, target, empty


def published_scale(latents: Tensor, sigmas: Tensor) -> Tensor:
    """Our [levels, ...] in the published, variance-preserving coordinates."""
    return latents * vp_scale(sigmas).view(-1, *[1] * (latents.ndim - 1)).float()


def by_row(case: Case, key: str) -> Tensor:
    """A published tensor, its rows first."""
    return case.tensors[key].transpose(0, 1)


def rowwise(name: str, ours: Tensor, published: Tensor) -> dict[str, float]:
    """The error of the source row and of the target row."""
    rows = zip(("source", "target"), ours, published, strict=True)
    return {f"{name}.{row}": error(a, b) for row, a, b in rows}
