"""How few steps SDE-Drag needs: scenes whose object is dragged, beside the scene drawn moved.

    python dev.py bench drag [--count 60] [--steps 200,100,50,20] [--process sde,ode]
                             [--kept] [--write]

The object has the smallest size that the embedded model was trained on, 27 pixels in radius, and
the copied square radius 3: 48 pixels, a little less than the object. Every drag is by whole latent
cells, under a mask of what really changes (a cell wider), by the SDE and by the ODE. A drag
succeeds if the object is found within one cell of its target, and less than a tenth of what lay
further than a cell from there is still painted in its colour. What was measured is kept in
benchmarks/results/drag.jsonl, so that an interrupted run goes on. With --write the table goes to
benchmarks/results/drag.md, and a sheet of some drags to drag.jpg.
"""

import argparse
from collections.abc import Iterator

from ...demo.model_files import WEIGHTS
from ...demo.train import save_grid
from ...hosts.diffusers.folder import DiffusersModel, load_folder
from ..kept import keep, kept_by, told
from ..tables import RESULTS
from .drags import PROCESSES, Outcome, Task, run, tasks
from .page import page, paired, sheet, table

KEPT = RESULTS / "drag.jsonl"

#: How many drags the sheet shows.
SHOWN = 6


def kept() -> dict[tuple[int, float, int], Outcome]:
    """What earlier runs measured."""
    outcomes = (Outcome(**stored) for stored in kept_by(WEIGHTS, KEPT))
    return {(o.steps, o.eta, o.task): o for o in outcomes}


def measure(
    model: DiffusersModel, every: list[Task], steps: list[int], etas: list[float]
) -> Iterator[Outcome]:
    """All outcomes, those already kept without running them again."""
    done = kept()
    for n in sorted(steps):
        for eta in etas:
            for number, task in enumerate(every):
                outcome = done.get((n, eta, number))
                if outcome is None:
                    outcome = run(model, number, task, n, eta)
                    keep(WEIGHTS, KEPT, outcome)
                yield outcome


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="dev.py bench drag", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="how many drags")
    parser.add_argument("--steps", default="200,100,50,20", help="n, by commas")
    parser.add_argument("--process", default="sde,ode", help="sde, ode or both, by a comma")
    parser.add_argument("--kept", action="store_true", help="measure nothing that is not kept")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/drag.md")
    options = parser.parse_args(arguments)
    steps = [int(n) for n in options.steps.split(",")]
    model, every = load_folder(WEIGHTS), tasks(options.count)
    etas = [PROCESSES[name] for name in options.process.split(",")]
    if not options.kept:
        for outcome in measure(model, every, steps, etas):
            print(outcome, flush=True)
    measured = [o for o in kept().values() if o.steps in steps and o.task < options.count]
    outcomes = told(measured, KEPT)
    print(table(outcomes, steps), paired(outcomes, steps))
    if options.write:
        RESULTS.joinpath("drag.md").write_text(page(outcomes, steps), encoding="utf-8")
        shown = sheet(model, every[:SHOWN])
        save_grid(shown, RESULTS / "drag.jpg", columns=4)
    return 0
