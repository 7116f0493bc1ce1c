"""What stays of the background, among methods that succeed equally often.

A lower guidance keeps more and changes less: an edit that failed keeps its background best. So each
method is measured at several guidances, and compared with the others where its share of successful
edits, in a straight line from one guidance to the next, is theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .inversion_methods import METHODS
from .inversion_outcome import CLAIM, Outcome, mean


@dataclass(frozen=True)
class Point:
    """A method at one guidance.

    Attributes:
        cfg: The guidance.
        edits: How many were made.
        success: Share of them that succeeded, in 0..1.
        background: Mean PSNR in dB of what should not change.
    """

    cfg: float
    edits: int
    success: float
    background: float


def curve(outcomes: Sequence[Outcome], method: str) -> list[Point]:
    """A method at all its guidances, the lowest first."""
    by_cfg: dict[float, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.method == method:
            cfg = METHODS[method].cfg if outcome.cfg is None else outcome.cfg
            by_cfg.setdefault(cfg, []).append(outcome)
    return [_point(cfg, by_cfg[cfg]) for cfg in sorted(by_cfg)]


def _point(cfg: float, own: Sequence[Outcome]) -> Point:
    success = mean([o.score.success for o in own])
    return Point(cfg, len(own), success, mean([o.score.background for o in own]))


def background_at(points: Sequence[Point], success: float) -> float | None:
    """The background where a curve first reaches a share of successful edits.

    Args:
        points: The curve, the lowest guidance first.
        success: The share, in 0..1.

    Returns:
        dB; None where the curve does not pass that share.
    """
    for a, b in pairwise(points):
        if min(a.success, b.success) <= success <= max(a.success, b.success):
            if a.success == b.success:
                return max(a.background, b.background)
            part = (success - a.success) / (b.success - a.success)
            return a.background + part * (b.background - a.background)
    return None


def equal_success(outcomes: Sequence[Outcome]) -> str:
    """The paper's methods at every guidance, and compared at equal success, as Markdown."""
    curves = {key: curve(outcomes, key) for key in CLAIM}
    lines = [
        "| inversion | guidance | edits | edit success | background |",
        "|---|---|---|---|---|",
    ]
    for key, points in curves.items():
        lines += [
            f"| {METHODS[key].name} | {p.cfg:g} | {p.edits} | {p.success:.0%} | "
            f"{p.background:.1f} dB |"
            for p in points
        ]
    compared = [_compared(curves, key) for key in CLAIM if curves[key]]
    return "\n".join([*lines, "", *compared]) + "\n"


def _compared(curves: dict[str, list[Point]], key: str) -> str:
    """The others where they succeed as often as a method does at its own guidance."""
    own = next((p for p in curves[key] if p.cfg == METHODS[key].cfg), curves[key][-1])
    told = [f"{METHODS[key].name} {own.background:.1f} dB"]
    for other, points in curves.items():
        if other != key and points:
            found = background_at(points, own.success)
            shown = "does not come to that" if found is None else f"{found:.1f} dB"
            told.append(f"{METHODS[other].name} {shown}")
    return f"- At {own.success:.0%} success: {', '.join(told)}."
