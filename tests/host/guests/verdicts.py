"""What the lists in the help page of Edit may say of a node, and what the tests here say of it."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["works", "works, but", "refused"]


@dataclass(frozen=True)
class Row:
    """A line of those lists, next to the tests that hold it.

    Attributes:
        node: As the page names it.
        verdict: With a control.
        said: Part of the sentence that is raised, where one is.
    """

    node: str
    verdict: Verdict
    said: str = ""
