"""What a user says of single words of a prompt: `word: value`, line by line or with commas.

`word = value`, `(word:value)` and the wide `word：value` are read as well.
"""

import re
from collections.abc import Iterator

from ..errors import PalimpsestError, quoted

#: What the weight of a word may be, at least and at most; the published examples go to 10.
WEIGHTS = (-100.0, 100.0)

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"

#: A number, or two with a dash between them.
_VALUE = rf"{_NUMBER}(?:\s*(?:-|–|\.\.)\s*{_NUMBER})?"

#: One word with its value and what parts it from the next. A word may hold colons and commas: the
#: last value counts.
_ENTRY = re.compile(
    rf"(?:\(\s*(?P<bracketed>.+?)\s*[:=：]\s*(?P<inner>{_VALUE})\s*\)"
    rf"|(?P<word>.+?)\s*[:=：]\s*(?P<value>{_VALUE}))\s*(?:[,;，]\s*|$)"
)

_RANGE = re.compile(rf"({_NUMBER})\s*(?:-|–|\.\.)\s*({_NUMBER})")


def parse_weights(text: str) -> dict[str, float]:
    """Word weights from lines `word: factor`.

    Raises:
        PalimpsestError: If a line says anything else, or a factor lies outside `WEIGHTS`.
    """
    weights = {}
    for line, word, value in _entries(text):
        if word is None or _RANGE.fullmatch(value):
            raise _no_weight(f"the line {quoted(line)}, a line must be `word: factor`, a number")
        factor = float(value)
        if not WEIGHTS[0] <= factor <= WEIGHTS[1]:
            raise _no_weight(f"{factor:g} for {quoted(word)}, a factor must be a number")
        weights[word] = factor
    return weights


def parse_windows(text: str) -> dict[str, tuple[float, float]]:
    """Cross windows of words from lines `word: end` or `word: start-end`, parts of the steps.

    Raises:
        PalimpsestError: If a line says anything else, or a window is no rising part of 0..1.
    """
    windows = {}
    for line, word, value in _entries(text):
        if word is None:
            raise _no_window(f"the line {quoted(line)}")
        both = _RANGE.fullmatch(value)
        start, end = map(float, both.groups()) if both else (0.0, float(value))
        if not 0 <= start <= end <= 1:
            raise _no_window(f"{start:g}-{end:g} for {quoted(word)}")
        windows[word] = (start, end)
    return windows


def named(text: str) -> list[str]:
    """Words that stand with commas, semicolons or line breaks between them."""
    return [word.strip() for word in re.split(r"[,;，\n]", text) if word.strip()]


def _entries(text: str) -> Iterator[tuple[str, str | None, str]]:
    """(line, word, value) of every word; word is None where a line cannot be read."""
    for line in (" ".join(line.split()) for line in text.splitlines()):
        at = 0
        while at < len(line):
            entry = _ENTRY.match(line, at)
            if entry is None:
                yield line, None, ""
                return
            at = entry.end()
            yield line, entry["bracketed"] or entry["word"], entry["inner"] or entry["value"]


def _no_weight(found: str) -> PalimpsestError:
    low, high = WEIGHTS
    return PalimpsestError(
        f"The word weights have {found} from {low:g} to {high:g}, for example "
        "`blue: 2`; several stand in one line with commas between them."
    )


def _no_window(found: str) -> PalimpsestError:
    return PalimpsestError(
        f"The word windows have {found}, a line must be `word: end` or `word: start-end` with "
        "rising parts of the steps from 0 to 1, for example `blue: 0.2-0.8`."
    )
