"""Negative-prompt inversion."""

from comfy_api.latest import io

from ...hosts.comfy.inversions.negative_prompt import invert_negative_prompt
from ...pipelines.errors import PalimpsestError
from ..border import Node
from .shared import (
    CATEGORY,
    SIGMAS_IN,
    UNET_MODEL,
    convention_input,
    inverted,
    negative_input,
    outputs,
    picture_inputs,
    picture_of,
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


class InvertNegativePrompt(Node):
    """DDIM inversion whose edits take the source prompt for their negative one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInvertNegativePrompt",
            display_name=NAME,
            category=CATEGORY,
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
            outputs=outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        model,
        positive,
        latent,
        steps,
        scheduler,
        strength,
        interpolation,
        convention,
        sigmas=None,
        negative=None,
    ) -> io.NodeOutput:
        if interpolation and negative is None:
            raise PalimpsestError(
                f"The interpolation is {interpolation}, which needs a negative: connect one, or "
                "set it to 0."
            )
        levels = (steps, scheduler, strength)
        picture = picture_of(NAME, model, positive, negative, latent, levels, sigmas)
        trajectory, spent = invert_negative_prompt(
            picture, interpolation=interpolation, convention=convention
        )
        return inverted(model, trajectory, spent)


NODES = [InvertNegativePrompt]
