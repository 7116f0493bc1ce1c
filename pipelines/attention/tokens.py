"""Which token of the source prompt each token of the target prompt comes from.

A Prompt-to-Prompt edit reads the source's cross-attention through a matrix `mapping` [S, N]:
column n says which of the S source tokens target token n takes its attention from. Two rules:

    replace   word i becomes word i (equal word counts); a word of m tokens that becomes one of n
              spreads every source token over the n target tokens with weight 1/n
    refine    the longest common subsequence of tokens keeps its attention, new tokens have none

A word is what stands between spaces, as the published code counts, and has parts (`words`) where
its tokenizer cuts it at punctuation: parts become parts where that comes out even.

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control,
        arXiv:2208.01626, section 3.2 (word swap, adding a new phrase)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PalimpsestError, quoted
from .words import Word, unmarked


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as a text encoder sees it.

    Attributes:
        ids: Token id at every position: start, words, end and padding; chunks of a long prompt
            follow one another, as they do in the conditioning tensor.
        words: The whitespace-separated words in order, each with its parts.
        length: Number of positions before the final padding, start and end tokens included.
        times: How often the words stand there.
    """

    ids: tuple[int, ...]
    words: tuple[Word, ...]
    length: int
    times: int = 1

    def followed_by(self, other: PromptTokens) -> PromptTokens:
        """The same prompt in the tokens of two encoders, which stand one after another.

        Its words stand there twice.
        """
        own = len(self.ids)
        words = (*self.words, *(word.moved(own) for word in other.words))
        length = own + other.length
        return PromptTokens((*self.ids, *other.ids), words, length, self.times + other.times)

    @property
    def text(self) -> str:
        """The words, joined by single spaces."""
        return " ".join(word.text for word in self.words[: len(self.words) // self.times])

    @property
    def parts(self) -> tuple[Word, ...]:
        """The words, cut where the tokenizer cuts them."""
        return tuple(part for word in self.words for part in word.parts)


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
    """Align two prompts of equally many words, word by word, or of equally many parts.

    Args:
        source: The prompt that describes the image.
        target: The prompt that describes the edit.
        published_tail: Leave the tokens after the last replaced word where they stand, as the
            published code does, instead of moving them with their words, and do not look into
            words. The two differ only where a replaced word changes its number of tokens.

    Raises:
        PalimpsestError: If the counts differ.
    """
    aligned = [
        (s.positions, t.positions)
        for s, t in _pairs(source, target, whole=published_tail)
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


def same_words(source: PromptTokens, target: PromptTokens) -> bool:
    """Whether a target prompt says word for word what the source prompt says, in other words.

    Marks may come and go; what is one word between spaces but a list of several, such as tags
    without spaces or a line of Chinese, must be as long as its counterpart.
    """
    if len(source.words) == len(target.words):
        pairs = zip(source.words, target.words, strict=True)
        return all(s.spoken == t.spoken or len(s.parts) == len(t.parts) for s, t in pairs)
    return len(source.parts) == len(target.parts)


def _pairs(source: PromptTokens, target: PromptTokens, *, whole: bool) -> list[tuple[Word, Word]]:
    """Which word, or part of a word, becomes which."""
    if len(source.words) == len(target.words):
        words = zip(source.words, target.words, strict=True)
        return [pair for s, t in words for pair in _within(s, t, whole=whole)]
    if len(source.parts) == len(target.parts) and not whole:
        return list(zip(source.parts, target.parts, strict=True))
    after, before = (f"{len(p.words)} ({quoted(p.text)})" for p in (target, source))
    raise PalimpsestError(
        f"Replace needs as many words in the target prompt as in the source prompt, got "
        f"{after} for {before}. "
        "Use mode refine, or write the prompts word for word."
    )


def _within(source: Word, target: Word, *, whole: bool) -> list[tuple[Word, Word]]:
    """A word and what it becomes, part by part where they have equally many."""
    if whole or len(source.parts) != len(target.parts):
        return [(source, target)]
    return list(zip(source.parts, target.parts, strict=True))


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
        word: One word or several, as they stand in the prompt; compared without case and without
            the marks of a sentence.
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
            f"The word {quoted(word)} is not in the {role} {quoted(prompt.text)}. "
            "Use a word that stands there, or add it to the prompt."
        )
    return found


def require_words(words: Iterable[str], prompts: Sequence[PromptTokens], *, role: str) -> None:
    """Refuse a word that is in none of several prompts.

    Args:
        words: As `positions_of` takes them.
        prompts: Where to look.
        role: What one of them is called in the message; of several the first is shown.

    Raises:
        PalimpsestError: Naming the word and a prompt.
    """
    for word in words:
        if not any(find_word(word, prompt) for prompt in prompts):
            shown = role if len(prompts) == 1 else f"{role}s, of which the first is"
            positions_of(word, prompts[0], role=shown)


def find_word(word: str, prompt: PromptTokens) -> tuple[int, ...]:
    """Token positions of every occurrence of a word, as `positions_of`; empty where it is not."""
    parts, wanted = prompt.parts, unmarked(word)
    if not wanted:  # a mark alone
        return tuple(p for part in parts if part.text == word.strip() for p in part.positions)
    text, starts, ends = _line(parts)
    found, at = [], text.find(wanted)
    while at >= 0:
        first, last = starts.get(at), ends.get(at + len(wanted))
        if first is not None and last is not None:
            found += [p for part in parts[first : last + 1] for p in part.positions]
        at = text.find(wanted, at + 1)
    return tuple(dict.fromkeys(found))


def _line(parts: Sequence[Word]) -> tuple[str, dict[int, int], dict[int, int]]:
    """Parts without marks as one line, and which of them begins and ends at which letter."""
    line, starts, ends, apart = "", {}, {}, False
    for number, part in enumerate(parts):
        # What hangs on a word, as the 's of girl's, is no quoted letter.
        text = part.text.lower() if part.hangs else unmarked(part.text)
        apart = apart or not part.glued or not text
        if not text:
            continue
        line += " " if apart and line else ""
        starts[len(line)] = number
        line += text
        ends[len(line)] = number
        apart = False
    return line, starts, ends
