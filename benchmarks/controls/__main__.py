"""Every attention control under the edits that it is made for: what changes, and what stays.

    python dev.py bench controls [--count 50] [--methods NAME,...] [--kinds KIND,...]
                                 [--weights DIR] [--kept] [--write] [--sheet]

Scenes of the embedded model with two objects, or with a place (`scene_edits`), edited under Direct
Inversion by every control (`methods`), beside edits by the prompt alone.

What was measured is kept in benchmarks/results/controls.jsonl, so that an interrupted run goes on,
and so that several may measure different methods at once. With --write the tables go to
benchmarks/results/controls.md; with --sheet some edits are made once more and drawn to
controls.jpg.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...demo.model_files import WEIGHTS
from ...hosts.diffusers.folder import DiffusersModel, load_folder
from ...hosts.drawing.sheet import Sheet, as_picture, draw_sheet
from ..kept import keep, kept_by, told
from ..tables import RESULTS
from .methods import METHODS, edit
from .page import Outcome, of_kind, page, table
from .scene_edits import KINDS, Kind, Score, Task, score, tasks

KEPT = RESULTS / "controls.jsonl"

#: Edits of each kind on the sheet, and drawn edits that are judged for comparison.
SHOWN, DRAWN = 2, 12


def kept(weights: Path = WEIGHTS) -> dict[tuple[str, str, int], Outcome]:
    """What earlier runs measured."""
    every = map(Outcome.read, kept_by(weights, KEPT))
    return {(o.method, o.kind, o.task): o for o in every}


def measure(
    model: DiffusersModel, weights: Path, count: int, methods: list[str], kinds: list[Kind]
) -> Iterator[Outcome]:
    """All outcomes that are not kept yet."""
    done = kept(weights)
    for kind in kinds:
        for number, task in enumerate(tasks(count, kind)):
            for name in methods:
                if kind not in METHODS[name].kinds or (name, kind, number) in done:
                    continue
                edited = edit(model, task, METHODS[name])
                found = score(task, edited.image)
                seconds = round(edited.seconds, 2)
                outcome = Outcome(name, kind, number, found, edited.rows, seconds)
                keep(weights, KEPT, outcome)
                yield outcome


def ceiling(model: DiffusersModel, count: int, kind: Kind) -> list[Score]:
    """What the true results score, as the VAE gives them back."""
    return [score(task, model.decode(model.encode(task.truth))) for task in tasks(count, kind)]


def draw(model: DiffusersModel, every: list[Task]) -> Tensor:
    """[1, H, W, 3] a sheet of edits, a column each, by every method that is made for them."""
    pictures = [task.picture[0] for task in every] + [task.truth[0] for task in every]
    blank = torch.ones_like(pictures[0])
    for method in METHODS.values():
        pictures += [
            edit(model, task, method).image[0] if task.kind in method.kinds else blank
            for task in every
        ]
    columns = [f"{task.kind}\n{task.told}" for task in every]
    rows = ["picture", "drawn edited", *(method.name for method in METHODS.values())]
    return draw_sheet(Sheet(torch.stack(pictures), columns, rows, "Controls compared", least=128))


def main(arguments: list[str]) -> int:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="dev.py bench controls", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="how many edits of each kind")
    parser.add_argument("--methods", default=",".join(METHODS), help="which, by commas")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, by commas")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the embedded model")
    parser.add_argument("--kept", action="store_true", help="measure nothing that is not kept")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--sheet", action="store_true", help="draw the sheet")
    options = parser.parse_args(arguments)
    names, kinds = options.methods.split(","), options.kinds.split(",")
    for given, known in ((names, METHODS), (kinds, KINDS)):
        if unknown := set(given) - set(known):
            parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    model = load_folder(options.weights)
    if not options.kept:
        for outcome in measure(model, options.weights, options.count, names, kinds):
            print(outcome, flush=True)
    measured = [o for o in kept(options.weights).values() if o.task < options.count]
    outcomes = told(measured, KEPT)
    print(table(outcomes), *(of_kind(outcomes, kind) for kind in kinds), sep="\n")
    if options.write:
        best = {kind: ceiling(model, min(options.count, DRAWN), kind) for kind in KINDS}
        RESULTS.joinpath("controls.md").write_text(page(outcomes, best), encoding="utf-8")
    if options.sheet:
        every = [task for kind in KINDS for task in tasks(SHOWN, kind)]
        as_picture(draw(model, every)[0]).save(RESULTS / "controls.jpg", quality=88)
    return 0
