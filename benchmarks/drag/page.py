"""What the drags say: the table, the sheet of pictures, the page."""

from datetime import date

import torch
from torch import Tensor

from ...demo.scenes import render
from ...hosts.diffusers.folder import DiffusersModel
from ...pipelines.denoiser import RowCount
from ..tables import describe_machine
from .drags import CFG, PROCESSES, RADIUS, SIZE, T0, Outcome, Task, dragged

#: n of the drags that are shown.
SHOWN_STEPS = 50


def table(outcomes: list[Outcome], steps: list[int]) -> str:
    """The table as Markdown; a line for what was measured, with the number of drags."""
    lines = [
        "| n | | drags | success | arrived | nothing left | colour and shape kept | background "
        "PSNR | rows a drag | rows a drag step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for n in sorted(steps, reverse=True):
        for name, eta in PROCESSES.items():
            own = [o for o in outcomes if (o.steps, o.eta) == (n, eta)]
            if not own:
                continue
            shares = [_share([o.arrived and o.gone for o in own])]
            shares += [_share([getattr(o, k) for o in own]) for k in ("arrived", "gone", "same")]
            psnr = sum(o.background for o in own) / len(own)
            rows = sum(o.rows for o in own) / len(own)
            lines.append(
                f"| {n} | {name.upper()} | {len(own)} | {' | '.join(shares)} | {psnr:.1f} dB | "
                f"{rows:.0f} | {min(o.rows for o in own)} |"
            )
    return "\n".join(lines) + "\n"


def paired(outcomes: list[Outcome], steps: list[int]) -> str:
    """The SDE on the drags that were run at every n, since a drag is not like another."""
    done = {n: {o.task: o for o in outcomes if o.steps == n and o.eta == 1.0} for n in steps}
    common = set.intersection(*(set(own) for own in done.values()))
    won = {n: sum(done[n][t].arrived and done[n][t].gone for t in common) for n in steps}
    told = ", ".join(f"{won[n]} at n = {n}" for n in sorted(steps, reverse=True))
    return f"Of the {len(common)} drags that the SDE was run on at every n, it succeeded in {told}."


def _share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.0%}"


def sheet(model: DiffusersModel, every: list[Task]) -> Tensor:
    """[N, 3, 128, 128]: each drag's picture, SDE, ODE and truth, side by side."""
    pictures = []
    for task in every:
        results = [dragged(model, task, SHOWN_STEPS, eta, RowCount()) for eta in (1.0, 0.0)]
        pictures += [render(task.scene)[0], *results, render(task.moved)[0]]
    return torch.stack(pictures).movedim(-1, 1)


def page(outcomes: list[Outcome], steps: list[int]) -> str:
    """The results page."""
    count = len({o.task for o in outcomes})
    return f"""# SDE-Drag: how few steps are enough

{count} scenes of the embedded model, their object (radius {SIZE:g} pixels) dragged by 2 to 4 latent
cells of 8 pixels; t0 {T0}, guidance ramp 1 to {CFG:g}, stride 2, alpha 1.1, beta 0.3, mask on what
really changes and one cell around. The copied square has radius {RADIUS}. *Success*: the object is
found within one cell of its target (*arrived*), and less than a tenth of what lay further than a
cell from there is still painted in its colour (*nothing left*). *Background*: outside both objects,
to the scene drawn moved. n counts the steps of the whole way from pure noise; {T0:.0%} of them are
walked.

{table(outcomes, steps)}
{paired(outcomes, steps)}

![The first drags: picture, SDE, ODE, and the scene drawn moved](drag.jpg)

The first drags at n = {SHOWN_STEPS}, a row each: picture, SDE, ODE, the scene drawn moved.

`python dev.py bench drag --write` makes this page. {date.today():%d %B %Y}, {describe_machine()}.
"""
