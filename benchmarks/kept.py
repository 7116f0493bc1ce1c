"""What a benchmark of the embedded model measured, kept line by line as it comes.

An interrupted run goes on where it stopped, and several may measure different things at once. A
line says by which weights it was measured: once the model has learned more, it is measured anew.
"""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

#: What a line calls its weights.
_BY = "weights"


@cache
def weights_of(folder: Path) -> str:
    """What tells the weights of a model folder from others, as text."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def kept_by(weights: Path, file: Path) -> list[dict[str, Any]]:
    """The lines of a file that were measured by the weights of a model folder."""
    if not file.exists():
        return []
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.pop(_BY) == weights_of(weights)]


def keep(weights: Path, file: Path, outcome: Any) -> None:
    """Add what a model folder's weights came to, a dataclass, to a file as a line."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(asdict(outcome) | {_BY: weights_of(weights)}) + "\n")


def told(outcomes: list[Any], file: Path) -> list[Any]:
    """What a page is going to be made of.

    Raises:
        SystemExit: In one sentence, if there is nothing: a page of before is not overwritten.
    """
    if not outcomes:
        raise SystemExit(
            f"{file.name} holds nothing that these weights measured: run it without --kept first."
        )
    return outcomes
