"""The node of CycleDiffusion."""

from comfy_api.latest import io

from ...hosts.comfy.inversions.noise_space import invert_noise
from ...pipelines.inversion.noise_space import CYCLE_ETA, cycle_diffusion
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

ETA = io.Float.Input(
    "eta",
    default=CYCLE_ETA,
    min=0.01,
    max=1.0,
    step=0.01,
    tooltip="How much fresh noise each step adds: 0.1 is the published choice, 1 "
    "forgives as much as Cycle-SDE does.",
)


class InvertCycleDiffusion(Node):
    """CycleDiffusion: noise led back to the picture by steps that know it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInvertCycleDiffusion",
            display_name="Invert (CycleDiffusion)",
            category=CATEGORY,
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
        eta,
        source_cfg,
        seed,
        source_batch,
        sigmas=None,
        negative=None,
    ) -> io.NodeOutput:
        need_negative(source_cfg, negative, "source_cfg")
        picture = picture_of(
            "Invert (CycleDiffusion)",
            model,
            positive,
            negative,
            latent,
            (steps, scheduler, strength),
            sigmas,
            cfg=source_cfg,
        )
        trajectory, spent = invert_noise(
            picture, cycle_diffusion(eta), seed=seed, levels_at_once=source_batch
        )
        return inverted(model, trajectory, spent)


NODES = [InvertCycleDiffusion]
