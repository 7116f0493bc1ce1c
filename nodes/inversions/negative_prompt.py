"""Negative-prompt inversion."""

from typing import Any

from comfy_api.latest import io

from ...hosts.comfy.inversions.negative_prompt import invert_negative_prompt
from ...pipelines.couplings import Convention
from ...pipelines.errors import PalimpsestError
from .shared import (
    SIGMAS_IN,
    UNET_MODEL,
    Asked,
    InvertNode,
    convention_input,
    inversion,
    negative_input,
    picture_inputs,
)

NAME = "Invert (Negative-prompt)"


INTERPOLATION = io.Float.Input(
    "interpolation",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="0 pushes away from the picture's own description (the published "
    "method), 1 from the negative, as Invert (DDIM) does; between lies a mixture.",
)


class InvertNegativePrompt(InvertNode):
    """DDIM inversion whose edits take the source prompt for their negative one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertNegativePrompt",
            display_name=NAME,
            description="Traces a picture back to noise, and lets Edit push away from what the "
            "picture shows instead of from the negative prompt: only what the two prompts tell "
            "apart is changed.",
            search_aliases=["npi", "negative prompt inversion", "proxnpi", "null-text", "invert"],
            inputs=[
                *picture_inputs(model=UNET_MODEL),
                INTERPOLATION,
                convention_input(),
                SIGMAS_IN,
                negative_input("Only needed where interpolation is above 0."),
            ],
        )

    @classmethod
    def invert(cls, interpolation: float, convention: Convention, **wires: Any) -> io.NodeOutput:
        asked = Asked(**wires)
        if interpolation and asked.negative is None:
            raise PalimpsestError(
                f"The interpolation is {interpolation}, which needs a negative: connect one, or "
                "set it to 0."
            )
        made = invert_negative_prompt(
            asked.picture(NAME), interpolation=interpolation, convention=convention
        )
        return asked.inverted(*made)


NODES = [InvertNegativePrompt]
