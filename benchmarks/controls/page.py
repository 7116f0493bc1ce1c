"""What the edits under every control came to, as tables and a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from ..inversions.outcome import mean, share
from ..tables import describe_machine
from .methods import CFG, FIRST_LAYER, GUIDED, METHODS, STEPS, THRESHOLD, XA_GUIDANCE, ZERO_CFG
from .scene_edits import KINDS, Score

HEADINGS = (
    "edits | success | change made | other thing untouched | kept part | SSIM to the drawn edit"
)


@dataclass(frozen=True)
class Outcome:
    """One edit of one task under one method.

    Attributes:
        method: Key of `METHODS`.
        kind: Of the edit.
        task: Its number.
        score: What came of it.
        rows, seconds: What inversion and edit cost.
    """

    method: str
    kind: str
    task: int
    score: Score
    rows: int
    seconds: float

    @classmethod
    def read(cls, kept: dict[str, Any]) -> "Outcome":
        """From a line of the store."""
        return cls(**kept | {"score": Score(**kept["score"])})


def table(outcomes: Sequence[Outcome]) -> str:
    """Every control over all edits that it is made for, as Markdown; the prompt alone over all."""
    lines = [f"| control | kinds | {HEADINGS} | rows | seconds |", "|---" * 10 + "|"]
    for key, method in METHODS.items():
        own = [o for o in outcomes if o.method == key]
        if own:
            kinds = "all" if method.kinds == KINDS else ", ".join(method.kinds)
            cost = f"{mean([o.rows for o in own]):.0f} | {mean([o.seconds for o in own]):.1f}"
            lines.append(f"| {method.name} | {kinds} | {_scores(own)} | {cost} |")
    return "\n".join(lines) + "\n"


def of_kind(outcomes: Sequence[Outcome], kind: str, best: Sequence[Score] = ()) -> str:
    """All that were measured on a kind of edit, side by side, as Markdown.

    Args:
        outcomes: All there are.
        kind: Which edits.
        best: What the true results score; a last line, if there are any.
    """
    lines = [f"| {kind} | {HEADINGS} |", "|---" * 7 + "|"]
    for key, method in METHODS.items():
        own = [o for o in outcomes if (o.method, o.kind) == (key, kind)]
        if own:
            lines.append(f"| {method.name} | {_scores(own)} |")
    if best:
        lines.append(f"| *drawn edited* | {_cells(best)} |")
    return "\n".join(lines) + "\n"


def _scores(outcomes: Sequence[Outcome]) -> str:
    return _cells([o.score for o in outcomes])


def _cells(scores: Sequence[Score]) -> str:
    others = [s.other for s in scores if s.other is not None]
    backgrounds = [s.background for s in scores if s.background is not None]
    return " | ".join(
        [
            str(len(scores)),
            share([s.success for s in scores]),
            share([s.changed for s in scores]),
            share(others) if others else "",
            f"{mean(backgrounds):.1f} dB" if backgrounds else "",
            f"{mean([s.likeness for s in scores]):.3f}",
        ]
    )


def page(outcomes: Sequence[Outcome], best: dict[str, Sequence[Score]]) -> str:
    """The results page."""
    kinds = "\n".join(of_kind(outcomes, kind, best.get(kind, ())) for kind in KINDS)
    return f"""# Attention controls: what changes, what stays

Scenes of the embedded model with two objects, one of which becomes another colour, shape or texture
(the first and the second in turn); the same with another background; and one object that moves
across the picture. Every control on the kinds of edit that it is made for, {STEPS} steps, inversion
at guidance 1, Direct Inversion, guidance {CFG:g}; pix2pix-zero at {ZERO_CFG:g} and {XA_GUIDANCE:g}
on the latent. By the prompt alone plain DDIM and Direct Inversion make the same picture, number for
number: without a control nothing of the target reads the source, which is all that they differ in.
LocalBlend's words are the edited thing's, at threshold {THRESHOLD:g}; so are those of MasaCtrl by
words, at {GUIDED:g}; MasaCtrl begins at {FIRST_LAYER:g} of the layers.

{table(outcomes)}
*Success*: a judge that knows the scenes finds all that the target's caption says. *Change made*:
that which was asked for. *Other thing untouched*: the object that was not meant has its colour,
shape and texture, within 8 pixels of its place. *Kept part*: PSNR to the picture, more than 8
pixels away from all that changes between the two drawings. *SSIM*: of the whole picture, to the
drawn edit; *drawn edited* is that through the VAE. *Rows* and *seconds* are of inversion and edit,
on one core; a backward pass is no row.

Kind by kind:

{kinds}
Some of the edits; a control that is not made for a kind has no picture there:

![Edited pictures, a row for every control](controls.jpg)

`python dev.py bench controls --write --sheet` makes this page. {date.today():%d %B %Y},
{describe_machine()}.
"""
