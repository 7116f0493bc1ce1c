"""Where a model sees the words of a prompt in a picture that it inverted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ...pipelines.attention.hooks import Hooks
from ...pipelines.attention.tokens import PromptTokens, find_word, require_words
from ...pipelines.attention.viewer import Look, steps_between, view_words
from ...pipelines.attention.word_maps import columns_of
from ...pipelines.denoiser import Denoiser
from ...pipelines.errors import PalimpsestError
from ...pipelines.trajectory import Trajectory
from ..drawing.heat import heat_over
from ..drawing.sheet import Sheet, draw_sheet
from .coordinates import coordinates_of, host_levels
from .cost import Spent
from .fingerprint import features_key
from .guidance import BranchGuider, Conditioning
from .hooked import require_attention
from .refusals import check_trajectory
from .session import Session, run
from .words import encode_batch, prompt_tokens

#: Pictures of a sheet in one row.
ACROSS = 5


@dataclass(frozen=True, eq=False)
class ViewRequest:
    """What shall be looked at, as it comes from the wires.

    Attributes:
        model: The model that inverted the picture.
        clip: Its text encoder.
        trajectory: The recorded chain of the picture.
        text: What the picture shows.
        words: Those to look for; of an empty list every word of the prompt.
        window: Part of the steps to look at, as fractions.
        steps: How many of them at most.
        layers: Part of the transformer blocks, as fractions.
        every: Look into layers of all sizes, not only into those that LocalBlend looks into.
    """

    model: ModelPatcher
    clip: CLIP
    trajectory: Trajectory
    text: str
    words: Sequence[str]
    window: tuple[float, float]
    steps: int
    layers: tuple[float, float]
    every: bool

    @cached_property
    def tokens(self) -> PromptTokens:
        """The prompt as the text encoder sees it."""
        return prompt_tokens(self.clip, self.text)

    @cached_property
    def names(self) -> list[str]:
        """What the maps are of."""
        return list(self.words) or list(dict.fromkeys(w.text for w in self.tokens.words))

    @cached_property
    def conditioning(self) -> Conditioning:
        """The prompt, encoded."""
        return encode_batch(self.clip, [self.text])

    def check(self) -> None:
        """Refuse what cannot be looked at.

        Raises:
            PalimpsestError: In one sentence.
        """
        require_attention(self.model.model, Look.acts_in, "Attention Maps")
        check_trajectory(self.model, self.trajectory)
        if not self.names:
            raise PalimpsestError(
                "The text of Attention Maps is empty: write what the picture shows."
            )
        require_words(self.names, [self.tokens], role="prompt")

    @property
    def look(self) -> Look:
        """What is looked at, of the prompt's tokens."""
        groups = [find_word(name, self.tokens) for name in self.names]
        columns = columns_of(groups, len(self.tokens.ids))
        return Look(columns[None], self.layers, self.every)


def attention_maps(request: ViewRequest) -> tuple[Tensor, Spent]:
    """[B, W, h, w] the map of every word of every picture, in 0..1, and the cost."""
    request.check()
    trajectory, look = request.trajectory, request.look
    coordinates = coordinates_of(request.model, "Attention Maps")
    steps = steps_between(trajectory.steps, request.window, request.steps)
    key, features = features_key(request.model, request.conditioning), trajectory.features
    kept = features if features is not None and features.key == key else None

    def algorithm(session: Session) -> Tensor:
        chain = trajectory.to(session.x0.device)

        def source(hooks: Hooks) -> Denoiser:
            return session.recorder(session.target, hooks)

        def on_step(done: int) -> None:
            session.on_step(done, chain.start, chain.clean)

        maps = view_words(chain, look, source, steps, features=kept, on_step=on_step)
        return maps.float().to(comfy.model_management.intermediate_device())

    guider = BranchGuider(request.model)
    guider.set_conds(request.conditioning, request.conditioning)
    guider.set_source(request.conditioning, request.conditioning)
    guider.set_cfg(1.0)
    levels = host_levels(coordinates, trajectory.sigmas)
    return run(
        guider,
        trajectory.origin,
        levels,
        algorithm,
        coordinates=coordinates,
        total=len(steps),
    )


def heat_pictures(maps: Tensor, pictures: Tensor) -> Tensor:
    """[B * W, H, W, 3] every word over every picture, those of one picture side by side.

    Args:
        maps: [B, W, h, w] in 0..1.
        pictures: [B, H, W, 3] in 0..1.
    """
    over = pictures.repeat_interleave(maps.shape[1], dim=0)
    return heat_over(over, maps.flatten(0, 1))


def heat_sheet(heats: Tensor, pictures: Tensor, names: Sequence[str], text: str) -> Tensor:
    """[1, H, W, 3] a labelled sheet: every picture, and its words.

    Args:
        heats: [B * W, H, W, 3] of `heat_pictures`.
        pictures: [B, H, W, 3] in 0..1.
        names: Of the W words.
        text: Of the prompt, as title.
    """
    shown, labels = [], []
    for picture, own in zip(pictures, heats.chunk(len(pictures)), strict=True):
        cells = [picture, *own]
        filled = -len(cells) % min(ACROSS, len(cells))
        shown += [*cells, *[None] * filled]
        labels += ["picture", *names, *[""] * filled]
    across = min(ACROSS, 1 + len(names))
    rows = [""] * (len(shown) // across)
    return draw_sheet(Sheet(shown, [""] * across, rows, text, captions=labels, empty=""))


def found(maps: Tensor, threshold: float) -> Tensor:
    """[B, 1, h, w] 1 where any word has more than a part of its own largest attention.

    Args:
        maps: [B, W, h, w] in 0..1, the largest value of each 1.
        threshold: That part.
    """
    return (maps > threshold).any(1, keepdim=True).float()
