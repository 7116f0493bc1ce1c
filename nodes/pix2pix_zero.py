"""The node of pix2pix-zero."""

from comfy.sd import CLIP
from comfy_api.latest import io

from ..hosts.comfy.directions import directed
from ..hosts.comfy.edits.bound import BoundControl
from ..pipelines.attention.pix2pix_zero import Pix2PixZero
from .border import Node
from .control import SHALL_SHOW, SOURCE
from .wires import Control

TARGET = io.String.Input(
    "target",
    multiline=True,
    default="",
    placeholder=SHALL_SHOW,
    tooltip="What it shall show. Not read where target_sentences are given.",
)
XA_GUIDANCE = io.Float.Input(
    "xa_guidance",
    default=0.1,
    min=0.0,
    max=100.0,
    step=0.01,
    tooltip="How far every step leads attention back to where it was in the picture. Higher keeps "
    "more of the layout, 0 leaves the prompt alone with it.",
)
SOURCE_SENTENCES = io.String.Input(
    "source_sentences",
    multiline=True,
    default="",
    optional=True,
    tooltip="Sentences about what changes, as it is now, one per line. Empty: the source prompt "
    "is the only one.",
)
TARGET_SENTENCES = io.String.Input(
    "target_sentences",
    multiline=True,
    default="",
    optional=True,
    tooltip="Sentences about it as it shall be, one per line; not as many need be. Empty: the "
    "target prompt is the only one.",
)


class Pix2PixZeroNode(Node):
    """pix2pix-zero: an edit along a direction, led by the picture's attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestPix2PixZero",
            display_name="pix2pix-zero",
            category="palimpsest/control",
            description="Adds a direction to the prompt of the picture, from one prompt to another "
            "or from many sentences to many others, and moves every step so that words look where "
            "they looked. Gives the control and both conditionings to Edit.",
            search_aliases=[
                "pix2pix zero",
                "edit direction",
                "cross attention guidance",
                "attention control",
                "replace object",
                "real image editing",
                "zero-shot image-to-image",
            ],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                SOURCE,
                TARGET,
                XA_GUIDANCE,
                SOURCE_SENTENCES,
                TARGET_SENTENCES,
            ],
            outputs=[
                Control.Output(display_name="control", tooltip="For Edit's control input."),
                io.Conditioning.Output(
                    display_name="source",
                    tooltip="The source prompt: for Edit's source, and for its negative as well.",
                ),
                io.Conditioning.Output(
                    display_name="target",
                    tooltip="The source prompt with the direction added: for Edit's target.",
                ),
            ],
        )

    @classmethod
    def run(
        cls,
        clip: CLIP,
        source: str,
        target: str,
        xa_guidance: float,
        source_sentences: str = "",
        target_sentences: str = "",
    ) -> io.NodeOutput:
        before, after = _lines(source_sentences), _lines(target_sentences)
        conditionings = directed(clip, source, before or [source], after or [target])
        bound = BoundControl(Pix2PixZero(xa_guidance), name="pix2pix-zero")
        return io.NodeOutput(bound, *conditionings)


def _lines(text: str) -> list[str]:
    """The sentences of a text that has one on each line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


NODES = [Pix2PixZeroNode]
