"""Which tokens belong to which word of a prompt that its encoder reads in a chat (Qwen-Image).

Core puts the prompt into a template and cuts off what it makes of the template's beginning. The
encoder's vocabulary is of bytes: a word has the tokens that it has alone with the space before it,
and weights in brackets are plain text. The result is compared with core's own tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from comfy.sd1_clip import SDTokenizer

from ...pipelines.attention.tokens import PromptTokens
from ...pipelines.attention.words import cut_word

#: Qwen 2.5 as core calls it; `clip.tokenize` has it for Qwen-Image alone.
QWEN = "qwen25_7b"

#: Its token at the beginning of what someone says, and those of "user" and a new line.
_BEGINS, _USER, _LINE = 151644, 872, 198

#: How its vocabulary writes a space, a new line and a tab.
_SPACES = "ĠĊĉ"


def chat_tokens(tokenizer: SDTokenizer, ids: Sequence[int], text: str) -> PromptTokens | None:
    """The words of a prompt; None where its tokens are not those of its words.

    Args:
        tokenizer: Core's.
        ids: All tokens of prompt and template.
        text: The prompt as the user wrote it.
    """
    own = list(ids[_template(ids) :])
    words, at = [], 0
    for piece in re.findall(r"\s*\S+", text):
        found = tokenizer.tokenizer(piece)["input_ids"]
        if own[at : at + len(found)] != found:
            return None
        spelled = [tokenizer.inv_vocab[i] for i in found]
        gap = next(n for n, letters in enumerate(spelled) if letters.strip(_SPACES))
        words.append(cut_word(piece.strip(), range(at + gap, at + len(found)), spelled[gap:]))
        at += len(found)
    return PromptTokens(tuple(own), tuple(words), len(own))


def _template(ids: Sequence[int]) -> int:
    """How many tokens core cuts off: up to the words of the user."""
    begins = [place for place, token in enumerate(ids) if token == _BEGINS][:2]
    first = begins[-1] if begins else 0
    spoken = list(ids[first + 1 : first + 3]) == [_USER, _LINE] and len(ids) > first + 3
    return first + 3 * spoken
