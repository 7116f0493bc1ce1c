"""The node of CycleDiffusion."""

from typing import Any

from comfy_api.latest import io

from ...pipelines.inversion.noise_space import CYCLE_ETA, cycle_diffusion
from ..inputs import taken
from .shared import ANY_MODEL, Asked, Drawing, InvertNode, inversion, picture_inputs

NAME = "Invert (CycleDiffusion)"

ETA = io.Float.Input(
    "eta",
    display_name="sde / ode (eta)",
    default=CYCLE_ETA,
    min=0.01,
    max=1.0,
    step=0.01,
    tooltip="How much fresh noise each step adds: 0.1 is the published choice, 1 "
    "forgives as much as Cycle-SDE does.",
)


class InvertCycleDiffusion(InvertNode):
    """CycleDiffusion: noise led back to the picture by steps that know it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertCycleDiffusion",
            display_name=NAME,
            description="Turns a picture into noise that is drawn once and led back to it in small "
            "steps: Edit repeats them under another prompt. Another seed, another edit.",
            search_aliases=[
                "cyclediffusion",
                "cycle diffusion",
                "dpm encoder",
                "invert image",
                "real image editing",
            ],
            inputs=[
                *picture_inputs(
                    strength=0.8,
                    model=ANY_MODEL,
                ),
                ETA,
                *Drawing.inputs(),
            ],
        )

    @classmethod
    def invert(cls, eta: float, **wires: Any) -> io.NodeOutput:
        drawing = taken(Drawing, wires)
        return drawing.invert(NAME, Asked(**wires), cycle_diffusion(eta))


NODES = [InvertCycleDiffusion]
