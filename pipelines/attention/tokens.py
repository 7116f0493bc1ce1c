"""Which token of the source prompt each token of the target prompt comes from.

A Prompt-to-Prompt edit reads the source's cross-attention through a matrix `mapping` [S, N]:
column n says which of the S source tokens target token n takes its attention from. Two rules:

    replace   word i becomes word i (equal word counts); a word of m tokens that becomes one of n
              spreads every source token over the n target tokens with weight 1/n
    refine    the longest common subsequence of tokens keeps its attention, new tokens have none

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 3.2 (word swap, adding a new phrase)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PalimpsestError


@dataclass(frozen=True)
class Word:
    """A word as the user reads it, and the positions of its tokens."""

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as a text encoder sees it.

    Attributes:
        ids: Token id at every position: start, words, end and padding; chunks of a long prompt
            follow one another, as they do in the conditioning tensor.
        words: The whitespace-separated words in order.
        length: Number of positions before the final padding, start and end tokens included.
    """

    ids: tuple[int, ...]
    words: tuple[Word, ...]
    length: int

    @property
    def text(self) -> str:
        """The words, joined by single spaces."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a target prompt reads a source prompt.

    Attributes:
        mapping: [S, N] weight of source token s in the attention of target token n.
        aligned: [N] 1 where target token n has a source, 0 where it is new.
    """

    mapping: Tensor
    aligned: Tensor


def replace_words(
    source: PromptTokens, target: PromptTokens, *, published_tail: bool = False
) -> Alignment:
    """Align two prompts of equally many words, word by word.

    Args:
        source: The prompt that describes the image.
        target: The prompt that describes the edit.
        published_tail: Leave the tokens after the last replaced word where they stand, as the
            published code does, instead of moving them with their words. The two differ only
            where a replaced word changes its number of tokens.

    Raises:
        PalimpsestError: If the word counts differ.
    """
    if len(source.words) != len(target.words):
        raise PalimpsestError(
            f"Replace needs as many words in the target prompt as in the source prompt, got "
            f"{len(target.words)} ({target.text!r}) for {len(source.words)} ({source.text!r}). "
            "Use mode refine, or write the prompts word for word."
        )
    aligned = [
        (s.positions, t.positions)
        for s, t in zip(source.words, target.words, strict=True)
        if s.positions and t.positions and (s.text != t.text or not published_tail)
    ]
    mapping = torch.zeros(len(source.ids), len(target.ids))
    s = t = 0
    for source_tokens, target_tokens in aligned:
        _copy_gap(mapping, range(s, source_tokens[0]), range(t, target_tokens[0]))
        _spread(mapping, source_tokens, target_tokens)
        s, t = source_tokens[-1] + 1, target_tokens[-1] + 1
    _copy_tail(mapping, s, t, published_tail)
    if published_tail:
        return Alignment(mapping, torch.ones(len(target.ids)))
    return Alignment(mapping, (mapping != 0).any(0).float())


def _copy_gap(mapping: Tensor, source: range, target: range) -> None:
    """Map what lies before a word, from its end: where rows of a long prompt meet, or the start.

    Where a word has moved to another row, only one of the gaps holds these; they are new then.
    """
    for s, t in zip(reversed(source), reversed(target), strict=False):
        mapping[s, t] = 1


def _spread(mapping: Tensor, source: Sequence[int], target: Sequence[int]) -> None:
    """Map one changed word: token by token if it kept its length, else all on all."""
    if len(source) == len(target):
        mapping[list(source), list(target)] = 1
        return
    for t in target:
        mapping[list(source), t] = 1 / len(target)


def _copy_tail(mapping: Tensor, s: int, t: int, published: bool) -> None:
    """Map what follows the last changed word, padding included."""
    sources, targets = mapping.shape
    while t < targets:
        if published:
            if s >= sources or t >= sources:
                return
            mapping[t, t] = 1
        else:
            # A longer source has pushed its last padding out of the row: reuse the last token.
            mapping[min(s, sources - 1), t] = 1
        s, t = s + 1, t + 1


def refine_tokens(source: PromptTokens, target: PromptTokens) -> Alignment:
    """Align two prompts by their common tokens; tokens that only the target has are new."""
    origin = _common_subsequence(source.ids[: source.length], target.ids[: target.length])
    sources, targets = len(source.ids), len(target.ids)
    origin += [min(n, sources - 1) for n in range(target.length, targets)]
    mapping = torch.zeros(sources, targets)
    for n, s in enumerate(origin):
        if s is not None:
            mapping[s, n] = 1
    return Alignment(mapping, torch.tensor([float(s is not None) for s in origin]))


def _common_subsequence(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """For each target token the source position it is aligned with, or None.

    Needleman-Wunsch with gap 0, match 1, mismatch -1. Of equally good alignments a gap in the
    source is preferred to one in the target, and both to a match: the published tie order, which
    pairs the earliest of several equal tokens.
    """
    rows, columns = len(source), len(target)
    score = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            match = score[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], match)
    origin: list[int | None] = [None] * columns
    i, j = rows, columns
    while j > 0:
        if i == 0 or score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            origin[j] = i
    return origin


def positions_of(word: str, prompt: PromptTokens, *, role: str) -> tuple[int, ...]:
    """Token positions of every occurrence of a word.

    Args:
        word: One word, or several separated by spaces; compared without case and without
            punctuation at its ends.
        prompt: Where to look.
        role: What the prompt is called in the message, for example "target prompt".

    Raises:
        PalimpsestError: If the word is not in the prompt.
    """
    if not word.split():
        raise PalimpsestError("A word weight without a word: write one `word: weight` per line.")
    found = find_word(word, prompt)
    if not found:
        raise PalimpsestError(
            f"The word {word!r} is not in the {role} {prompt.text!r}. "
            "Use a word that stands there, or add it to the prompt."
        )
    return found


def find_word(word: str, prompt: PromptTokens) -> tuple[int, ...]:
    """Token positions of every occurrence of a word, as `positions_of`; empty where it is not."""
    wanted = [_bare(part) for part in word.split()]
    have = [_bare(w.text) for w in prompt.words]
    return tuple(
        position
        for start in range(len(have) - len(wanted) + 1)
        if have[start : start + len(wanted)] == wanted
        for w in prompt.words[start : start + len(wanted)]
        for position in w.positions
    )


def _bare(word: str) -> str:
    return word.lower().strip(".,;:!?\"'")
