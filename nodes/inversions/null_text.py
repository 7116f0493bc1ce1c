"""Null-text inversion as a node."""

from typing import Any

from comfy_api.latest import io

from ...hosts.comfy.inversions.null_text import invert_null_text
from ...pipelines.inversion.null_text import NullText
from .shared import SIGMAS_IN, UNET_MODEL, Asked, InvertNode, inversion, picture_inputs

NAME = "Invert (Null-text)"

NEGATIVE = io.Conditioning.Input(
    "negative", tooltip="Where the learning starts: an empty prompt is usual."
)
CFG = io.Float.Input(
    "cfg",
    default=7.5,
    min=0.0,
    max=100.0,
    step=0.1,
    tooltip="The cfg that the Edit shall have: what is learned holds for it alone.",
)
INNER_STEPS = io.Int.Input(
    "inner_steps",
    default=10,
    min=0,
    max=1000,
    tooltip="At most so many optimiser steps per stage; each costs about four model calls.",
)
VARIANT = io.Combo.Input(
    "variant",
    options=["null-text", "source only", "null-latent"],
    tooltip="null-text: the target reads what was learned too. source only: the "
    "target keeps the negative. null-latent: the source's stages alone are kept; "
    "the edit's cfg is then free.",
)
EARLY_STOP_EPSILON = io.Float.Input(
    "early_stop_epsilon",
    display_name="stop_below",
    default=1e-5,
    min=0.0,
    max=1.0,
    step=1e-6,
    round=1e-7,
    tooltip="The error at which a stage is good enough; higher is faster.",
    advanced=True,
)


class InvertNullText(InvertNode):
    """Null-text inversion, and its two ablations."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertNullText",
            display_name=NAME,
            description="Traces a picture back to noise, and learns for every stage what the empty "
            "prompt must be so that the way down leads back to the picture. Slow to invert; then "
            "Edit works along it as along any other trajectory.",
            search_aliases=[
                "null text inversion",
                "null-text optimization",
                "nti",
                "null-latent",
                "real image editing",
                "invert image",
            ],
            inputs=[
                *picture_inputs(model=UNET_MODEL),
                NEGATIVE,
                CFG,
                INNER_STEPS,
                VARIANT,
                EARLY_STOP_EPSILON,
                SIGMAS_IN,
            ],
        )

    @classmethod
    def invert(
        cls,
        cfg: float,
        inner_steps: int,
        variant: str,
        early_stop_epsilon: float,
        **wires: Any,
    ) -> io.NodeOutput:
        asked = Asked(**wires)
        settings = NullText(cfg, inner_steps, early_stop_epsilon)
        picture = asked.picture(NAME)
        trajectory, spent, learned = invert_null_text(picture, settings, variant=variant)
        told = f"{learned.inner_steps} optimiser steps, loss {learned.loss:.2g}"
        return asked.inverted(trajectory, spent, told)


NODES = [InvertNullText]
