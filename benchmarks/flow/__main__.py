"""Edits without inversion beside those with one, on the embedded flow model and the embedded UNet.

    python dev.py bench flow [--count 60] [--methods NAME,...] [--kept] [--write] [--sheet]

The edits are those of `bench inversions`: scenes whose true result is known. What was measured is
kept in benchmarks/results/flow.jsonl, so that an interrupted run goes on. With --write the table
goes to benchmarks/results/flow.md; with --sheet some edits are made once more, for flow.jpg.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch import Tensor

from ...demo.flow_files import WEIGHTS_FLOW
from ...demo.judge import judge
from ...demo.model_files import WEIGHTS
from ...hosts.drawing.sheet import Sheet, as_picture, draw_sheet
from ..inversions.outcome import mean, share
from ..inversions.scene_edits import CHOICES, Score, Task, score, tasks
from ..kept import keep, kept_by, told
from ..tables import RESULTS, describe_machine
from .methods import METHODS, Method, Models, edit

KEPT = RESULTS / "flow.jsonl"

#: Edits on the sheet.
SHOWN = 8


@dataclass(frozen=True)
class Outcome:
    """One edit by one method.

    Attributes:
        method: Key of `METHODS`.
        task: Its number.
        kind: What it changes.
        score: What came of it.
        moved: Pixels between the thing and its place.
        rows, seconds: What it cost.
    """

    method: str
    task: int
    kind: str
    score: Score
    moved: float
    rows: int
    seconds: float

    @classmethod
    def read(cls, kept: dict[str, Any]) -> "Outcome":
        """From a line of the store."""
        return cls(**kept | {"score": Score(**kept["score"])})


def kept() -> dict[tuple[str, int], Outcome]:
    """What earlier runs measured, each by the weights of its model."""
    every = [
        Outcome.read(line)
        for weights, model in ((WEIGHTS, "UNet"), (WEIGHTS_FLOW, "flow"))
        for line in kept_by(weights, KEPT)
        if line["method"] in METHODS and METHODS[line["method"]].model == model
    ]
    return {(outcome.method, outcome.task): outcome for outcome in every}


def measure(models: Models, count: int, names: Sequence[str]) -> Iterator[Outcome]:
    """All outcomes that are not kept yet."""
    done = kept()
    for number, task in enumerate(tasks(count)):
        for name in names:
            if (name, number) in done:
                continue
            method = METHODS[name]
            edited = edit(models, task, method, number)
            again = models.unet.decode(models.unet.encode(task.picture))
            found, seconds = score(task, edited.image, again), round(edited.seconds, 2)
            outcome = Outcome(
                name, number, task.kind, found, _moved(task, edited.image), edited.rows, seconds
            )
            keep(WEIGHTS if method.model == "UNet" else WEIGHTS_FLOW, KEPT, outcome)
            yield outcome


def _moved(task: Task, image: Tensor) -> float:
    """Pixels between the place where a thing is found and its own."""
    found = judge(image[0])
    return round(max(abs(found.x - task.wanted.x), abs(found.y - task.wanted.y)), 1)


def table(outcomes: Sequence[Outcome]) -> str:
    """Every method over all edits, as Markdown."""
    kinds = " | ".join(CHOICES)
    lines = [
        f"| model | method | guidance | edits | success | {kinds} | in its place | moved | "
        "background | rows | seconds |",
        "|---" * (10 + len(CHOICES)) + "|",
    ]
    for key, method in METHODS.items():
        own = [o for o in outcomes if o.method == key]
        if own:
            lines.append(_line(method, own))
    return "\n".join(lines) + "\n"


def _line(method: Method, own: Sequence[Outcome]) -> str:
    scale, cfg = method.guidance
    each = [share([o.score.success for o in own if o.kind == kind] or [False]) for kind in CHOICES]
    cells = [
        method.model,
        method.name,
        f"{scale:g} / {cfg:g}",
        str(len(own)),
        share([o.score.success for o in own]),
        *each,
        share([o.score.kept for o in own]),
        f"{mean([o.moved for o in own]):.1f} px",
        f"{mean([o.score.background for o in own]):.1f} dB",
        f"{mean([o.rows for o in own]):.0f}",
        f"{mean([o.seconds for o in own]):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def page(outcomes: Sequence[Outcome]) -> str:
    """The results page."""
    return f"""# Edits with and without inversion, on a flow model and on a UNet

Scenes of the embedded models in which one thing changes (`bench inversions`), edited by the prompt,
or under a control where that is said, at its own defaults (Prompt-to-Prompt's self window of 0.6
holds shapes, also those that shall change).

{table(outcomes)}
*Guidance* of source and target; FlowAlign's is against the source prompt. *Success*: a judge that
knows the scenes finds all that the target's caption says; also kind by kind. *In its place*:
nothing else of the caption has changed, and the thing lies within 8 pixels of where it was.
*Moved*: by how much, on average. *Background*: PSNR to the picture where nothing may change, 8
pixels away from what does. *Rows* and *seconds* are of inversion and edit, on one core.

![Edited pictures, a row for every method](flow.jpg)

`python dev.py bench flow --write --sheet` makes this page. {date.today():%d %B %Y},
{describe_machine()}.
"""


def draw(models: Models, every: list[Task]) -> Tensor:
    """[1, H, W, 3] a sheet of edits, a column each."""
    pictures = [task.picture[0] for task in every] + [task.truth[0] for task in every]
    for method in METHODS.values():
        pictures += [edit(models, task, method, n).image[0] for n, task in enumerate(every)]
    columns = [f"{task.kind}\n{task.told}" for task in every]
    rows = ["picture", "drawn edited", *(f"{m.name}\n({m.model})" for m in METHODS.values())]
    return draw_sheet(Sheet(torch.stack(pictures), columns, rows, "Edits compared", least=128))


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="dev.py bench flow", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="how many edits")
    parser.add_argument("--methods", default=",".join(METHODS), help="which, by commas")
    parser.add_argument("--kept", action="store_true", help="measure nothing that is not kept")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--sheet", action="store_true", help="draw the sheet")
    options = parser.parse_args(arguments)
    names = options.methods.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    torch.set_num_threads(1)
    models = Models.load()
    if not options.kept:
        for outcome in measure(models, options.count, names):
            print(outcome, flush=True)
    outcomes = told([o for o in kept().values() if o.task < options.count], KEPT)
    print(table(outcomes))
    if options.write:
        RESULTS.joinpath("flow.md").write_text(page(outcomes), encoding="utf-8")
    if options.sheet:
        as_picture(draw(models, tasks(SHOWN))[0]).save(RESULTS / "flow.jpg", quality=88)
    return 0
