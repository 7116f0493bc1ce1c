"""What a run on ComfyUI cost: UNet rows and wall time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...pipelines.trajectory import Recipe
from .coordinates import OURS, Space
from .guidance import BranchGuider
from .session import Session, run


@dataclass(frozen=True)
class Spent:
    """What a run cost.

    Attributes:
        rows: UNet rows.
        seconds: Wall time, loading included.
    """

    rows: int
    seconds: float


def timed(
    guider: BranchGuider,
    samples: Tensor,
    levels: Tensor,
    algorithm: Callable[[Session], Any],
    *,
    space: Space = OURS,
    total: int | None = None,
) -> tuple[Any, Spent]:
    """Call `run`, and say what it cost."""
    start = time.perf_counter()
    result, rows = run(guider, samples, levels, algorithm, space=space, total=total)
    return result, Spent(rows, time.perf_counter() - start)


def cost_text(spent: Spent, recipe: Recipe) -> str:
    """What an edit and the inversion before it cost, in words.

    Args:
        spent: Of the edit.
        recipe: Of its trajectory; what that does not know is left out.
    """
    rows, seconds = spent.rows + recipe.rows, spent.seconds + recipe.seconds
    told = f"{rows} rows, {seconds:.1f} s"
    if not recipe.rows:
        return told
    took = f", {recipe.seconds:.1f} s" if recipe.seconds else ""
    return f"{told} (inversion {recipe.rows} rows{took})"
