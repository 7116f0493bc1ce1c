"""Which tokens belong to which word of a prompt that its encoder reads in a chat.

Core puts the prompt into a template; of Qwen-Image it cuts off what the encoder makes of the
template's beginning. The encoder's vocabulary is of bytes: a word has the tokens that it has alone
with the space before it, and weights in brackets are plain text. The result is compared with core's
own tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from comfy.text_encoders.flux import KleinTokenizer, KleinTokenizer8B
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.z_image import ZImageTokenizer

from ...pipelines.attention.tokens import PromptTokens
from ...pipelines.attention.words import cut_word

#: Token of Qwen's at the beginning of what someone says.
_BEGINS = 151644

#: Tokens of that and of who says it, before the words.
_SPEAKER = 3

#: How its vocabulary writes a space, a new line and a tab.
_SPACES = "ĠĊĉ"


@dataclass(frozen=True)
class Chat:
    """How core puts a prompt into a chat.

    Attributes:
        turn: Which of those who speak says the prompt, from 0.
        cut: Whether the model sees nothing of what comes before it.
    """

    turn: int
    cut: bool


#: The chats of core's tokenizers: others of the same encoders have other templates.
CHATS = {
    QwenImageTokenizer: Chat(1, cut=True),
    ZImageTokenizer: Chat(0, cut=False),
    KleinTokenizer: Chat(0, cut=False),
    KleinTokenizer8B: Chat(0, cut=False),
}


def chat_tokens(every: SD1Tokenizer, ids: Sequence[int], text: str) -> PromptTokens | None:
    """The words of a prompt; None where its tokens are not those of its words.

    Args:
        every: Core's tokenizer, one of `CHATS`.
        ids: All tokens of prompt and template.
        text: The prompt as the user wrote it.
    """
    chat, tokenizer = CHATS[type(every)], getattr(every, every.clip)
    begins = [place for place, token in enumerate(ids) if token == _BEGINS]
    first = begins[chat.turn] + _SPEAKER
    at, words = first, []
    for piece in re.findall(r"\s*\S+", text):
        found = tokenizer.tokenizer(piece)["input_ids"]
        if list(ids[at : at + len(found)]) != found:
            return None
        spelled = [tokenizer.inv_vocab[i] for i in found]
        gap = next(n for n, letters in enumerate(spelled) if letters.strip(_SPACES))
        words.append(cut_word(piece.strip(), range(at + gap, at + len(found)), spelled[gap:]))
        at += len(found)
    start = first if chat.cut else 0
    length = _said(tokenizer, ids) - start
    own = tuple(word.moved(-start) for word in words)
    return PromptTokens(tuple(ids[start:]), own, length)


def _said(tokenizer: SDTokenizer, ids: Sequence[int]) -> int:
    """How many tokens there are before the final padding."""
    count = len(ids)
    while count and ids[count - 1] == tokenizer.pad_token:
        count -= 1
    return count
