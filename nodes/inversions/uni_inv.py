"""Uni-Inv: one call a stage, and edits that ask the model where the inversion did."""

from typing import Any

from comfy_api.latest import io

from ...hosts.comfy.inversions.picture import invert
from ...pipelines.inversion.uni_inv import uni_inv
from .shared import (
    ANY_MODEL,
    SIGMAS_IN,
    Asked,
    InvertNode,
    inversion,
    negative_input,
    picture_inputs,
)

NAME = "Invert (Uni-Inv)"


CFG = io.Float.Input(
    "cfg",
    default=1.0,
    min=0.0,
    max=30.0,
    step=0.1,
    tooltip="Guidance while inverting. 1 is the published choice; with the cfg of Edit only what "
    "the words change is pushed. Needs the negative where it is not 1.",
)


class InvertUniInv(InvertNode):
    """Inversion that asks ahead."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertUniInv",
            display_name=NAME,
            description="Traces a picture back to noise with one call of the model a stage, and "
            "remembers where it asked: Edit asks there again, so that the picture stays exact and "
            "costs nothing more.",
            search_aliases=[
                "uni-inv",
                "uniedit",
                "uniedit-flow",
                "directedit",
                "rf inversion",
                "unsampler",
                "invert image",
            ],
            inputs=[
                *picture_inputs(model=ANY_MODEL, strength=0.6),
                CFG,
                SIGMAS_IN,
                negative_input("Only needed where cfg is not 1."),
            ],
        )

    @classmethod
    def invert(cls, cfg: float, **wires: Any) -> io.NodeOutput:
        asked = Asked(**wires)
        return asked.inverted(*invert(asked.picture(NAME, cfg=cfg), uni_inv))


NODES = [InvertUniInv]
