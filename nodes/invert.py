"""Nodes that turn a picture into the noise it came from."""

import comfy.samplers
from comfy_api.latest import io

from ..hosts.comfy_checks import refuse_noise_mask
from ..hosts.comfy_editing import invert
from ..hosts.comfy_trajectory import noise_of_trajectory, schedule
from ..pipelines.errors import PalimpsestError
from .wires import Trajectory, report


class InvertDDIM(io.ComfyNode):
    """DDIM inversion, plain or refined."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInvertDDIM",
            display_name="Invert (DDIM)",
            category="palimpsest/invert",
            description="Traces a picture back to the noise that the model would paint it from, "
            "and records every stage on the way: the trajectory that Edit works along.",
            search_aliases=[
                "ddim inversion",
                "unsampler",
                "unsample",
                "invert image",
                "real image editing",
                "noise from image",
                "aidi",
                "renoise",
            ],
            inputs=[
                io.Model.Input("model", tooltip="An SD 1.x, SD 2.x or SDXL model, LoRA included."),
                io.Conditioning.Input(
                    "positive", tooltip="Describes the picture as it is now, not as it shall be."
                ),
                io.Latent.Input("latent", tooltip="The picture, encoded by the model's own VAE."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="Stages on the way up. More are more exact and cost more time.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="ddim_uniform",
                    tooltip="How the stages are spread: ddim_uniform is the published grid. Not "
                    "read if sigmas are connected.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How far up: 1 goes to pure noise, 0.6 keeps the coarse layout safe. "
                    "Not read if sigmas are connected.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance while inverting. 1 is the published choice; higher values "
                    "need the negative and invert less exactly.",
                ),
                io.Combo.Input(
                    "convention",
                    options=["destination", "current"],
                    default="destination",
                    tooltip="Which stage a step asks the model about: the one it goes to (the "
                    "published choice) or the one it leaves.",
                    advanced=True,
                ),
                io.Int.Input(
                    "refinement",
                    default=0,
                    min=0,
                    max=20,
                    tooltip="Extra model calls per step that make the way back exact. Edit does "
                    "not need them; sampling the noise with core's samplers does: try 4.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Stages from a scheduler node; wins over steps, scheduler, strength.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Only needed where cfg is not 1."
                ),
            ],
            outputs=[
                Trajectory.Output(
                    display_name="trajectory", tooltip="Every stage of the picture, for Edit."
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The last stage, as KSamplerAdvanced leaves it with leftover noise: "
                    "sample it with noise disabled.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The stages in the order a sampler walks them."
                ),
                io.Noise.Output(
                    display_name="noise", tooltip="Starts SamplerCustomAdvanced at the last stage."
                ),
            ],
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
        convention,
        refinement,
        sigmas=None,
        negative=None,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, "Edit")
        if cfg != 1 and negative is None:
            raise PalimpsestError(
                f"cfg is {cfg}, which needs a negative: connect one, or set cfg to 1."
            )
        trajectory, spent = invert(
            model,
            positive,
            positive if negative is None else negative,
            latent["samples"],
            schedule(model, scheduler, steps, strength) if sigmas is None else sigmas,
            cfg=cfg,
            convention=convention,
            refinement=refinement,
        )
        text = f"{trajectory.steps} steps, {spent.rows} UNet rows, {spent.seconds:.1f} s"
        return io.NodeOutput(
            trajectory,
            {"samples": trajectory.in_host_scale(trajectory.start)},
            trajectory.falling_sigmas,
            noise_of_trajectory(model, trajectory),
            ui=report(spent, text),
        )


NODES = [InvertDDIM]
