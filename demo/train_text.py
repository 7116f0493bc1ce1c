"""The text side: a byte-level BPE learned from the captions, and CLIP's text transformer, small.

Before the UNet sees it, the transformer learns to read: at every word it tells what was said of the
object named last. That takes a minute or two and gives the UNet's attention words to look at from
its first step.
"""

import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .model_files import token_ids
from .scenes import BACKGROUNDS, PLACES, Scene, caption, phrases
from .shapes import SHAPES
from .things import COLORS, TEXTURES

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
TEXT_WIDTH = 96

_READING_STEPS = 800
_READING_BATCH = 48
_IGNORED = -100
_KEEP = 10.0
#: What is told of the object named last, of all, and after the end, where the first object lies.
_KINDS = (COLORS, SHAPES, TEXTURES, (*PLACES, ""), BACKGROUNDS, (*PLACES, ""))


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(
    captions: tuple[str, ...], known: tuple[tuple[str, str], ...] = ()
) -> list[tuple[str, str]]:
    """Byte pair encoding, merged on until every word of the captions is one token.

    The merges that are already `known` come first, and are not told again.
    """
    counts = Counter(word for text in captions for word in text.split())
    words = {word: (*word[:-1], f"{word[-1]}</w>") for word in sorted(counts)}
    for pair in known:
        words = {word: _merged(symbols, pair) for word, symbols in words.items()}
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in words.values()):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {word: _merged(symbols, best) for word, symbols in words.items()}
    return merges


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def write_tokenizer(folder: Path, captions: tuple[str, ...]) -> None:
    """Write the files of a CLIPTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(captions)
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    special = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def extend_tokenizer(folder: Path, captions: tuple[str, ...]) -> None:
    """Give the tokenizer in a folder the words of more captions; every old token keeps its number.

    New tokens come after all the others, and new merges too: an old caption is read as before.
    """
    tokens = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    known = tuple(tuple(line.split(" ")) for line in lines[1:])
    merges = learn_merges(captions, known)
    first = 1 + max(tokens.values())
    tokens |= {"".join(pair): first + i for i, pair in enumerate(merges)}
    _write_json(folder / "vocab.json", tokens)
    lines += [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text transformer of two layers and four heads, untrained."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    config._attn_implementation = "eager"  # on a CPU its gradient is quicker than the fused one
    return CLIPTextModel(config)


def with_more_tokens(encoder: CLIPTextModel, count: int) -> CLIPTextModel:
    """The same text transformer for a vocabulary of `count` tokens; new ones mean nothing yet."""
    config = deepcopy(encoder.config)
    config.vocab_size = count
    wider = CLIPTextModel(config)
    state, old = wider.state_dict(), encoder.state_dict()
    for name, value in old.items():
        if value.shape != state[name].shape:  # the table of embeddings alone
            drawn = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(4))
            state[name] = torch.cat([value, value.std() * drawn[len(value) :]])
        else:
            state[name] = value
    wider.load_state_dict(state)
    return wider


class _Head(nn.Module):
    """Tells one of some kinds from directions of length one: what is told must be large.

    A head that is free to grow would be content with differences that no UNet ever notices.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(count, TEXT_WIDTH))

    def forward(self, states: Tensor) -> Tensor:
        return states @ F.normalize(self.directions, dim=-1).T


def learn_to_read(
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    contents: tuple[Scene, ...],
    device: torch.device,
    report: Callable[[str], None],
    keep: tuple[str, ...] = (),
) -> None:
    """Teach the transformer to tell, at every word, what was said of the object named last.

    What it makes of the captions `keep` stays nearly as it is: a UNet knows them so.
    """
    ids = token_ids(tokenizer, [caption(scene) for scene in contents])
    labels = torch.stack([_labels(scene) for scene in contents])
    heads = nn.ModuleList(_Head(len(kind)) for kind in _KINDS).to(device)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(3)
    drift_of = _drift(encoder, tokenizer, keep, device)
    for step in range(_READING_STEPS):
        pick = torch.randint(len(contents), (_READING_BATCH,), generator=generator)
        states = encoder(ids[pick].to(device)).last_hidden_state
        wanted = labels[pick].to(device)
        loss = sum(
            F.cross_entropy(head(states).flatten(0, 1), wanted[:, i].flatten())
            for i, head in enumerate(heads)
        )
        drift = drift_of(generator)
        optimiser.zero_grad(set_to_none=True)
        (loss + _KEEP * drift).backward()
        optimiser.step()
        if (step + 1) % 200 == 0:
            report(
                f"reading {step + 1}/{_READING_STEPS}: loss {loss.item():.4f}, "
                f"drift {drift.item():.4f}"
            )


def _drift(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, keep: tuple[str, ...], device: torch.device
) -> Callable[[torch.Generator], Tensor]:
    """Mean squared distance to what the transformer makes of some captions now."""
    if not keep:
        return lambda generator: torch.zeros((), device=device)
    ids = token_ids(tokenizer, list(keep)).to(device)
    with torch.no_grad():
        before = torch.cat([encoder(part).last_hidden_state for part in ids.split(64)])

    def drift_of(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(ids), (_READING_BATCH // 2,), generator=generator).to(device)
        return F.mse_loss(encoder(ids[pick]).last_hidden_state, before[pick])

    return drift_of


def _labels(scene: Scene) -> Tensor:
    """Numbers `[6, 77]` of attributes at the words that come after their naming; else ignored."""
    labels = torch.full((len(_KINDS), LENGTH), _IGNORED)
    last = len(caption(scene).split())
    start = 1
    for thing, phrase in zip(scene.things, phrases(scene), strict=True):
        words = phrase.split()
        color, shape = start + words.index(thing.color), start + words.index(thing.shape)
        end = start + len(words)
        labels[:, start:] = _IGNORED
        labels[0, color : last + 1] = list(COLORS).index(thing.color)
        labels[1, shape : last + 1] = list(SHAPES).index(thing.shape)
        labels[2, color : last + 1] = TEXTURES.index(thing.texture)
        place = phrase.removeprefix(f"{thing}").strip()
        if place:
            labels[3, end - 1 : last + 1] = list(PLACES).index(place)
        start = end + 1
    if scene.place is None:
        labels[3, last] = len(PLACES)
    labels[5, last + 1 :] = [*PLACES, None].index(scene.place)
    labels[4, last] = list(BACKGROUNDS).index(scene.background)
    return labels
