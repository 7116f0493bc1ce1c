"""What the edits along every inversion came to, as a table and a page."""

from collections.abc import Sequence
from datetime import date

from ..tables import describe_machine
from .guidance import by_guidance, orders
from .methods import CFG, CROSS_WINDOW, METHODS, SELF_WINDOW, STEPS
from .outcome import CLAIM, Outcome, mean, share
from .scene_edits import CHOICES, Score


def table(outcomes: list[Outcome], best: Sequence[Score] = ()) -> str:
    """The table as Markdown; a line for each method that was measured.

    Args:
        outcomes: All there are.
        best: What the true results score; a last line, if there are any.
    """
    lines = [
        "| inversion | edits | reconstruction | edit success | change made | rest kept | "
        "background | background, to the VAE's | rows | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, method in METHODS.items():
        own = [o for o in outcomes if o.method == key]
        if own:
            back = [o.reconstruction for o in own if o.reconstruction is not None]
            told = f"{mean(back):.1f} dB" if back else "exact"
            cost = f"{mean([o.rows for o in own]):.0f} | {mean([o.seconds for o in own]):.1f}"
            scores = _scores([o.score for o in own])
            lines.append(f"| {method.name} | {len(own)} | {told} | {scores} | {cost} |")
    if best:
        lines.append(f"| *drawn edited* | {len(best)} | | {_scores(best)} | | |")
    return "\n".join(lines) + "\n"


def _scores(scores: Sequence[Score]) -> str:
    shares = [share([getattr(s, name) for s in scores]) for name in ("success", "changed", "kept")]
    for name in ("background", "background_vae"):
        shares.append(f"{mean([getattr(s, name) for s in scores]):.1f} dB")
    return " | ".join(shares)


def by_kind(outcomes: list[Outcome]) -> str:
    """Success and background of every kind of edit, as Markdown."""
    lines = [
        f"| inversion | {' | '.join(CHOICES)} |",
        "|---" * (len(CHOICES) + 1) + "|",
    ]
    for key, method in METHODS.items():
        cells = []
        for kind in CHOICES:
            own = [o.score for o in outcomes if (o.method, o.kind) == (key, kind)]
            if own:
                background = mean([s.background for s in own])
                cells.append(f"{share([s.success for s in own])}, {background:.1f} dB")
        if len(cells) == len(CHOICES):
            lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _order_section(every: Sequence[Outcome]) -> str:
    """What becomes of the paper's order."""
    return f"""## The paper's order

Direct Inversion ([arXiv:2310.01506](https://arxiv.org/abs/2310.01506)) reports for the background
of edits with Prompt-to-Prompt {" > ".join(METHODS[key].name for key in CLAIM)}, at equal edit
success. Where a guidance is too high for a method its edits fail, and an edit that failed keeps its
background best. Success and background at several guidances; fewer edits are the first of the same
list:

{by_guidance(every)}
More than two standard errors decide.

{orders(every)}"""


def page(outcomes: list[Outcome], best: Sequence[Score]) -> str:
    """The results page."""
    every, outcomes = outcomes, [o for o in outcomes if o.cfg is None]
    count = len({o.task for o in outcomes})
    cross, own = CROSS_WINDOW[1], SELF_WINDOW[1]
    differs = "\n".join(f"- {m.name}: {m.differs}" for m in METHODS.values() if m.differs)
    return f"""# Inversions: what comes back, what changes, what stays

{count} scenes of the embedded model, edited under Prompt-to-Prompt: colour, shape, texture and
background in turn. {STEPS} steps of the published grid, guidance {CFG:g}, cross window {cross:g},
self window {own:g}, inversion at guidance 1 by convention D. The settings are the same for all,
except:

{differs}

DDIM, Negative-prompt and its proximal variant are as published: nothing corrects their source row.
That of Null-text and StyleDiffusion is the path that they were fitted along.

{table(outcomes, best)}
*Reconstruction*: PSNR of the decoded source row to the picture as the VAE gives it back; *exact*
where its latent is the picture's, number for number. *Edit success*: a judge that knows the scenes
finds all four attributes of the target's caption. *Change made*: the one that was asked for. *Rest
kept*: the other three, and the object within 8 pixels of its place. *Background*: PSNR to the
picture, more than 8 pixels away from all that changes between the two drawings; beside it the same
to the picture as the VAE gives it back. *Rows* and *seconds* are of inversion and edit; a
backward pass is no row. The seconds are of one core on several days, with others at work beside it:
a hint, where rows compare. *Drawn edited*: the true result, through the VAE.

By kind of edit, success and background:

{by_kind(outcomes)}
{_order_section(every)}
The first edits by every method, at the guidance of the first table:

![Edited pictures, a row for every method](inversions.jpg)

`python dev.py bench inversions --write --sheet` makes this page. {date.today():%d %B %Y},
{describe_machine()}.
"""
