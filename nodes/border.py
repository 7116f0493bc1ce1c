"""The border of the pack: what every node has checked before it runs, and before it is believed."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any

from comfy_api.latest import io

from ..pipelines.errors import PalimpsestError
from .accepted import WIRES, all_finite, check
from .notices import notices
from .wires import Control

#: What is made of prompts alone.
PROMPTED = (Control.io_type, io.Conditioning.io_type)
#: The likely cause where a model ran, and what to do.
OVERFLOW = (
    "the model overflowed, as half precision does, or the guidance or a weight is too high; lower "
    "cfg and weights, or run the model in bfloat16 or float32"
)


class Node(io.ComfyNode):
    """A node whose inputs are held to its own schema, and whose results to being numbers.

    A node of the pack says in `define_schema` what it takes and in `run` what it does with it.
    """

    @classmethod
    @abstractmethod
    def run(cls, **inputs: Any) -> io.NodeOutput:
        """Do the node's work on inputs that were checked."""
        raise NotImplementedError

    @classmethod
    def execute(cls, *wires: Any, **inputs: Any) -> io.NodeOutput:
        """What ComfyUI calls: check, run, check.

        Raises:
            PalimpsestError: In one sentence, naming the input or the output.
        """
        schema = cls.FINALIZE_SCHEMA()
        names = [wanted.id for wanted in schema.inputs]
        given = {**dict(zip(names, wires, strict=False)), **inputs}
        cls._check_inputs(schema, given)
        made = cls.run(**given)
        _check_outputs(schema, made)
        return _with_notices(made, notices(schema, given))

    @classmethod
    def _check_inputs(cls, schema: io.Schema, given: dict[str, Any]) -> None:
        # As in core, a node that validates a choice itself is not held to the list.
        own = inspect.signature(cls.validate_inputs).parameters
        for wanted in schema.inputs:
            if wanted.id in given:
                check(wanted, given[wanted.id], listed=wanted.id not in own)


def _with_notices(made: io.NodeOutput, told: list[str]) -> io.NodeOutput:
    """Show sentences below what a node tells of its run."""
    if not told:
        return made
    shown = made.ui if isinstance(made.ui, dict) else made.ui.as_dict() if made.ui else {}
    lines = [*shown.get("palimpsest_text", []), *(f"Note: {each}" for each in told)]
    made.ui = shown | {"palimpsest_text": lines}
    return made


def _check_outputs(schema: io.Schema, made: io.NodeOutput) -> None:
    """Refuse to hand on what is not finite, as if it were a result."""
    for output, value in zip(schema.outputs, made.args, strict=False):
        if not all_finite(value):
            cause = WIRES[output.io_type].broken if output.io_type in PROMPTED else OVERFLOW
            raise PalimpsestError(
                f"{schema.display_name} made a {output.display_name} with NaN or infinity in it: "
                f"{cause}."
            )
