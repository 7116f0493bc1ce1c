"""The last inversion of a picture, for as long as ComfyUI keeps the picture's latent.

ComfyUI runs a node again when anything before it in the graph has changed, whether or not what
arrives is the same: a conditioning that comes from Prompt-to-Prompt is made anew with every target,
and is the source's all the same. An inversion depends on what arrives, and asks for that here.

What is remembered hangs on the latent and goes with it: it is at most one result a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import ReferenceType, ref

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..fingerprint import conditioning_key

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Question:
    """All that an inversion was asked besides its picture.

    Attributes:
        model: The model; ComfyUI hands on the same object while nothing before it has changed.
        rest: Every other input by name: numbers and words, tensors, keys of conditionings.
    """

    model: ReferenceType[ModelPatcher]
    rest: Mapping[str, Any]

    def same(self, other: Question) -> bool:
        """Whether the answer to one is the answer to the other."""
        alike = self.model() is not None and self.model() is other.model()
        return (
            alike
            and self.rest.keys() == other.rest.keys()
            and all(_same(value, other.rest[name]) for name, value in self.rest.items())
        )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    return type(one) is type(other) and one == other


#: By the samples of a LATENT: of each method the last question, and its answer.
_LAST: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remembered(
    method: str, wires: Mapping[str, Any], invert: Callable[[], Result]
) -> tuple[Result, bool]:
    """What an inversion gives, and whether it was known.

    Args:
        method: Its name.
        wires: Its inputs by name; the picture is `latent`.
        invert: Does it.
    """
    question = _question(wires)
    if question is None:
        return invert(), False
    samples = wires["latent"]["samples"]
    known = _LAST.get(samples, {}).get(method)
    if known is not None and known[0].same(question):
        return known[1], True
    made = invert()
    _LAST.setdefault(samples, {})[method] = (question, made)
    return made, False


def _question(wires: Mapping[str, Any]) -> Question | None:
    """What an inversion is asked, or None where something has no name to go by."""
    rest = {}
    for name, value in wires.items():
        if name == "model":
            continue
        if name == "latent":
            rest[name] = {key: held for key, held in value.items() if key != "samples"}
            if any(isinstance(held, Tensor) for held in rest[name].values()):
                return None
        elif name in ("positive", "negative"):
            rest[name] = "" if value is None else conditioning_key(value)
            if value is not None and not rest[name]:
                return None
        elif value is None or isinstance(value, bool | int | float | str | Tensor):
            rest[name] = value
        else:
            return None
    return Question(ref(wires["model"]), rest)
