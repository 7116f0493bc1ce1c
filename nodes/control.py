"""Nodes that make an attention control."""

from math import isqrt
from typing import Any

from comfy.sd import CLIP
from comfy_api.latest import io

from ..hosts.comfy.edits.bound import BoundControl, Words
from ..hosts.comfy.words import encode_batch, prompt_tokens
from ..pipelines.attention.control import Control as AnyControl
from ..pipelines.attention.prompt_batch import rewrite_prompts
from ..pipelines.attention.prompt_to_prompt import SELF_PIXELS, Mode, rewrite_prompt
from ..pipelines.attention.tokens import PromptTokens
from ..pipelines.attention.word_values import parse_weights, parse_windows
from ..pipelines.errors import PalimpsestError
from .border import Node
from .inputs import BEFORE
from .wires import Control

#: What an empty target shows.
SHALL_SHOW = "What it shall show: a blue heart on grass"

SOURCE = io.String.Input(
    "source",
    multiline=True,
    default="",
    placeholder="What the picture shows now: a red heart on grass",
    tooltip="What the picture shows now; the same text as for Invert.",
)
TARGET = io.String.Input(
    "target",
    multiline=True,
    default="",
    placeholder=SHALL_SHOW,
    tooltip="What it shall show. Change as few words as you can.",
)
MODE = io.Combo.Input(
    "mode",
    options=["auto", "replace", "refine"],
    default="auto",
    tooltip="replace: word by word, for prompts of equally many words. refine: new "
    "words are added or left out. auto: replace where it can.",
)
CROSS_WINDOW = io.Float.Input(
    "cross_window",
    default=0.4,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="For this part of the steps words look where they looked in the "
    "source: higher keeps more of the layout.",
)
SELF_WINDOW = io.Float.Input(
    "self_window",
    default=0.6,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="For this part of the steps shapes are kept. Lower it to let a shape change.",
)
WEIGHTS = io.String.Input(
    "weights",
    multiline=True,
    default="",
    optional=True,
    tooltip="Strength of single words of the target, one `word: factor` per line, "
    "for example `blue: 2`. They act during the cross window.",
)
WEIGHTS_ALWAYS = io.Boolean.Input(
    "weights_always",
    default=False,
    optional=True,
    tooltip="Let the weights act after the cross window too, to the end.",
    advanced=True,
)
CROSS_START = io.Float.Input(
    "cross_start",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.05,
    optional=True,
    tooltip="Where the cross window begins; it ends at cross_window.",
    advanced=True,
)
SELF_START = io.Float.Input(
    "self_start",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.05,
    optional=True,
    tooltip="Where the part of the steps begins in which shapes are kept; it ends at self_window.",
    advanced=True,
)
SELF_SIZE = io.Int.Input(
    "self_size",
    default=32,
    min=1,
    max=1024,
    optional=True,
    tooltip="Shapes are kept in layers of up to so many places along a side: 32 is published for "
    "pictures of 512 pixels, 16 keeps less.",
    advanced=True,
)
WORD_WINDOWS = io.String.Input(
    "word_windows",
    multiline=True,
    default="",
    optional=True,
    tooltip="A cross window of its own for single words of the target, one `word: end` or "
    "`word: start-end` per line, for example `blue: 0.2-0.8`.",
    advanced=True,
)
ONE_PER_LINE = io.Boolean.Input(
    "one_per_line",
    default=False,
    optional=True,
    tooltip="Every line of target is a prompt of its own: Edit makes all of them "
    "at once, as a batch, from one picture.",
    advanced=True,
)


class PromptToPrompt(Node):
    """Prompt-to-Prompt: rewrite words, keep the layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestPromptToPrompt",
            display_name="Prompt-to-Prompt",
            category="palimpsest/control",
            description="Rewrites words of a prompt so that the picture keeps its layout: the "
            "words that stay look where they looked before. Gives the control and both "
            "conditionings to Edit.",
            search_aliases=[
                "p2p",
                "prompt to prompt",
                "attention control",
                "word swap",
                "change word",
                "change color",
                "recolor",
                "colorize",
                "replace object",
                "edit photo",
                "change background",
                "cross attention control",
                "real image editing",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                SOURCE,
                TARGET,
                MODE,
                CROSS_WINDOW,
                SELF_WINDOW,
                WEIGHTS,
                ONE_PER_LINE,
                WEIGHTS_ALWAYS,
                CROSS_START,
                SELF_START,
                SELF_SIZE,
                WORD_WINDOWS,
                BEFORE,
            ],
            outputs=[
                Control.Output(display_name="control", tooltip="For Edit's control input."),
                io.Conditioning.Output(
                    display_name="source",
                    tooltip="For Edit's source and for Invert's positive, which is not run again "
                    "when only the target changes.",
                ),
                io.Conditioning.Output(display_name="target", tooltip="For Edit's target."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        clip: CLIP,
        source: str,
        target: str,
        one_per_line: bool = False,
        control: BoundControl | None = None,
        **wishes: Any,
    ) -> io.NodeOutput:
        prompts = _lines(target) if one_per_line else [target]
        words, *targets = (prompt_tokens(clip, text) for text in (source, *prompts))
        own = _control(words, targets, **wishes)
        before, after = encode_batch(clip, [source]), encode_batch(clip, prompts)
        known = Words(words, tuple(targets))
        empty = encode_batch(clip, [""])
        bound = BoundControl(own, before[0][0], after[0][0], "Prompt-to-Prompt", known, empty)
        # Prompts that come by wire are known to the page from here on.
        shown = {"palimpsest_prompts": [source, target]}
        return io.NodeOutput(bound.on(control), before, after, ui=shown)


def _control(
    words: PromptTokens,
    targets: list[PromptTokens],
    mode: Mode,
    cross_window: float,
    self_window: float,
    weights: str = "",
    weights_always: bool = False,
    cross_start: float = 0.0,
    self_start: float = 0.0,
    self_size: int = isqrt(SELF_PIXELS),
    word_windows: str = "",
) -> AnyControl:
    """The control of one target prompt, or of several at once."""
    wishes = {
        "mode": mode,
        "cross_window": _window("cross", cross_start, cross_window),
        "self_window": _window("self", self_start, self_window),
        "weights": parse_weights(weights),
        "word_windows": parse_windows(word_windows),
        "self_pixels": self_size**2,
        "weights_always": weights_always,
    }
    if len(targets) > 1:
        return rewrite_prompts(words, targets, **wishes)
    return rewrite_prompt(words, targets[0], **wishes)


def _window(name: str, start: float, end: float) -> tuple[float, float]:
    """A window; it may be empty, but not end before it begins.

    A window that ends at 0 is shut, wherever it was said to begin.
    """
    if start > end > 0:
        raise PalimpsestError(
            f"{name}_start is {start:g}, {name}_window {end:g}: a window must begin before it "
            f"ends; lower {name}_start."
        )
    return min(start, end), end


def _lines(text: str) -> list[str]:
    """The prompts of a text that has one on each line."""
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise PalimpsestError(
            "The target has no line with a prompt: write one prompt per line, or set one_per_line "
            "off to edit with an empty prompt."
        )
    return prompts


NODES = [PromptToPrompt]
