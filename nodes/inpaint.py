"""The node that paints a masked part anew by SDE or ODE."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..hosts.comfy.edits.sdedit import SDEditRequest, paint_anew
from ..hosts.comfy.latents import batch_index_of, samples_of, with_samples
from ..hosts.comfy.refusals import refuse_noise_mask
from ..hosts.comfy.schedules import schedule
from .border import Node
from .inputs import (
    LATENT_OUT,
    PROCESSES,
    cfg_input,
    process_input,
    scheduler_input,
    seed_input,
    told,
)

CATEGORY = "palimpsest/sde"
NAME = "Inpaint (SDE / ODE)"


STEPS = io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps that are walked.")
STRENGTH = io.Float.Input(
    "strength",
    default=1.0,
    min=0.01,
    max=1.0,
    step=0.01,
    tooltip="1 begins with pure noise; less lets what is there show through.",
)
ORDER = io.Combo.Input(
    "order",
    options=["1", "2"],
    tooltip="1: DDIM and its SDE. 2: DPM-Solver++ (2M) and its SDE, finer; as sde "
    "it needs 25 steps or more, or karras.",
)


class Inpaint(Node):
    """Painting a masked region anew by SDE or ODE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInpaint",
            display_name=NAME,
            category=CATEGORY,
            description="Paints the white part of a mask anew and keeps the rest of the latent as "
            "it is, number for number, by the SDE or the ODE, in steps of order 1 or 2.",
            search_aliases=[
                "inpaint",
                "sde inpainting",
                "dpm++ 2m sde",
                "fill mask",
                "repaint",
                "remove object",
                "replace object",
                "paint over",
                "generative fill",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A plain model; no inpainting model is needed."),
                io.Conditioning.Input("positive", tooltip="What the picture shall show."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Mask.Input("mask", tooltip="White where it is painted anew."),
                STEPS,
                scheduler_input("normal", "How the steps are spread."),
                STRENGTH,
                cfg_input(7.5),
                process_input(),
                ORDER,
                seed_input(),
            ],
            outputs=[LATENT_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        steps: int,
        scheduler: str,
        strength: float,
        process: str,
        order: str,
        **asked: Any,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, NAME)
        request = SDEditRequest(
            model,
            **asked,
            samples=samples_of(model, latent),
            levels=schedule(model, scheduler, steps, strength),
            eta=PROCESSES[process],
            order=int(order),
            wipe=strength == 1,
            feature=NAME,
            batch_index=batch_index_of(latent),
        )
        painted, spent = paint_anew(request)
        return io.NodeOutput(with_samples(latent, painted), ui=told(spent, len(request.levels) - 1))


NODES = [Inpaint]
