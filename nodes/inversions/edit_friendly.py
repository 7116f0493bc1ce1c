"""The node of Edit-Friendly DDPM inversion."""

from comfy_api.latest import io

from ...hosts.comfy.inversions.noise_space import below_skip, invert_noise
from ...hosts.comfy.schedules import schedule
from ...pipelines.inversion.noise_space import EDIT_FRIENDLY
from ..border import Node
from ..inputs import cfg_input, levels_at_once_input, seed_input
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

SKIP = io.Int.Input(
    "skip",
    default=12,
    min=0,
    max=999,
    tooltip="Noisiest steps that are left out: more keep more of the picture. The "
    "same idea as strength, counted in steps as the paper does; leave strength at "
    "1.",
)


class InvertEditFriendly(Node):
    """Edit-Friendly DDPM inversion: noise of its own at every stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInvertEditFriendly",
            display_name="Invert (Edit Friendly)",
            category=CATEGORY,
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
            inputs=[
                *picture_inputs(model=ANY_MODEL),
                SKIP,
                cfg_input(
                    1.0,
                    "Guidance of the source. 1 costs half; other values need the negative.",
                    name="source_cfg",
                ),
                seed_input(),
                levels_at_once_input(),
                SIGMAS_IN,
                negative_input("Only needed where source_cfg is not 1."),
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
        skip,
        source_cfg,
        seed,
        source_batch,
        sigmas=None,
        negative=None,
    ) -> io.NodeOutput:
        need_negative(source_cfg, negative, "source_cfg")
        whole = schedule(model, scheduler, steps, strength) if sigmas is None else sigmas
        picture = picture_of(
            "Invert (Edit Friendly)",
            model,
            positive,
            negative,
            latent,
            (steps, scheduler, strength),
            below_skip(whole, skip),
            cfg=source_cfg,
        )
        trajectory, spent = invert_noise(
            picture, EDIT_FRIENDLY, seed=seed, levels_at_once=source_batch
        )
        return inverted(model, trajectory, spent)


NODES = [InvertEditFriendly]
