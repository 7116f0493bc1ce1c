"""The text side: a byte-level BPE learned from the captions, and CLIP's text transformer, small.

Before the UNet sees it, the transformer learns to read: at every word it tells the attributes named
so far. That takes a minute and gives the UNet's attention words to look at from its first step.
"""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .model_files import token_ids
from .scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES, Scene, caption

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
TEXT_WIDTH = 96

_READING_STEPS = 400
_READING_BATCH = 48
_IGNORED = -100


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(captions: tuple[str, ...]) -> list[tuple[str, str]]:
    """Byte pair encoding, merged on until every word of the captions is one token."""
    counts = Counter(word for text in captions for word in text.split())
    words = {word: (*word[:-1], f"{word[-1]}</w>") for word in sorted(counts)}
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


def learn_to_read(
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    contents: tuple[Scene, ...],
    device: torch.device,
    report: Callable[[str], None],
) -> None:
    """Teach the transformer to tell, at every word, the attributes that were named so far."""
    ids = token_ids(tokenizer, [caption(scene) for scene in contents])[:, :16]
    labels = torch.stack([_labels(scene) for scene in contents])
    kinds = (COLORS, SHAPES, TEXTURES, BACKGROUNDS)
    heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(kind)) for kind in kinds).to(device)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(3)
    for step in range(_READING_STEPS):
        pick = torch.randint(len(contents), (_READING_BATCH,), generator=generator)
        states = encoder(ids[pick].to(device)).last_hidden_state
        wanted = labels[pick].to(device)
        loss = sum(
            F.cross_entropy(head(states).flatten(0, 1), wanted[:, i].flatten())
            for i, head in enumerate(heads)
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % 200 == 0:
            report(f"reading {step + 1}/{_READING_STEPS}: loss {loss.item():.4f}")


def _labels(scene: Scene) -> Tensor:
    """Attribute numbers `[4, 16]` from the word that names each to the last; else ignored."""
    words = caption(scene).split()
    last = len(words)
    color = 1 + words.index(scene.color)
    labels = torch.full((4, 16), _IGNORED)
    labels[0, color : last + 1] = list(COLORS).index(scene.color)
    labels[1, color + 1 : last + 1] = list(SHAPES).index(scene.shape)
    labels[2, color : last + 1] = TEXTURES.index(scene.texture)
    labels[3, last : last + 1] = list(BACKGROUNDS).index(scene.background)
    return labels
