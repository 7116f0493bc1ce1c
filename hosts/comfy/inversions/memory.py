"""The last inversion by a model, for as long as ComfyUI keeps the model.

ComfyUI runs a node again when anything before it in the graph has changed, whether or not what
arrives is the same: a conditioning that comes from Prompt-to-Prompt is made anew with every target,
a picture that comes from Demo Scene with every edit of it, and both are the source's all the same.
An inversion depends on what arrives, and asks for that here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch.utils.weak import WeakIdKeyDictionary

from ..fingerprint import digest_of

Result = TypeVar("Result")

#: Bytes at most of what is kept for a next run: 20 times a trajectory of SDXL at 1024 px.
LARGEST_KEPT = 2**28

#: By model, of each method the last question and its answer. A model that ComfyUI has dropped, as
#: it does when anything before it changes, takes them along.
_LAST: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remembered(
    method: str,
    wires: Mapping[str, Any],
    invert: Callable[[], Result],
    is_small: Callable[[Result], bool],
) -> tuple[Result, bool]:
    """What an inversion gives, and whether it was known.

    Args:
        method: Its name.
        wires: Its inputs by name; one of them is the `model`.
        invert: Does it.
        is_small: Whether a result may be kept.
    """
    question = digest_of({name: value for name, value in wires.items() if name != "model"})
    if not question:
        return invert(), False  # something has no name to go by
    answers = _LAST.setdefault(wires["model"], {})
    if answers.get(method, ("", None))[0] == question:
        return answers[method][1], True
    answers.pop(method, None)  # its memory is free for the next one
    made = invert()
    if is_small(made):
        answers[method] = (question, made)
    return made, False
