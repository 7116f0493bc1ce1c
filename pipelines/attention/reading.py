"""What of a source prompt each word of a target prompt reads, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .prompt_to_prompt import PromptToPrompt
from .tokens import PromptTokens

#: What becomes of a word: it stays, it takes the place of others, or nothing was there.
State = Literal["kept", "changed", "new"]


@dataclass(frozen=True)
class ReadWord:
    """One word of a target prompt.

    Attributes:
        text: As the user wrote it.
        reads: Numbers of the source's words that it takes its attention from.
        state: "kept" where it is the same word, "changed" where it is another, "new" where it reads
            none.
        weight: Its factor.
        window: Start and end of its cross window, as fractions of the steps.
    """

    text: str
    reads: tuple[int, ...]
    state: State
    weight: float
    window: tuple[float, float]


def read_words(
    control: PromptToPrompt, source: PromptTokens, target: PromptTokens
) -> tuple[ReadWord, ...]:
    """Every word of the target, in order; of a word of several tokens all that any of them reads.

    Args:
        control: Made for these prompts.
        source: Describes the picture as it is.
        target: Describes it after the edit.
    """
    reads = control.alignment.mapping * control.alignment.aligned
    found = []
    for word in target.words:
        own = list(word.positions)
        read = tuple(
            number
            for number, other in enumerate(source.words)
            if bool(reads[list(other.positions)][:, own].any())
        )
        same = [source.words[number].text.lower() for number in read] == [word.text.lower()]
        state: State = "new" if not read else "kept" if same else "changed"
        start, end = control.cross_windows[own[0]].tolist()
        found.append(ReadWord(word.text, read, state, float(control.weights[own[0]]), (start, end)))
    return tuple(found)
