"""The one exception that is meant for the person who wired the graph."""


class PalimpsestError(ValueError):
    """Bad input, said in one sentence: which input, what it was, what it must be, what to do."""
