"""Uni-Inv: one call a stage, and edits that ask the model where the inversion did."""

from comfy_api.latest import io

from ...hosts.comfy.inversions.picture import invert
from ...pipelines.inversion.uni_inv import uni_inv
from .shared import (
    ANY_MODEL,
    CATEGORY,
    SIGMAS_IN,
    inverted,
    need_negative,
    negative_input,
    outputs,
    picture_inputs,
    picture_of,
)

NAME = "Invert (Uni-Inv)"


class InvertUniInv(io.ComfyNode):
    """Inversion that asks ahead."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInvertUniInv",
            display_name=NAME,
            category=CATEGORY,
            description="Traces a picture back to noise with one call of the model a stage, and "
            "remembers where it asked: Edit asks there again, so that the picture stays exact and "
            "costs nothing more.",
            search_aliases=["uni-inv", "uniedit", "uniedit-flow", "directedit", "invert image"],
            inputs=[
                *picture_inputs(model=ANY_MODEL, strength=0.6),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance while inverting. 1 is the published choice; with the cfg of "
                    "Edit only what the words change is pushed. Needs the negative where it is "
                    "not 1.",
                ),
                SIGMAS_IN,
                negative_input("Only needed where cfg is not 1."),
            ],
            outputs=outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent,
        steps,
        scheduler,
        strength,
        cfg,
        sigmas=None,
        negative=None,
    ) -> io.NodeOutput:
        need_negative(cfg, negative)
        levels = (steps, scheduler, strength)
        picture = picture_of(NAME, model, positive, negative, latent, levels, sigmas, cfg=cfg)
        return inverted(model, *invert(picture, uni_inv))


NODES = [InvertUniInv]
