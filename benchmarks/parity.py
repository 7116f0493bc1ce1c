"""Our pipelines beside the published code: largest relative error and rows, case by case.

python dev.py bench parity [DIR...] [--only PATTERN,PATTERN] [--model DIR]
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hosts.diffusers import Prompt
from ..pipelines.attention.prompt_to_prompt import PromptToPrompt, rewrite_prompt
from ..pipelines.denoiser import RowCount
from ..pipelines.editing import (
    DIRECT_INVERSION,
    UNCORRECTED,
    Correction,
    residual,
)
from ..pipelines.errors import PalimpsestError
from ..pipelines.schedule import step_down, vp_scale
from ..pipelines.trajectory import Trajectory
from .golden import Case, Folder, Result, error, input_latent, open_folder
from .parity_sde import run_copy_paste, run_cycle, run_drag, run_sdedit, run_step

#: Norm of the difference over norm of the published tensor, per tensor and row.
TOLERANCE = 1e-4

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


def run_inversion(folder: Folder, case: Case) -> Result:
    """DDIM inversion under the source prompt."""
    rows = RowCount()
    trajectory = _invert(folder, case, rows)
    ours = _published_scale(trajectory.latents, trajectory.sigmas)
    return Result({"traj": error(ours, case.tensors["traj"].view_as(ours))}, rows.rows)


def run_offsets(folder: Folder, case: Case) -> Result:
    """Direct Inversion's offsets: the residual of the guided mean, for source and target."""
    rows = RowCount()
    trajectory = _invert(folder, case, rows)
    source, target, empty = _prompts(folder, case)
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
        _rowwise("offset", torch.stack(offsets, 1), _by_row(case, "noise_loss_list")), rows.rows
    )


def run_direct_inversion(folder: Folder, case: Case) -> Result:
    """Prompt-to-Prompt with the source row on the recorded chain."""
    return _run_edit(folder, case, DIRECT_INVERSION)


def run_uncorrected(folder: Folder, case: Case) -> Result:
    """Prompt-to-Prompt with the source row drifting."""
    return _run_edit(folder, case, UNCORRECTED)


def _run_edit(folder: Folder, case: Case, correction: Correction) -> Result:
    rows = RowCount()
    trajectory = _invert(folder, case, rows)
    source, target, empty = _prompts(folder, case)
    whole = folder.unet.edit(
        trajectory,
        source,
        target,
        empty,
        cfg=case.settings["guidance_scale"],
        control=_control(case, source, target),
        correction=correction,
        keep_source=True,
        rows=rows,
    )
    walked = [(trajectory.start, trajectory.start)]
    for i in range(trajectory.steps):
        source_row, target_row = walked[-1]
        stepped = whole.step(i, target_row, source_row)
        walked.append((stepped.source, stepped.latent))
    ours = torch.stack([torch.cat([source_row, row]) for source_row, row in walked], 1)
    ours = torch.stack([_published_scale(row, trajectory.sigmas.flip(0)) for row in ours])
    errors = _rowwise("final", ours[:, -1], case.tensors["final"])
    if "traj" in case.tensors:
        errors |= _rowwise("traj", ours, _by_row(case, "traj"))
    return Result(errors, rows.rows)


def _control(case: Case, source: Prompt, target: Prompt) -> PromptToPrompt:
    """The published controller of a case; it passes over words that the target does not have."""
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


def _invert(folder: Folder, case: Case, rows: RowCount) -> Trajectory:
    sigmas = folder.sigmas(case)
    x0 = input_latent(folder, case)
    prompt = folder.prompt(case.settings["prompt_src"])
    return folder.unet.invert(x0 / vp_scale(sigmas[0]), prompt, sigmas, rows=rows)


def _prompts(folder: Folder, case: Case) -> tuple[Prompt, Prompt, Prompt]:
    texts = (case.settings["prompt_src"], case.settings["prompt_tar"], "")
    source, target, empty = (folder.prompt(text) for text in texts)
    return source, target, empty


def _published_scale(latents: Tensor, sigmas: Tensor) -> Tensor:
    """Our [levels, ...] in the published, variance-preserving coordinates."""
    return latents * vp_scale(sigmas).view(-1, *[1] * (latents.ndim - 1)).float()


def _by_row(case: Case, key: str) -> Tensor:
    return case.tensors[key].transpose(0, 1)


def _rowwise(name: str, ours: Tensor, published: Tensor) -> dict[str, float]:
    rows = zip(("source", "target"), ours, published, strict=True)
    return {f"{name}.{row}": error(a, b) for row, a, b in rows}


Runner = Callable[[Folder, Case], Result]


def runner_of(case: Case) -> Runner | None:
    """The pipeline that a case is about, or None where we have none yet."""
    if case.settings.get("blend_words"):
        return None
    for start, runner in (
        ("PnPInversion DirectInversion.ddim_inversion", run_inversion),
        ("PnPInversion DirectInversion.invert", run_offsets),
        ("PnPInversion directinversion+p2p", run_direct_inversion),
        ("PnPInversion ddim+p2p", run_uncorrected),
        ("SDE-Drag utils/drag.py copy_and_paste", run_copy_paste),
        ("SDE-Drag utils/drag.py drag()", run_drag),
        ("SDE-Drag cycle_sde.py main loop", run_cycle),
        ("Sampler.sample single call", run_step),
        ("SDEdit colab_utils.utils.SDEditing", run_sdedit),
    ):
        if case.method.startswith(start):
            return runner
    return None


def main(arguments: list[str]) -> int:
    """Run the cases and print the table; 1 where an error is above tolerance or nothing ran."""
    parser = argparse.ArgumentParser(prog="dev.py bench parity", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[GOLDEN / "public"])
    parser.add_argument("--only", default="*", help="shell patterns of case names, by commas")
    parser.add_argument("--model", type=Path, help="folder of the model, GOLDEN/model if not given")
    options = parser.parse_args(arguments)
    try:
        outcomes = [
            outcome
            for path in options.folders
            for outcome in _run_folder(path, options.model or GOLDEN / "model", options.only)
        ]
    except PalimpsestError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if not outcomes:
        print(f"No case that can be run matches --only {options.only}.", file=sys.stderr)
        return 1
    passed = sum(outcomes)
    print(f"{passed} of {len(outcomes)} cases within {TOLERANCE:.0e}")
    return 0 if passed == len(outcomes) else 1


def _run_folder(path: Path, model_path: Path, only: str) -> list[bool]:
    """Run the cases of one folder that match, and print a line for each."""
    folder = open_folder(path, model_path)
    print(f"{path}\n{'case':32} {'error':>9}  {'ours':>5} {'published':>9}  rows; worst tensor")
    outcomes = []
    for name in folder.names():
        if not any(fnmatch(name, pattern) for pattern in only.split(",")):
            continue
        try:
            passed = _run_case(folder, name)
        except PalimpsestError as refusal:
            print(f"{name}: {refusal}", file=sys.stderr)
            passed = False
        if passed is not None:
            outcomes.append(passed)
    return outcomes


def _run_case(folder: Folder, name: str) -> bool | None:
    """Run one case and print its line; None where we have no pipeline for it yet."""
    case = folder.case(name)
    runner = runner_of(case)
    if runner is None:
        missing = "LocalBlend" if case.settings.get("blend_words") else case.method
        print(f"{name:32} not built yet: {missing}")
        return None
    result = runner(folder, case)
    published = sum(part["samples"] for part in case.settings.get("nfe", {}).values())
    largest, worst = result.worst
    print(f"{name:32} {largest:9.1e}  {result.rows:5} {published:9}  {worst}", flush=True)
    return largest <= TOLERANCE
