"""What a run on ComfyUI cost: UNet rows and wall time."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipelines.trajectory import Recipe


@dataclass(frozen=True)
class Spent:
    """What a run cost.

    Attributes:
        rows: UNet rows.
        seconds: Wall time, loading included.
    """

    rows: int
    seconds: float


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
