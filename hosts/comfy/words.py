"""Which tokens of ComfyUI's CLIP belong to which word of a prompt.

The text a person writes is not the text CLIP reads: ComfyUI takes out weights, `(cat:1.2)`, puts
in learned vectors, `embedding:name`, and cuts long prompts into chunks. Core says which *group*
(a run of equal weight, or an embedding) every token came from. The words of a group are found by
tokenizing each of them alone, which gives the tokens it has in its sentence, since CLIP never
merges across a space; nor does T5. The result is compared with core's own tokens: nothing is
guessed. Where a word has parts, `girl's` or `cat,dog`, the tokens of CLIP say so
(`pipelines.attention.words`).
"""

import math
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import comfy.sd
import torch
from comfy.sd1_clip import (
    SDTokenizer,
    escape_important,
    load_embed,
    token_weights,
    unescape_important,
)
from torch import Tensor

from ...pipelines.attention.tokens import PromptTokens
from ...pipelines.attention.words import Word, cut_word
from ...pipelines.errors import PalimpsestError, quoted
from .chat_words import CHATS, chat_tokens
from .guidance import Conditioning

#: CLIPs whose tokens a model attends to, by the keys of `clip.tokenize`; SDXL has l and g.
ENCODERS = ("l", "h", "g")

#: The T5 of transformers: Flux attends to its tokens alone, SD 3 to those of its CLIPs before them.
T5 = "t5xxl"

#: A token as core tells it with its group: id or vector, weight, group (0 for special tokens).
Token = tuple[int | Tensor, float, int]


@dataclass(frozen=True)
class Piece:
    """A part of the prompt that core tokenizes in one go.

    Attributes:
        text: As the user reads it, without weight brackets.
        glued: Whether its first word continues the last word of the piece before it.
        embedding: Whether it is a learned embedding instead of text.
    """

    text: str
    glued: bool
    embedding: bool = False


def prompt_tokens(clip: comfy.sd.CLIP, text: str) -> PromptTokens:
    """Read the words of a prompt, and the positions of their tokens in the conditioning.

    A word is what stands between spaces, without weight brackets; its punctuation belongs to it,
    as a part. An embedding is the word `embedding:name`, its vectors have negative ids, the same
    ones in every prompt. What leaves no token (an embedding that is not installed) is no word.

    Args:
        clip: A CLIP of an SD 1.x, SD 2.x or SDXL model, of Flux, Chroma, SD 3, Qwen-Image or
            Z-Image.
        text: The prompt as the user wrote it.

    Raises:
        PalimpsestError: If the CLIP is of another kind, its tokens cannot be told apart, or a
            weight in the prompt is no number.
    """
    try:
        chunks_of = clip.tokenize(text, return_word_ids=True)
    except IndexError as error:  # all that core says of it
        raise PalimpsestError(
            f"ComfyUI cannot read the prompt {quoted(text)}: every `embedding:` in it must be "
            "followed by a name; add it, or leave the mark out."
        ) from error
    if type(clip.tokenizer) in CHATS:
        (chunks,) = chunks_of.values()
        read = chat_tokens(clip.tokenizer, [token for token, *_ in chunks[0]], text)
        if read is None:
            raise _mismatch(text)
        return read
    if not chunks_of.keys() <= {*ENCODERS, T5}:
        raise PalimpsestError(
            f"The CLIP reads with {', '.join(chunks_of)}: words can be told apart only in the CLIP "
            "of an SD 1.x, SD 2.x, SDXL, Flux.1, Flux.2 klein, Chroma, SD 3, Qwen-Image or Z-Image "
            "model; connect the one that came with the MODEL."
        )
    _check_weights(text)
    parts = _attended(clip, chunks_of.keys())
    read = [
        _alike([_read(_tokenizer(clip, k), chunks_of[k], text) for k in p], text) for p in parts
    ]
    return reduce(PromptTokens.followed_by, read)


