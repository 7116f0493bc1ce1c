"""A prompt as the diffusers host sees it, and what an inversion puts in its place."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...pipelines.attention.hooks import ROLES, Role
from ...pipelines.attention.tokens import PromptTokens
from ...pipelines.attention.words import cut_word
from ...pipelines.errors import PalimpsestError
from ...pipelines.lending import Asked, PlaceOf
from ...pipelines.trajectory import Recipe


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the UNet and as the attention controls see it.

    Attributes:
        embedding: [1, tokens, channels] hidden states of the text encoder.
        tokens: The words and their positions.
        added: What an SDXL UNet takes beside them (`text_embeds`, `time_ids`); empty otherwise.
        values: [2, B, tokens, channels] what the embedding is mapped by where values are computed
            from it (StyleDiffusion), or None.
    """

    embedding: Tensor
    tokens: PromptTokens
    added: dict[str, Tensor] = field(default_factory=dict)
    values: Tensor | None = None

    @property
    def key(self) -> str:
        """What tells it from other prompts, as text."""
        tensors = (self.embedding, *self.added.values())
        return hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in tensors)).hexdigest()


#: A prompt that changes with the noise level.
PromptAt = Callable[[Tensor], Prompt]


def guided_key(prompt: Prompt, negative: Prompt | None, cfg: float) -> str:
    """What tells a guided denoiser from others of one model, as text.

    Guided away from its own prompt, at whatever scale, it is the prompt's.
    """
    if cfg == 1 or negative is None or negative.key == prompt.key:
        return f"1 {prompt.key}"
    return f"{cfg:g} {prompt.key} {negative.key}"


def asked_of(
    recipe: Recipe, source: Prompt, negative: Prompt | None, cfg: float, rows: int
) -> Recipe:
    """A recipe that says under what the source was asked about a chain, and the rows it took."""
    key = guided_key(source, negative, cfg)
    return replace(recipe, cfg=cfg, rows=rows, source_key=key, source_cfg=cfg)


@dataclass(frozen=True, eq=False)
class Prompts:
    """The prompts of an edit.

    Attributes:
        source: Describes the picture.
        target: Describes the edit.
        negative: The other end of the guidance.
    """

    source: Prompt
    target: Prompt
    negative: Prompt

    def of(self, asked: Asked) -> Prompt | PromptAt:
        """That of a branch, its values mapped where the branch maps them."""
        prompt, values = self._named(asked), asked.values
        return prompt if values is None else lambda s: replace(prompt, values=values(s))

    def below(self, asked: Asked) -> Prompt | PromptAt:
        """The negative of a branch, or what stands for it."""
        prompt, embedding = self.negative, asked.negative
        return prompt if embedding is None else lambda s: replace(prompt, embedding=embedding(s))

    def one_row(self, asked: Asked) -> bool:
        """Whether the prompt of a branch is the negative prompt."""
        plain = asked.negative is None and asked.values is None
        return plain and self._named(asked).key == self.negative.key

    def key(self, asked: Asked, cfg: float) -> str:
        """What tells the guided prediction of a branch from others; "" where nothing does.

        Args:
            asked: The branch. A guidance of its own is the same at every level.
            cfg: That of the edit.
        """
        if asked.negative is not None or asked.values is not None:
            return ""
        own = cfg if asked.guidance is None else asked.guidance(1.0)
        return guided_key(self._named(asked), self.negative, own)

    def _named(self, asked: Asked) -> Prompt:
        return self.source if asked.prompt == "source" else self.target


@dataclass(frozen=True, eq=False)
class RowsBeside:
    """Rows of a source that run in one call with those of a target that read them.

    Attributes:
        prompts: By branch.
        place: See `lending.Beside`.
    """

    prompts: Mapping[Role, Prompt | PromptAt]
    place: PlaceOf

    def waiting(self) -> dict[Role, tuple[Prompt | PromptAt, Tensor]]:
        """Those that run in this step and where they stand, by the branch that reads them."""
        waiting = {role: self.place(role) for role in ROLES}
        return {
            role: (self.prompts[found[0]], found[1])
            for role, found in waiting.items()
            if found is not None
        }


def conditions(prompts: list[Prompt], images: int, dtype: torch.dtype) -> dict[str, Any]:
    """The UNet's text arguments for `images` rows per prompt."""
    embeddings = torch.cat([p.embedding.expand(images, -1, -1) for p in prompts]).to(dtype)
    if not prompts[0].added:
        return {"encoder_hidden_states": embeddings}
    added = {
        key: torch.cat([p.added[key].expand(images, -1) for p in prompts]).to(dtype)
        for key in prompts[0].added
    }
    return {"encoder_hidden_states": embeddings, "added_cond_kwargs": added}


def token_ids(tokenizer: Any, text: str) -> Tensor:
    """[1, max length] token ids, padded as the model was trained."""
    return tokenizer(
        text,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


def prompt_tokens(tokenizer: Any, text: str) -> PromptTokens:
    """Words of a prompt and the positions of their tokens.

    White space is a hard boundary for these tokenizers, so each word is tokenized alone.

    Raises:
        PalimpsestError: If the prompt is longer than the tokenizer allows.
    """
    ids = tuple(token_ids(tokenizer, text)[0].tolist())
    position, words = 1, []
    for word in text.split():
        own = tokenizer(word, add_special_tokens=False).input_ids
        positions = range(position, position + len(own))
        words.append(cut_word(word, positions, tokenizer.convert_ids_to_tokens(own)))
        position += len(own)
    if position >= len(ids):
        raise PalimpsestError(
            f"The prompt has {position - 1} tokens, this model takes {len(ids) - 2}: shorten it."
        )
    return PromptTokens(ids, tuple(words), position + 1)
