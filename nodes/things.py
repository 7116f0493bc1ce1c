"""What nodes of controls that tell a thing from its background have in common."""

from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.edits.bound import BoundControl
from ..pipelines.attention.local_blend import blend_columns
from ..pipelines.attention.word_values import named
from ..pipelines.errors import PalimpsestError

TARGET_WORDS = io.String.Input(
    "target_words",
    default="",
    optional=True,
    tooltip="The same as the target says it. Empty: the same words.",
    advanced=True,
)
THRESHOLD = io.Float.Input(
    "threshold",
    default=0.1,
    min=0.0,
    max=1.0,
    step=0.05,
    optional=True,
    tooltip="How much of the strongest attention to the words a place needs to belong to them.",
    advanced=True,
)


def thing_columns(
    control: BoundControl | None, words: str, target_words: str, name: str
) -> tuple[Tensor, Tensor] | None:
    """Indicators of the words in the source prompt, and in the target prompts; None without any.

    Args:
        control: Below, which knows the prompts.
        words: As the source says the thing; several with commas between them.
        target_words: As the target says it; "" the same words.
        name: Of the node, for messages.

    Raises:
        PalimpsestError: If there are words and nothing to look for them in, or one is in no prompt.
    """
    own, wanted = named(words), named(target_words)
    if not own and not wanted:
        return None
    if not own:
        raise PalimpsestError(
            f"{name} has target_words, but no words: name the thing in words as the source prompt "
            "says it."
        )
    if control is None or control.words is None:
        raise PalimpsestError(
            f"{name} looks for words, but knows no prompts: connect Prompt-to-Prompt to its "
            "control (with cross_window and self_window at 0 it only brings the words), or leave "
            "words empty."
        )
    asked = (
        ([control.words.source], own, "source"),
        (control.words.targets, wanted or own, "target"),
    )
    return tuple(
        blend_columns(prompts, found, [], role=f"{role} prompt")[..., :1]
        for prompts, found, role in asked
    )