def _attended(clip: comfy.sd.CLIP, keys: Collection[str]) -> list[list[str]]:
    """The encoders whose tokens the model sees: one after another, each of one or of two as one."""
    clips = [key for key in ENCODERS if key in keys]
    if T5 not in keys:
        return [clips]
    if "g" not in keys:
        return [[T5]]
    loaded = [
        key for key in clips if getattr(clip.cond_stage_model, f"clip_{key}", None) is not None
    ]
    both = [loaded, [T5] if clip.cond_stage_model.t5xxl is not None else []]
    return [part for part in both if part]


def _tokenizer(clip: comfy.sd.CLIP, key: str) -> SDTokenizer:
    every = clip.tokenizer
    return getattr(every, f"clip_{key}", None) or getattr(every, key)


def _alike(read: Sequence[PromptTokens], text: str) -> PromptTokens:
    """What one or two tokenizers made of a prompt, which must stand at the same positions.

    Raises:
        PalimpsestError: If it does not.
    """
    first, *others = read
    for other in others:
        if other.words != first.words or len(other.ids) != len(first.ids):
            raise PalimpsestError(
                f"The two tokenizers of this CLIP cut the prompt {quoted(text)} differently: words "
                "must stand at the same positions for both; use plainer words, or embeddings made "
                "for SDXL."
            )
    return first


def _check_weights(text: str) -> None:
    """Refuse weights that leave no numbers in a conditioning: float() reads (red:inf) as well."""
    for segment, weight in token_weights(escape_important(text), 1.0):
        if not math.isfinite(weight):
            words = " ".join(unescape_important(segment).split())
            raise PalimpsestError(
                f"The prompt gives {quoted(words)} the weight {weight}, which must be a number: "
                "write for example (red:1.2)."
            )


def _read(tokenizer: SDTokenizer, chunks: Sequence[Sequence[Token]], text: str) -> PromptTokens:
    """The words of a prompt in one tokenizer's chunks."""
    tokens = [token for chunk in chunks for token in chunk]
    ids = [-1 if isinstance(token, Tensor) else int(token) for token, _, _ in tokens]
    vectors = {p: token for p, (token, _, _) in enumerate(tokens) if isinstance(token, Tensor)}
    groups: dict[int, list[int]] = {}
    for position, (_, _, group) in enumerate(tokens):
        if group:
            groups.setdefault(group, []).append(position)

    words: list[Word] = []
    for group, piece in enumerate(_pieces(tokenizer, text), start=1):
        positions = groups.pop(group, [])
        if piece.embedding:
            _check_vectors(tokenizer, piece, positions, vectors)
            found = [Word(piece.text, tuple(positions))]
            for n, position in enumerate(positions):
                ids[position] = -1 - zlib.crc32(f"{piece.text}/{n}".encode())
        else:
            parts = [(part, _tokenize(tokenizer, part)) for part in piece.text.split()]
            expected = [token for _, part_ids in parts for token in part_ids]
            if expected != [ids[position] for position in positions]:
                raise _mismatch(text)
            found = list(_words_of(tokenizer, parts, positions))
        if piece.glued and found and words:
            found[0] = words.pop().followed_by(found[0])
        words += found
    if groups:
        raise _mismatch(text)
    content = sum(1 for _, _, group in chunks[-1] if group)
    special = tokenizer.tokens_start + bool(tokenizer.tokenizer_adds_end_token)
    length = len(ids) - len(chunks[-1]) + content + special
    return PromptTokens(tuple(ids), tuple(word for word in words if word.positions), length)


def _words_of(
    tokenizer: SDTokenizer, found: Sequence[tuple[str, list[int]]], positions: Sequence[int]
) -> Iterator[Word]:
    """Words by their text and ids, each with its number of the positions."""
    start = 0
    for text, ids in found:
        own = positions[start : start + len(ids)]
        start += len(ids)
        yield cut_word(text, own, [tokenizer.inv_vocab[i] for i in ids])


