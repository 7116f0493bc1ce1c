"""What a node says of inputs that it takes and that hardly anybody means: a hint, no refusal.

Each is one sentence in the node, below its report; the border looks for them in every node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.cells import cell_size
from ..hosts.comfy.fingerprint import prompt_key
from ..hosts.comfy.masks import is_black, mask_pictures, stretched


def notices(schema: io.Schema, given: Mapping[str, Any]) -> list[str]:
    """One sentence for each input that is hardly what was meant.

    Args:
        schema: Of the node.
        given: Its inputs, which have passed `accepted.check`.
    """
    return [*_of_masks(schema, given), *_of_prompts(schema, given)]


def _of_masks(schema: io.Schema, given: Mapping[str, Any]) -> Iterator[str]:
    size = _picture_size(given)
    for wanted in schema.inputs:
        mask = given.get(wanted.id)
        if wanted.io_type != io.Mask.io_type or mask is None:
            continue
        if is_black(mask):
            then = ": nothing may change" if wanted.id == "mask" and size else ""
            yield (
                f"{wanted.id} is black all over{then}. Paint white where it shall hold (Load "
                "Image's own mask is black where its picture has no transparency)."
            )
        elif size is not None and stretched(mask, size):
            height, width = mask_pictures(mask).shape[1:]
            yield (
                f"{wanted.id} is {width} x {height} and the picture {size[1]} x {size[0]}, which "
                "is of another shape: the mask was stretched over it."
            )


def _picture_size(given: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels of the picture that a node works on; None where it has none."""
    image, latent = given.get("image"), given.get("latent")
    chain, model = given.get("trajectory"), given.get("model")
    if image is not None:
        return tuple(image.shape[1:3])
    if model is None or (latent is None and chain is None):
        return None
    samples: Tensor = latent["samples"] if chain is None else chain.origin
    if samples.ndim < 4:
        return None
    height, width = samples.shape[-2:]
    return height * cell_size(model), width * cell_size(model)


def _of_prompts(schema: io.Schema, given: Mapping[str, Any]) -> Iterator[str]:
    types = {wanted.id: wanted.io_type for wanted in schema.inputs}
    source, target = given.get("source"), given.get("target")
    if types.get("source") == types.get("target") == io.String.io_type:
        if not str(source).strip():
            yield "source is empty: write what the picture shows now."
        if given.get("target_sentences"):
            return  # in place of the target
        if not str(target).strip():
            yield "target is empty: write what the picture shall show."
        elif source == target and not given.get("weights"):
            yield "source and target are the same text: nothing is told to change."
        return
    if types.get("source") != io.Conditioning.io_type or source is None:
        return
    if "control" not in given and target is not None and prompt_key(source) == prompt_key(target):
        yield "source and target are the same prompt: nothing is told to change."
    chain = given.get("trajectory")
    if chain is not None and chain.recipe.prompt not in ("", prompt_key(source)):
        yield (
            "The trajectory was inverted under another prompt than source: connect to both what "
            "the picture shows now."
        )
