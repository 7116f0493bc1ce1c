"""Our pipelines beside the published code: largest relative error and rows, case by case.

python dev.py bench parity [DIR...] [--only PATTERN,PATTERN] [--model DIR]
"""

import argparse
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from ...pipelines.errors import PalimpsestError
from .edict import run_edict
from .edit import run_direct_inversion, run_inversion, run_offsets, run_uncorrected
from .edit_friendly import run_edit_friendly
from .flow import incomparable, reader_of, run_flow
from .golden import Case, Folder, Result, open_folder
from .masactrl import run_masactrl, run_uncorrected_masactrl
from .negative_prompt import run_negative_prompt
from .null_text import run_null_text
from .pix2pix_zero import run_drifting_pix2pix_zero, run_pix2pix_zero
from .plug_and_play import run_plug_and_play, run_reconstructed_plug_and_play
from .sde import run_copy_paste, run_cycle, run_drag, run_sdedit, run_step

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"


Runner = Callable[[Folder, Case], Result]


def runner_of(case: Case) -> Runner | None:
    """The pipeline that a case is about, or None where we have none yet."""
    if case.of_flow:
        return run_flow if reader_of(case) else None
    for start, runner in (
        ("PnPInversion DirectInversion.ddim_inversion", run_inversion),
        ("PnPInversion DirectInversion.invert", run_offsets),
        ("PnPInversion directinversion+p2p", run_direct_inversion),
        ("PnPInversion ddim+p2p", run_uncorrected),
        ("PnPInversion directinversion+masactrl", run_masactrl),
        ("PnPInversion ddim+masactrl", run_uncorrected_masactrl),
        ("PnPInversion di_pnp", run_plug_and_play),
        ("PnPInversion ddim_pnp", run_reconstructed_plug_and_play),
        ("PnPInversion di_pix2pixzero", run_pix2pix_zero),
        ("PnPInversion ddim_pix2pixzero", run_drifting_pix2pix_zero),
        ("PnPInversion negative-prompt-inversion", run_negative_prompt),
        ("PnPInversion null-text-inversion+p2p", run_null_text),
        ("EDICT", run_edict),
        ("inbarhub our_inv", run_edit_friendly),
        ("edit-friendly + p2p", run_edit_friendly),
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
    """Run the cases and print the table; 1 where an error is above tolerance, a case has no
    pipeline, or nothing ran.
    """
    parser = argparse.ArgumentParser(prog="dev.py bench parity", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[GOLDEN / "public"])
    parser.add_argument("--only", default="*", help="shell patterns of case names, by commas")
    parser.add_argument("--model", type=Path, help="folder of the model, GOLDEN/model if not given")
    options = parser.parse_args(arguments)
    try:
        outcomes = [
            outcome
            for path in options.folders
            for outcome in _run_folder(path, options.model or _model_beside(path), options.only)
        ]
    except PalimpsestError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if not outcomes:
        print(f"No case that can be run matches --only {options.only}.", file=sys.stderr)
        return 1
    passed = sum(outcomes)
    print(f"{passed} of {len(outcomes)} cases within tolerance")
    return 0 if passed == len(outcomes) else 1


def _model_beside(path: Path) -> Path:
    """The model that stands beside a folder of cases, or the one of the UNet's."""
    beside = path.resolve().parent / "model"
    return beside if beside.is_dir() else GOLDEN / "model"


def _run_folder(path: Path, model_path: Path, only: str) -> list[bool]:
    """Run the cases of one folder that match, and print a line for each."""
    folder = open_folder(path, model_path)
    print(f"{path}\n{'case':32} {'error':>9}  {'ours':>5} {'published':>9}  rows; worst tensor")
    outcomes = []
    for name in folder.names():
        if not any(fnmatch(name, pattern) for pattern in only.split(",")):
            continue
        try:
            if why := incomparable(folder.case(name)):
                print(f"{name:32} left out: {why}")
                continue
            passed = _run_case(folder, name)
        except PalimpsestError as refusal:
            print(f"{name}: {refusal}", file=sys.stderr)
            passed = False
        outcomes.append(passed)
    return outcomes


def _run_case(folder: Folder, name: str) -> bool:
    """Run one case and print its line; a case that no pipeline is about does not pass."""
    case = folder.case(name)
    runner = runner_of(case)
    if runner is None:
        print(f"{name:32} not built yet: {case.method}")
        return False
    result = runner(folder, case)
    settings = case.settings
    published = settings.get("rows") or sum(p["samples"] for p in settings.get("nfe", {}).values())
    largest, worst = result.worst
    print(f"{name:32} {largest:9.1e}  {result.rows:5} {published:9}  {worst}", flush=True)
    return result.passed
