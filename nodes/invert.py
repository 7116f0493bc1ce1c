"""Nodes that turn a picture into the noise it came from."""

from comfy_api.latest import io

from ..hosts.comfy_inversion import invert_ddim
from ..pipelines.errors import PalimpsestError
from .inverting import CATEGORY, SIGMAS_IN, inverted, outputs, picture_inputs, picture_of


class InvertDDIM(io.ComfyNode):
    """DDIM inversion, plain or refined."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInvertDDIM",
            display_name="Invert (DDIM)",
            category=CATEGORY,
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
                *picture_inputs(
                    model="Predicts noise, v or a flow (SD 1.x, SD 2.x, SDXL, SD 3, Flux, ...), "
                    "LoRA included."
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
                SIGMAS_IN,
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Only needed where cfg is not 1."
                ),
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
        convention,
        refinement,
        sigmas=None,
        negative=None,
    ) -> io.NodeOutput:
        if cfg != 1 and negative is None:
            raise PalimpsestError(
                f"cfg is {cfg}, which needs a negative: connect one, or set cfg to 1."
            )
        levels = (steps, scheduler, strength)
        picture = picture_of(
            "Invert (DDIM)", model, positive, negative, latent, levels, sigmas, cfg=cfg
        )
        trajectory, spent = invert_ddim(picture, convention=convention, refinement=refinement)
        return inverted(model, trajectory, spent)


NODES = [InvertDDIM]
