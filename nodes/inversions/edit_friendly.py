"""The node of Edit-Friendly DDPM inversion."""

from typing import Any

from comfy_api.latest import io

from ...hosts.comfy.inversions.noise_space import below_skip
from ...pipelines.inversion.noise_space import EDIT_FRIENDLY
from ..inputs import taken
from .shared import ANY_MODEL, Asked, Drawing, InvertNode, inversion, picture_inputs

NAME = "Invert (Edit Friendly)"

SKIP = io.Int.Input(
    "skip",
    default=12,
    min=0,
    max=999,
    tooltip="Noisiest steps that are left out: more keep more of the picture. The "
    "same idea as strength, counted in steps as the paper does; leave strength at "
    "1.",
)


class InvertEditFriendly(InvertNode):
    """Edit-Friendly DDPM inversion: noise of its own at every stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertEditFriendly",
            display_name=NAME,
            description="Turns a picture into noise that holds its layout, drawn rather than "
            "computed: Edit repeats that noise under another prompt. Another seed, another edit.",
            search_aliases=[
                "edit friendly",
                "ddpm inversion",
                "ef-ddpm",
                "ledits",
                "invert image",
                "real image editing",
            ],
            inputs=[*picture_inputs(model=ANY_MODEL), SKIP, *Drawing.inputs()],
        )

    @classmethod
    def invert(cls, skip: int, **wires: Any) -> io.NodeOutput:
        drawing, asked = taken(Drawing, wires), Asked(**wires)
        return drawing.invert(NAME, asked, EDIT_FRIENDLY, below_skip(asked.levels(), skip))


NODES = [InvertEditFriendly]
