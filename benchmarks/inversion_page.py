"""What the edits along every inversion came to, as a table and a page."""

import math
from collections.abc import Sequence
from datetime import date
from itertools import pairwise

from .inversion_methods import CFG, CROSS_WINDOW, METHODS, SELF_WINDOW, STEPS
from .inversion_outcome import CLAIM, Outcome, mean, share
from .inversion_success import equal_success
from .machine import describe_machine
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


def versus(outcomes: list[Outcome], better: str, worse: str, *, succeeded: bool = False) -> str:
    """How the background of one method fares beside another's, edit by edit.

    Args:
        outcomes: All there are.
        better: Key of the method that is said to be better.
        worse: Key of the other.
        succeeded: Only count edits in which both succeed.
    """
    a, b = ({o.task: o.score for o in outcomes if o.method == key} for key in (better, worse))
    common = [t for t in a.keys() & b.keys() if not succeeded or (a[t].success and b[t].success)]
    gaps = [a[task].background - b[task].background for task in common]
    told = f"{METHODS[better].name} over {METHODS[worse].name}"
    if len(gaps) < 2:
        return f"{told}: too few edits"
    middle = mean(gaps)
    error = math.sqrt(sum((gap - middle) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    ahead = sum(gap > 0 for gap in gaps)
    verdict = "holds" if middle > 2 * error else "reversed" if middle < -2 * error else "undecided"
    return (
        f"{told}: {verdict}, {middle:+.1f} dB (standard error {error:.1f}), better in {ahead} of "
        f"{len(gaps)} edits"
    )


def claims(outcomes: list[Outcome], *, succeeded: bool = False) -> str:
    """The paper's order of the backgrounds, pair by pair."""
    pairs = [*pairwise(CLAIM), (CLAIM[0], CLAIM[-1])]
    return "\n".join(f"- {versus(outcomes, *pair, succeeded=succeeded)}" for pair in pairs)


def order(outcomes: list[Outcome]) -> str:
    """The methods of that order, the best background first, on the edits that all were given."""
    common = set.intersection(*({o.task for o in outcomes if o.method == key} for key in CLAIM))
    if not common:
        return "not measured"
    found = {
        key: mean([o.score.background for o in outcomes if o.method == key and o.task in common])
        for key in CLAIM
    }
    ranked = sorted(found, key=lambda key: -found[key])
    return " > ".join(f"{METHODS[key].name} ({found[key]:.1f} dB)" for key in ranked)


def _order_section(every: Sequence[Outcome]) -> str:
    """What becomes of the paper's order, at one guidance and at equal success."""
    outcomes = [o for o in every if o.cfg is None]
    return f"""## The paper's order

Direct Inversion ([arXiv:2310.01506](https://arxiv.org/abs/2310.01506)) reports for the background
of edits with Prompt-to-Prompt {" > ".join(METHODS[key].name for key in CLAIM)}. Here it is
{order(outcomes)}. Edit by edit, where more than two standard errors decide:

{claims(outcomes)}

The same, of edits in which both succeed:

{claims(outcomes, succeeded=True)}

## At equal edit success

A lower guidance keeps more and changes less. So the methods are compared where they succeed equally
often, in a straight line from one guidance to the next:

{equal_success(every)}"""


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
to the picture as the VAE gives it back. *Rows* and *seconds* (of one core; others were at work
beside it, so compare them with one another only) are of inversion and edit; a backward pass is no
row. *Drawn edited*: the true result, through the VAE.

By kind of edit, success and background:

{by_kind(outcomes)}
{_order_section(every)}
![The first edits by every method](inversions.jpg)

`python dev.py bench inversions --write` makes this page. {date.today():%d %B %Y},
{describe_machine()}.
"""
