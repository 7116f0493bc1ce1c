"""The paper's order of the methods at every guidance.

A guidance that is too high for a method makes its edits fail, and an edit that failed keeps its
background best: so the methods are compared where they succeed about equally often.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from .methods import METHODS
from .outcome import CLAIM, Outcome, mean, share


def guidance(outcome: Outcome) -> float:
    """The guidance of an edit."""
    return METHODS[outcome.method].cfg if outcome.cfg is None else outcome.cfg


def by_guidance(outcomes: Sequence[Outcome]) -> str:
    """Edits, success and background of the paper's methods at every guidance, as Markdown."""
    ours = [o for o in outcomes if o.method in CLAIM]
    scales = sorted({guidance(o) for o in ours})
    lines = [
        "| inversion | " + " | ".join(f"guidance {scale:g}" for scale in scales) + " |",
        "|---" * (len(scales) + 1) + "|",
    ]
    for key in CLAIM:
        own = [o for o in ours if o.method == key]
        if own:
            cells = [_cell([o for o in own if guidance(o) == scale]) for scale in scales]
            lines.append(f"| {METHODS[key].name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(own: Sequence[Outcome]) -> str:
    if not own:
        return ""
    success = share([o.score.success for o in own])
    return f"{success} of {len(own)}, {mean([o.score.background for o in own]):.1f} dB"


def versus(outcomes: Sequence[Outcome], better: str, worse: str, *, succeeded: bool = False) -> str:
    """How the background of one method fares beside another's, edit by edit.

    Args:
        outcomes: All there are, at one guidance.
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


def claims(outcomes: Sequence[Outcome], *, succeeded: bool = False) -> str:
    """The paper's order of the backgrounds, pair by pair."""
    pairs = [*pairwise(CLAIM), (CLAIM[0], CLAIM[-1])]
    return "\n".join(f"- {versus(outcomes, *pair, succeeded=succeeded)}" for pair in pairs)


def order(outcomes: Sequence[Outcome]) -> str:
    """The methods of that order, the best background first, on the edits that all were given."""
    common = common_tasks(outcomes)
    if not common:
        return "not measured"
    found = {
        key: mean([o.score.background for o in outcomes if o.method == key and o.task in common])
        for key in CLAIM
    }
    ranked = sorted(found, key=lambda key: -found[key])
    return " > ".join(f"{METHODS[key].name} ({found[key]:.1f} dB)" for key in ranked)


def common_tasks(outcomes: Sequence[Outcome]) -> set[int]:
    """The edits that all methods of the paper's order were given."""
    return set.intersection(*({o.task for o in outcomes if o.method == key} for key in CLAIM))


def orders(outcomes: Sequence[Outcome]) -> str:
    """The paper's order at every guidance at which all its methods were measured, as Markdown."""
    parts = []
    for scale in sorted({guidance(o) for o in outcomes if o.method in CLAIM}):
        here = [o for o in outcomes if guidance(o) == scale]
        if common := common_tasks(here):
            parts.append(
                f"At guidance {scale:g} ({len(common)} edits that all were given): {order(here)}. "
                f"Edit by edit:\n\n{claims(here)}\n\nThe same, of edits in which both succeed:\n\n"
                f"{claims(here, succeeded=True)}\n"
            )
    return "\n".join(parts)
