"""EDICT: inversion by two coupled chains."""

from functools import partial
from typing import Any

from comfy_api.latest import io

from ...hosts.comfy.inversions.picture import invert
from ...pipelines.inversion.edict import couple
from .shared import (
    ANY_MODEL,
    SIGMAS_IN,
    Asked,
    InvertNode,
    inversion,
    negative_input,
    picture_inputs,
)

NAME = "Invert (EDICT)"


CFG = io.Float.Input(
    "cfg",
    default=3.0,
    min=0.0,
    max=30.0,
    step=0.1,
    tooltip="Guidance while inverting; 3 is the published choice. Set that of Edit "
    "to the same number. Needs the negative where it is not 1.",
)
MIXING = io.Float.Input(
    "mixing",
    default=0.93,
    min=0.5,
    max=1.0,
    step=0.01,
    tooltip="How far the two chains may part: lower holds them together, and "
    "makes the stages noisier; 1 lets them go. 0.93 is the published choice.",
    advanced=True,
)


class InvertEDICT(InvertNode):
    """Exact inversion under guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertEDICT",
            display_name=NAME,
            description="Traces a picture back to noise along two coupled chains, which makes the "
            "way back exact also under guidance. Edit follows both.",
            search_aliases=["edict", "exact inversion", "coupled transformations", "invert image"],
            inputs=[
                *picture_inputs(model=ANY_MODEL, strength=0.8),
                CFG,
                MIXING,
                SIGMAS_IN,
                negative_input(
                    "What Edit gets as its negative; an empty prompt is usual. Needed where cfg "
                    "is not 1."
                ),
            ],
        )

    @classmethod
    def invert(cls, cfg: float, mixing: float, **wires: Any) -> io.NodeOutput:
        asked = Asked(**wires)
        picture = asked.picture(NAME, cfg=cfg)
        return asked.inverted(*invert(picture, partial(couple, mixing=mixing)))


NODES = [InvertEDICT]