def _pieces(tokenizer: SDTokenizer, text: str) -> Iterator[Piece]:
    """The pieces core makes groups of, one by one."""
    mark = tokenizer.embedding_identifier
    after_space = True
    for segment, _ in token_weights(escape_important(text), 1.0):
        head, *rest = re.split(rf"(?<=\s){re.escape(mark)}", unescape_important(segment))
        for part in filter(None, [head, *(mark + tail for tail in rest)]):
            glued = not after_space and not part[0].isspace()
            if part.startswith(mark) and tokenizer.embedding_directory is not None:
                yield from _embedding_pieces(tokenizer, part.removeprefix(mark), glued)
            else:
                yield Piece(part, glued)
            after_space = part[-1].isspace()


def _embedding_pieces(tokenizer: SDTokenizer, part: str, glued: bool) -> Iterator[Piece]:
    """An embedding and the text behind it, cut as core cuts them."""
    name, *words = part.split()
    name, tail = re.fullmatch(r"([^<\[]*)(.*)", name, re.DOTALL).groups()
    installed = _installed(tokenizer, name)
    bare = name.strip(",")
    if not installed and bare != name:
        installed = _installed(tokenizer, bare)
        name, tail = bare, " ".join(filter(None, [name[len(bare) :], tail]))
    if installed:
        yield Piece(tokenizer.embedding_identifier + name, glued, embedding=True)
    left = " ".join(filter(None, [tail, *words]))
    if left:
        yield Piece(left, glued=bool(tail) and installed)


def _installed(tokenizer: SDTokenizer, name: str) -> bool:
    directories = tokenizer.embedding_directory
    found = load_embed(name, directories, tokenizer.embedding_size, tokenizer.embedding_key)
    return found is not None


def encode_batch(clip: comfy.sd.CLIP, texts: Sequence[str]) -> Conditioning:
    """One CONDITIONING of several prompts, a row for each; of one prompt, core's own.

    Args:
        clip: Any CLIP.
        texts: The prompts.

    Raises:
        PalimpsestError: If several prompts differ in length by whole chunks, or carry hooks.
    """
    first, *others = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts)
    if not others:
        return first
    entries = [conditioning[0] for conditioning in (first, *others)]
    lengths = sorted({entry[0].shape[1] for entry in entries})
    if len(lengths) > 1:
        raise PalimpsestError(
            f"The target's prompts take {' and '.join(map(str, lengths))} tokens: in a batch all "
            "must take as many; shorten the long ones, or edit them one by one."
        )
    if any(len(conditioning) != 1 for conditioning in (first, *others)):
        raise PalimpsestError(
            "The CLIP carries a schedule of hooks, which a batch of prompts cannot have: set "
            "one_per_line off and edit the prompts one by one."
        )
    merged = dict(entries[0][1])
    if merged.get("pooled_output") is not None:
        merged["pooled_output"] = torch.cat([entry[1]["pooled_output"] for entry in entries])
    return [[torch.cat([entry[0] for entry in entries]), merged]]


def _check_vectors(
    tokenizer: SDTokenizer,
    piece: Piece,
    positions: Sequence[int],
    vectors: Mapping[int, Tensor],
) -> None:
    """Refuse an embedding that core will drop, which would move all tokens behind it."""
    widths = {vectors[p].shape[-1] for p in positions if p in vectors}
    if widths != {tokenizer.embedding_size}:
        raise PalimpsestError(
            f"The prompt's {quoted(piece.text)} has "
            f"{' and '.join(map(str, widths)) or 'no'} numbers a token, this CLIP reads "
            f"{tokenizer.embedding_size}: take an embedding that was made for this kind of model, "
            "or leave it out."
        )


def _tokenize(tokenizer: SDTokenizer, word: str) -> list[int]:
    """The ids of one word alone, without start and end."""
    end = -1 if tokenizer.tokenizer_adds_end_token else None
    return tokenizer.tokenizer(word)["input_ids"][tokenizer.tokens_start : end]


def _mismatch(text: str) -> PalimpsestError:
    return PalimpsestError(
        f"The words of the prompt {quoted(text)} cannot be told apart in CLIP's tokens: they must "
        "be plain text between spaces; leave out unusual characters and spaces."
    )
