"""The pack's own wire types, and what its nodes show after a run."""

from comfy_api.latest import io

from ..hosts.comfy.cost import Spent

Trajectory = io.Custom("PALIMPSEST_TRAJECTORY")
Control = io.Custom("PALIMPSEST_CONTROL")
Points = io.Custom("PALIMPSEST_POINTS")
Comparison = io.Custom("PALIMPSEST_COMPARISON")


def report(spent: Spent, text: str) -> dict[str, list]:
    """What a node shows: a line of text, and the numbers for whoever reads the history."""
    return {"rows": [spent.rows], "seconds": [round(spent.seconds, 2)], "palimpsest_text": [text]}
