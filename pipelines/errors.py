"""The one exception that is meant for the person who wired the graph."""


class PalimpsestError(ValueError):
    """Bad input, said in one sentence: which input, what it was, what it must be, what to do."""


#: Most characters of what a person gave that a message repeats.
QUOTED = 80


def quoted(value: object) -> str:
    """A value as a message quotes it: its repr, at most `QUOTED` characters of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4300 digits
        text = f"a {type(value).__name__} too large to be written"
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 3]}..."
