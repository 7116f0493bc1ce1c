"""The node that keeps an edit where its words are."""

from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.edits.bound import BoundControl
from ..pipelines.attention.local_blend import Join, LocalBlend, blend_columns
from ..pipelines.attention.tokens import require_words
from ..pipelines.attention.word_values import named
from ..pipelines.errors import PalimpsestError
from .border import Node
from .wires import Control

BEFORE = Control.Input(
    "control",
    tooltip="From Prompt-to-Prompt, or from what was put on it: the words below are those of its "
    "prompts.",
)
WORDS = io.String.Input(
    "words",
    default="heart",
    tooltip="What shall change, as the source says it: words of the source, with commas between "
    "them.",
)
TARGET_WORDS = io.String.Input(
    "target_words",
    default="",
    tooltip="The same as the target says it. Empty: the same words.",
)
LEAVE_OUT = io.String.Input(
    "leave_out",
    default="",
    tooltip="Words of what must not change, though it lies where the others are.",
)
THRESHOLD = io.Float.Input(
    "threshold",
    default=0.3,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="How much of the strongest attention to the words a place needs to be edited: lower "
    "edits more of the picture. The mask that comes out is shown in Edit.",
)
START = io.Float.Input(
    "start",
    default=0.2,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="The part of the steps before the picture is put back around the words: their place "
    "is not yet known in it.",
)
OUT_THRESHOLD = io.Float.Input(
    "leave_out_threshold",
    default=0.3,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="The threshold of the words to leave out.",
    advanced=True,
)
MASK = io.Mask.Input(
    "mask", optional=True, tooltip="A mask of your own, white where the picture may change."
)
JOIN = io.Combo.Input(
    "mask_mode",
    options=["intersection", "union", "replace"],
    tooltip="What becomes of your mask and of what the words find: where both are, where either "
    "is, or yours alone.",
    advanced=True,
)


class LocalBlendNode(Node):
    """LocalBlend: the picture is kept wherever the words of an edit are not."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestLocalBlend",
            display_name="LocalBlend",
            category="palimpsest/control",
            description="Lets an edit change the picture only where the model sees the words that "
            "you name, and keeps all of it elsewhere. Edit shows the mask that it found.",
            search_aliases=[
                "local blend",
                "blend words",
                "local edit",
                "automatic mask",
                "mask from text",
                "attention mask",
                "keep background",
                "background drift",
                "recolor",
                "colorize",
                "prompt to prompt",
            ],
            inputs=[
                BEFORE,
                WORDS,
                TARGET_WORDS,
                LEAVE_OUT,
                THRESHOLD,
                START,
                OUT_THRESHOLD,
                JOIN,
                MASK,
            ],
            outputs=[Control.Output(display_name="control", tooltip="For Edit's control input.")],
        )

    @classmethod
    def run(
        cls,
        control: BoundControl,
        words: str,
        target_words: str,
        leave_out: str,
        threshold: float,
        start: float,
        leave_out_threshold: float,
        mask_mode: Join,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        if control.words is None:
            raise PalimpsestError(
                f"The control comes from {control.name}, which knows no prompts: connect "
                "Prompt-to-Prompt, and put other controls on it."
            )
        looks = mask is None or mask_mode != "replace"
        columns = _columns(control, *map(named, (words, target_words, leave_out)), looks=looks)
        blend = LocalBlend(
            *columns, threshold, leave_out_threshold, start, region=mask, join=mask_mode
        )
        return io.NodeOutput(BoundControl(blend, name="LocalBlend").on(control))


def _columns(
    control: BoundControl, words: list[str], wanted: list[str], leave_out: list[str], *, looks: bool
) -> tuple[Tensor, Tensor]:
    """Indicators of the words in the source prompt, and in the target prompts."""
    if not words and looks:
        raise PalimpsestError(
            "LocalBlend has no words: name what shall change as the source prompt says it, for "
            "example heart, or connect a mask and set mask_mode to replace."
        )
    source, targets = [control.words.source], control.words.targets
    require_words(leave_out, [*source, *targets], role="prompt")
    return (
        blend_columns(source, words, leave_out, role="source prompt"),
        blend_columns(targets, wanted or words, leave_out, role="target prompt"),
    )


NODES = [LocalBlendNode]
