"""Nodes that make an attention control."""

from typing import Any

from comfy.sd import CLIP
from comfy_api.latest import io

from ..hosts.comfy.edits.edit import BoundControl
from ..hosts.comfy.words import encode_batch, prompt_tokens
from ..pipelines.attention.bank import Control as AnyControl
from ..pipelines.attention.masactrl import MasaCtrl
from ..pipelines.attention.plug_and_play import PlugAndPlay
from ..pipelines.attention.prompt_batch import rewrite_prompts
from ..pipelines.attention.prompt_to_prompt import Mode, parse_weights, rewrite_prompt
from ..pipelines.attention.tokens import PromptTokens
from ..pipelines.errors import PalimpsestError
from .border import Node
from .wires import Control

SOURCE = io.String.Input(
    "source",
    multiline=True,
    default="a red heart on grass",
    tooltip="What the picture shows now; the same text as for Invert.",
)
TARGET = io.String.Input(
    "target",
    multiline=True,
    default="a blue heart on grass",
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
ONE_PER_LINE = io.Boolean.Input(
    "one_per_line",
    default=False,
    optional=True,
    tooltip="Every line of target is a prompt of its own: Edit makes all of them "
    "at once, as a batch, from one picture.",
    advanced=True,
)
START = io.Float.Input(
    "start",
    default=0.08,
    min=0.0,
    max=1.0,
    step=0.02,
    tooltip="The part of the steps before looks are taken from the picture: the prompt lays the "
    "picture out in it. Raise it where the pose does not change.",
)
START_LAYER = io.Float.Input(
    "start_layer",
    default=0.625,
    min=0.0,
    max=1.0,
    step=0.005,
    tooltip="The part of the network's layers before that: 0.625 is layer 10 of SD 1.x's 16 and 44 "
    "of SDXL's 70. Lower keeps more of the picture, also of its layout.",
)
UNION = io.Boolean.Input(
    "union",
    default=False,
    optional=True,
    tooltip="Look at the new picture beside the old one: for what the picture does not have.",
    advanced=True,
)
ATTENTION_WINDOW = io.Float.Input(
    "attention_window",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="For this part of the steps every place looks at what it looked at in the picture. "
    "Higher keeps more of the shapes.",
)
FEATURE_WINDOW = io.Float.Input(
    "feature_window",
    default=0.8,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="For this part of the steps one layer holds what it held for the picture. Higher keeps "
    "more of what is where.",
)
FIRST_LAYER = io.Float.Input(
    "start_layer",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="The part of the network's layers before those of attention_window: 0.5 takes layers 8 "
    "to 15 of SD 1.x's 16. Lower keeps more.",
    advanced=True,
)
BLOCK = io.Float.Input(
    "block",
    default=0.64,
    min=0.0,
    max=0.99,
    step=0.01,
    tooltip="Which layer feature_window is about, as a part of all residual blocks: 0.64 is number "
    "14 of SD 1.x's 22. Lower is coarser, higher keeps more of the looks too.",
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
            ],
            outputs=[
                Control.Output(display_name="control", tooltip="For Edit's control input."),
                io.Conditioning.Output(
                    display_name="source",
                    tooltip="For Edit's source. Invert takes a CLIP Text Encode of the same text: "
                    "then it need not run again when the target changes.",
                ),
                io.Conditioning.Output(display_name="target", tooltip="For Edit's target."),
            ],
        )

    @classmethod
    def run(
        cls,
        clip: CLIP,
        source: str,
        target: str,
        weights: str = "",
        one_per_line: bool = False,
        **wishes: Any,
    ) -> io.NodeOutput:
        prompts = _lines(target) if one_per_line else [target]
        words, *targets = (prompt_tokens(clip, text) for text in (source, *prompts))
        control = _control(words, targets, parse_weights(weights), **wishes)
        before, after = encode_batch(clip, [source]), encode_batch(clip, prompts)
        bound = BoundControl(control, before[0][0], after[0][0], "Prompt-to-Prompt")
        return io.NodeOutput(bound, before, after)


def _control(
    words: PromptTokens,
    targets: list[PromptTokens],
    weights: dict[str, float],
    mode: Mode,
    cross_window: float,
    self_window: float,
) -> AnyControl:
    """The control of one target prompt, or of several at once."""
    wishes = {
        "mode": mode,
        "cross_window": (0.0, cross_window),
        "self_window": (0.0, self_window),
        "weights": weights,
    }
    if len(targets) > 1:
        return rewrite_prompts(words, targets, **wishes)
    return rewrite_prompt(words, targets[0], **wishes)


def _lines(text: str) -> list[str]:
    """The prompts of a text that has one on each line."""
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise PalimpsestError(
            "The target has no line with a prompt: write one prompt per line, or set one_per_line "
            "off to edit with an empty prompt."
        )
    return prompts


class MasaCtrlNode(Node):
    """MasaCtrl: change what a thing does, keep what it looks like."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestMasaCtrl",
            display_name="MasaCtrl",
            category="palimpsest/control",
            description="Lets pose and shape follow the target prompt and takes the looks, colours "
            "and textures, from the picture. Gives the control to Edit.",
            search_aliases=[
                "masactrl",
                "mutual self-attention",
                "attention control",
                "non-rigid edit",
                "change pose",
                "real image editing",
            ],
            inputs=[START, START_LAYER, UNION],
            outputs=[Control.Output(display_name="control", tooltip="For Edit's control input.")],
        )

    @classmethod
    def run(cls, start: float, start_layer: float, union: bool = False) -> io.NodeOutput:
        control = MasaCtrl((start, 1.0), (start_layer, 1.0), union)
        return io.NodeOutput(BoundControl(control, name="MasaCtrl"))


class PlugAndPlayNode(Node):
    """Plug-and-Play: keep the structure of a picture, paint everything else anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestPlugAndPlay",
            display_name="Plug-and-Play",
            category="palimpsest/control",
            description="Keeps the structure of the picture, what is where and its outlines, and "
            "lets the target prompt paint all of it anew. Gives the control to Edit.",
            search_aliases=[
                "pnp",
                "plug and play",
                "diffusion features",
                "attention control",
                "style change",
                "image-to-image translation",
            ],
            inputs=[ATTENTION_WINDOW, FEATURE_WINDOW, FIRST_LAYER, BLOCK],
            outputs=[Control.Output(display_name="control", tooltip="For Edit's control input.")],
        )

    @classmethod
    def run(
        cls, attention_window: float, feature_window: float, start_layer: float, block: float
    ) -> io.NodeOutput:
        windows = (0.0, attention_window), (0.0, feature_window)
        control = PlugAndPlay(*windows, (start_layer, 1.0), block)
        return io.NodeOutput(BoundControl(control, name="Plug-and-Play"))


NODES = [PromptToPrompt, MasaCtrlNode, PlugAndPlayNode]
