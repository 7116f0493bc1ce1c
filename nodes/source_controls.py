"""Nodes whose control takes looks or structure from the picture, whatever its words."""

from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.edits.bound import BoundControl
from ..pipelines.attention.masactrl import MasaCtrl
from ..pipelines.attention.plug_and_play import PlugAndPlay
from ..pipelines.attention.things import Things
from .border import Node
from .inputs import BEFORE
from .things import TARGET_WORDS, THRESHOLD, thing_columns
from .wires import Control

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
WORDS = io.String.Input(
    "words",
    default="",
    optional=True,
    tooltip="What is told from its background, as the source says it: it takes its looks from "
    "itself, and the background from the background. Needs Prompt-to-Prompt below, whose windows "
    "may be 0. Empty, and without a mask: both look anywhere.",
    advanced=True,
)
MASK = io.Mask.Input(
    "mask", optional=True, tooltip="The thing in the picture, in place of what the words find."
)
TARGET_MASK = io.Mask.Input(
    "target_mask",
    optional=True,
    tooltip="Where it shall be. Without it: where target_words find it, else where the mask is.",
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
                "change shape",
                "keep identity",
                "real image editing",
            ],
            inputs=[
                START,
                START_LAYER,
                UNION,
                WORDS,
                TARGET_WORDS,
                THRESHOLD,
                BEFORE,
                MASK,
                TARGET_MASK,
            ],
            outputs=[Control.Output(display_name="control", tooltip="For Edit's control input.")],
        )

    @classmethod
    def run(
        cls,
        start: float,
        start_layer: float,
        union: bool = False,
        words: str = "",
        target_words: str = "",
        threshold: float = 0.1,
        control: BoundControl | None = None,
        mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        columns = thing_columns(control, words, target_words, "MasaCtrl")
        looks = columns is not None or mask is not None or target_mask is not None
        things = Things(columns, threshold, mask, target_mask) if looks else None
        own = MasaCtrl((start, 1.0), (start_layer, 1.0), union, things)
        return io.NodeOutput(BoundControl(own, name="MasaCtrl").on(control))


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
                "style transfer",
                "style change",
                "restyle",
                "keep structure",
                "image-to-image translation",
            ],
            inputs=[ATTENTION_WINDOW, FEATURE_WINDOW, FIRST_LAYER, BLOCK, BEFORE],
            outputs=[Control.Output(display_name="control", tooltip="For Edit's control input.")],
        )

    @classmethod
    def run(
        cls,
        attention_window: float,
        feature_window: float,
        start_layer: float,
        block: float,
        control: BoundControl | None = None,
    ) -> io.NodeOutput:
        windows = (0.0, attention_window), (0.0, feature_window)
        own = PlugAndPlay(*windows, (start_layer, 1.0), block)
        return io.NodeOutput(BoundControl(own, name="Plug-and-Play").on(control))


NODES = [MasaCtrlNode, PlugAndPlayNode]
