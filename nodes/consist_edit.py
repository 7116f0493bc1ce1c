"""The node of ConsistEdit."""

from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.edits.bound import BoundControl
from ..pipelines.attention.consist_edit import ConsistEdit
from ..pipelines.attention.things import Things
from .border import Node
from .inputs import BEFORE
from .things import TARGET_WORDS, THRESHOLD, thing_columns
from .wires import Control

STRUCTURE = io.Float.Input(
    "structure",
    default=0.3,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="For this part of the steps shapes and places are the picture's: 1 for another colour "
    "or material, 0.3 for another thing or style, 0.1 where a photo changes too little.",
)
CONTENT = io.Float.Input(
    "content",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.05,
    optional=True,
    tooltip="For this part of the steps looks are the picture's too, everywhere (V injection).",
    advanced=True,
)
START_LAYER = io.Float.Input(
    "start_layer",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.005,
    optional=True,
    tooltip="The part of the network's blocks before those in which it acts. For Flux 0.333 is "
    "published: its single blocks alone.",
    advanced=True,
)
END_LAYER = io.Float.Input(
    "end_layer",
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.005,
    optional=True,
    tooltip="The part of the network's blocks after which it acts no more.",
    advanced=True,
)
WORDS = io.String.Input(
    "words",
    default="",
    optional=True,
    tooltip="What is edited, as the source says it: all else keeps its looks and shapes to the "
    "end. Needs Prompt-to-Prompt below, whose windows may be 0. Empty, and without a mask: nothing "
    "is kept after structure.",
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="Where the edit is, white, in place of what the words find: all else keeps its looks "
    "and shapes to the end.",
)


class ConsistEditNode(Node):
    """ConsistEdit: structure and looks of a picture in a transformer, apart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestConsistEdit",
            display_name="ConsistEdit",
            category="palimpsest/control",
            description="For Flux, SD 3, Qwen-Image and their like: keeps shapes and places of the "
            "picture for a part of the steps, and all that is not edited in all of them. Gives the "
            "control to Edit.",
            search_aliases=[
                "consistedit",
                "attention control",
                "flux attention",
                "mm-dit",
                "keep structure",
                "change color",
                "change material",
                "v injection",
                "rf-solver edit",
            ],
            inputs=[
                STRUCTURE,
                WORDS,
                TARGET_WORDS,
                CONTENT,
                START_LAYER,
                END_LAYER,
                THRESHOLD,
                BEFORE,
                MASK,
            ],
            outputs=[Control.Output(display_name="control", tooltip="For Edit's control input.")],
        )

    @classmethod
    def run(
        cls,
        structure: float,
        words: str = "",
        target_words: str = "",
        content: float = 0.0,
        start_layer: float = 0.0,
        end_layer: float = 1.0,
        threshold: float = 0.1,
        control: BoundControl | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        columns = thing_columns(control, words, target_words, "ConsistEdit")
        known = columns is not None or mask is not None
        things = Things(columns, threshold, mask) if known else None
        layers = start_layer, end_layer
        own = ConsistEdit((0.0, structure), (0.0, content), layers, things)
        return io.NodeOutput(BoundControl(own, name="ConsistEdit").on(control))


NODES = [ConsistEditNode]
