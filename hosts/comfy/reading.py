"""The words of Prompt-to-Prompt for the front end, read before any run.

The page asks `POST /palimpsest/words` after every change of a prompt. No model is needed: all that
Prompt-to-Prompt takes read their prompts by CLIP's own vocabulary, which core carries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import folder_paths
from aiohttp import web
from comfy.sd1_clip import SD1Tokenizer

from ...pipelines.attention.hooks import check_part
from ...pipelines.attention.prompt_to_prompt import Mode, rewrite_prompt
from ...pipelines.attention.reading import read_words
from ...pipelines.attention.word_values import parse_weights, parse_windows
from ...pipelines.errors import PalimpsestError, quoted
from .words import prompt_tokens

#: Letters of a prompt at most: what is longer is no prompt, and takes long to align.
LONGEST = 4000

ADDRESS = "/palimpsest/words"
MODES = get_args(Mode)


@dataclass(frozen=True)
class Reader:
    """What `prompt_tokens` needs of a CLIP."""

    tokenizer: SD1Tokenizer

    def tokenize(self, text: str, return_word_ids: bool = False) -> dict[str, Any]:
        """As core's CLIP."""
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)


@cache
def reader() -> Reader:
    """Core's own vocabulary of CLIP, read once."""
    return Reader(SD1Tokenizer(embedding_directory=folder_paths.get_folder_paths("embeddings")))


def words_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the front end shows of two prompts.

    Args:
        asked: Texts `source` and `target`, `mode`, and of single words `weights` and
            `word_windows`, all as the node's inputs; `cross_start` and `cross_window` in 0..1.

    Raises:
        PalimpsestError: What Prompt-to-Prompt would refuse as well.
    """
    source, target, mode = (_text(asked, name) for name in ("source", "target", "mode"))
    if mode not in MODES:
        raise PalimpsestError(f"The mode is {quoted(mode)}, it must be {' or '.join(MODES)}.")
    end = float(asked.get("cross_window", 1))
    window = min(float(asked.get("cross_start", 0)), end), end
    check_part(window, "The cross window")
    before, after = (prompt_tokens(reader(), text) for text in (source, target))
    control = rewrite_prompt(
        before,
        after,
        mode=mode,
        cross_window=window,
        weights=parse_weights(_text(asked, "weights")),
        word_windows=parse_windows(_text(asked, "word_windows")),
    )
    read = read_words(control, before, after)
    return {
        "source": [word.text for word in before.words],
        "target": [
            {
                "text": word.text,
                "reads": list(word.reads),
                "state": word.state,
                "weight": word.weight,
                "window": list(word.window),
            }
            for word in read
        ],
    }


def _text(asked: Mapping[str, Any], name: str) -> str:
    text = asked.get(name, "")
    if not isinstance(text, str) or len(text) > LONGEST:
        raise PalimpsestError(f"The {name} is no text of up to {LONGEST} letters: shorten it.")
    return text


async def answer(request: web.Request) -> web.Response:
    """Answer the page: the words, or one sentence as `error`."""
    try:
        asked = await request.json()
        if not isinstance(asked, dict):
            raise ValueError(asked)
        # In a thread: a long prompt must not keep the server from its other answers.
        told = await asyncio.to_thread(words_of, asked)
    except PalimpsestError as error:
        return web.json_response({"error": str(error)})
    except (ValueError, TypeError):
        return web.json_response({"error": "What was asked is no JSON of texts."}, status=400)
    return web.json_response(told)
