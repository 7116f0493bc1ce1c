"""What one edit along an inversion came to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .scene_edits import Score

#: What the paper reports of the background of edits, the best first (arXiv:2310.01506).
CLAIM = ("direct", "null_text", "negative_prompt", "ddim")


@dataclass(frozen=True)
class Outcome:
    """What one edit by one method came to.

    Attributes:
        method: Key of `METHODS`.
        task: Number of the task.
        kind: What it changes.
        score: What the edited picture shows.
        reconstruction: PSNR in dB of the decoded source row to the VAE's round trip; None where its
            latent is the picture's, number for number.
        rows: UNet rows of inversion and edit; a backward pass is none.
        seconds: Of one core, for both.
        cfg: Guidance of the edit, where it was not the method's own.
    """

    method: str
    task: int
    kind: str
    score: Score
    reconstruction: float | None
    rows: int
    seconds: float
    cfg: float | None = None

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Outcome":
        """Of a kept line."""
        return cls(**{**stored, "score": Score(**stored["score"])})


def mean(numbers: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(numbers) / len(numbers)


def share(flags: Sequence[bool]) -> str:
    """How many of them are true, in percent."""
    return f"{mean(flags):.0%}"
