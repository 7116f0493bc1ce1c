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

from ..demo.model_files import WEIGHTS

#: What a line calls its weights.
_BY = "weights"


@cache
def weights_of(folder: Path) -> str:
    """What tells the weights of a model folder from others, as text."""
    files = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def kept_by_todays_weights(file: Path) -> list[dict[str, Any]]:
    """The lines of a file that were measured by the weights of today."""
    if not file.exists():
        return []
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.pop(_BY) == weights_of(WEIGHTS)]


def keep(file: Path, outcome: Any) -> None:
    """Add a dataclass to a file, as a line."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(asdict(outcome) | {_BY: weights_of(WEIGHTS)}) + "\n")
