"""The words of a prompt, cut where the tokenizer cuts them.

CLIP reads runs of letters, single digits and runs of marks apart, whether there are spaces between
them or not: `girl,t-shirt` is `girl` `,` `t` `-` `shirt`, and `girl's` is `girl` `'s`. Where it has
cut is written in its tokens, the last of every run ending in `</w>`. A run of Chinese, Japanese or
Korean is one of many words: it is cut into characters, wherever a token ends with one.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

#: What CLIP's vocabulary writes at the end of a run.
END = "</w>"

#: Beginnings of the Unicode names of characters that are words, or syllables, without spaces.
UNSPACED = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "HANGUL")


@dataclass(frozen=True)
class Word:
    """A word as the user reads it, and the positions of its tokens.

    Attributes:
        text: As the user wrote it.
        positions: Of its tokens.
        cuts: Its parts in order, where it has several.
        glued: Whether it is a part that follows another without a space.
    """

    text: str
    positions: tuple[int, ...]
    cuts: tuple["Word", ...] = ()
    glued: bool = False

    @property
    def parts(self) -> tuple["Word", ...]:
        """What the tokenizer reads apart; the word itself if it is one."""
        return self.cuts or (self,)

    @property
    def hangs(self) -> bool:
        """Whether it is what hangs on the word before, such as 's and 't."""
        return self.glued and re.fullmatch(r"'\w+", self.text) is not None

    @property
    def spoken(self) -> int:
        """How many words are in it, marks and what hangs on words not counted.

        Korean has spaces between words: its syllables are one.
        """
        count, in_korean = 0, False
        for part in self.parts:
            korean = _script(part.text[:1]) == "HANGUL"
            is_word = any(letter.isalnum() for letter in part.text) and not part.hangs
            count += is_word and not (korean and in_korean)
            in_korean = korean
        return count

    def moved(self, by: int) -> "Word":
        """The same with all its tokens so many positions later."""
        positions = tuple(position + by for position in self.positions)
        return replace(self, positions=positions, cuts=tuple(cut.moved(by) for cut in self.cuts))

    def followed_by(self, other: "Word") -> "Word":
        """This word and another that follows without a space, as one."""
        first, *rest = other.parts
        cuts = (*self.parts, replace(first, glued=True), *rest)
        return Word(self.text + other.text, self.positions + other.positions, cuts)


def unmarked(text: str) -> str:
    """Words in small letters with single spaces, without the marks of a sentence and quotes."""
    plain = re.sub(r'[.,;:!?"]+', " ", text.lower())
    return " ".join(word for part in plain.split() if (word := part.strip("'")))


def cut_word(text: str, positions: Sequence[int], spelled: Sequence[str]) -> Word:
    """A word with its parts.

    Args:
        text: Without spaces, as the user wrote it.
        positions: Of its tokens.
        spelled: The same tokens in CLIP's vocabulary.
    """
    found = list(_cut(spelled))
    if len(found) < 2:
        return Word(text, tuple(positions))
    read = [part for part, _ in found]
    as_written = "".join(read) == text.lower() and len(text.lower()) == len(text)
    cuts, letter, token = [], 0, 0
    for part, count in found:
        own = text[letter : letter + len(part)] if as_written else part
        cuts.append(Word(own, tuple(positions[token : token + count]), glued=token > 0))
        letter, token = letter + len(part), token + count
    return Word(text, tuple(positions), tuple(cuts))


def _cut(spelled: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The parts that tokens spell, and how many tokens each has."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, count = "", 0
    for n, token in enumerate(spelled):
        text += decoder.decode(_bytes(token.removesuffix(END)))
        count += 1
        whole = not decoder.getstate()[0]
        last = n + 1 == len(spelled)
        if last or token.endswith(END) or (whole and _apart(text[-1:], spelled[n + 1 : n + 5])):
            yield text + decoder.decode(b"", final=True), count
            text, count = "", 0


def _apart(letter: str, following: Sequence[str]) -> bool:
    """Whether a character and what the next tokens begin with are words of their own."""
    # Four tokens spell at least one character.
    spelled = b"".join(_bytes(token.removesuffix(END)) for token in following)
    return bool(_script(letter) or _script(spelled.decode("utf-8", errors="replace")[:1]))


def _script(letter: str) -> str:
    """Which of the scripts of `UNSPACED` a character is of; "" where it is of none."""
    name = unicodedata.name(letter, "") if letter else ""
    return next((script for script in UNSPACED if name.startswith(script)), "")


def _bytes(token: str) -> bytes:
    """What a token stands for: byte-level vocabularies write a visible letter for every byte."""
    return b"".join(
        bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode() for letter in token
    )


def _byte_letters() -> dict[str, int]:
    """The letter of every byte: itself where it is visible, else one from U+0100 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(hidden)}


_BYTES = _byte_letters()
