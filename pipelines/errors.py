"""The one exception that is meant for the person who wired the graph, and what it may quote."""

import reprlib
from typing import Any

#: Characters at most of what somebody gave that a message repeats.
QUOTED = 80


class PalimpsestError(ValueError):
    """Bad input, said in one sentence: which input, what it was, what it must be, what to do."""

    #: ComfyUI puts a class's module before its name, above the sentence: where ours lies on a disk
    #: says nothing to whoever reads it.
    __module__ = "builtins"


def quoted(value: Any) -> str:
    """What somebody gave, as a message repeats it: in one line of at most `QUOTED` characters."""
    if isinstance(value, str):
        text, whole = repr(value[:QUOTED]), len(value) <= QUOTED
    else:
        text, whole = _Short().repr(value), True
    return text if whole and len(text) <= QUOTED else f"{text[: QUOTED - 3]}..."


class _Short(reprlib.Repr):
    """Python's own short form, which fails on numbers of more than 4300 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxstring = self.maxother = QUOTED

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 1233 // 4096 + 1  # log10 of 2
        return repr(x) if digits <= 40 else f"an integer of {digits} digits"
