"""SDEdit: noise a guide and paint it anew, from a level said in any of three ways."""

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.edits.sdedit import UNITS, SDEditRequest, Strength, levels_of, noised, paint_anew
from ..hosts.comfy.latents import batch_index_of, samples_of, with_samples
from ..hosts.comfy.refusals import refuse_noise_mask
from .border import Node
from .inputs import LATENT_OUT, cfg_input, scheduler_input, seed_input, taken, told

CATEGORY = "palimpsest/sdedit"
FULL_MASK = "White where it is painted anew; the rest of the latent stays, number for number."


UNIT = io.Combo.Input(
    "unit",
    options=list(UNITS),
    tooltip="What strength counts: the paper's t0 on its VP or VE schedule, the part of "
    "the model's timesteps (KSampler's denoise), or the noise level sigma itself.",
)
STRENGTH = io.Float.Input(
    "strength",
    default=0.5,
    min=0.0,
    max=1000.0,
    step=0.01,
    tooltip="How much noise: more is more realistic, less is more faithful. 0.3 to 0.6 "
    "are usual for t0.",
)


@dataclass(frozen=True)
class Noising:
    """How much noise a guide gets, and how it is taken away."""

    unit: str
    strength: float
    steps: int
    scheduler: str

    @staticmethod
    def inputs() -> list[io.Input]:
        """Its inputs."""
        return [
            UNIT,
            STRENGTH,
            io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps that are walked."),
            scheduler_input("normal", "How the steps are spread."),
        ]

    def levels(self, model: ModelPatcher) -> tuple[Tensor, float]:
        """[steps + 1] falling levels, as core's SIGMAS, and the sigma of the first."""
        strength = Strength(self.unit, self.strength)
        return levels_of(model, strength, self.scheduler, self.steps)


def prompt_inputs() -> list[io.Input]:
    """The model, what it paints, and the guide."""
    return [
        io.Model.Input("model", tooltip="An SD 1.x, 2.x, SDXL or flow model."),
        io.Conditioning.Input("positive", tooltip="What the picture shall show."),
        io.Conditioning.Input("negative", tooltip="What to avoid."),
        io.Latent.Input("latent", tooltip="The guide: strokes or a rough paste, encoded."),
    ]


ETA = io.Float.Input(
    "eta",
    display_name="sde / ode (eta)",
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="1 is the paper's SDE, 0 the ODE.",
)


def painting_inputs() -> list[io.Input]:
    """How it paints."""
    return [cfg_input(5.0), ETA]


NOISE = io.Noise.Input(
    "noise", optional=True, tooltip="Noise of your own; the seed is not read then."
)


class SDEditNoise(Node):
    """The noising alone, for core's samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEditNoise",
            display_name="SDEdit Noise",
            category=CATEGORY,
            description="Noises a guide to a level said in an honest unit, and gives the sigmas "
            "that finish it with any of core's samplers.",
            search_aliases=["sdedit", "img2img", "denoise strength", "add noise"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will finish it."),
                io.Latent.Input("latent", tooltip="The guide: strokes or a rough paste, encoded."),
                *Noising.inputs(),
                seed_input(),
                NOISE,
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For a sampler with added noise disabled."
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="From that level down to 0."),
            ],
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        seed: int,
        noise: Any = None,
        **noising: Any,
    ) -> io.NodeOutput:
        levels, sigma = Noising(**noising).levels(model)
        refuse_noise_mask(latent, "SDEdit")
        noisy = noised(model, latent, sigma, seed, noise)
        text = f"sigma {sigma:.3g}, {len(levels) - 1} steps"
        return io.NodeOutput(with_samples(latent, noisy), levels, ui={"palimpsest_text": [text]})


REPEATS = io.Int.Input(
    "repeats",
    default=1,
    min=1,
    max=20,
    tooltip="How often: each time from what came out. More is more realistic.",
)


class SDEdit(Node):
    """The whole loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEdit",
            display_name="SDEdit",
            category=CATEGORY,
            description="Turns strokes or a rough paste into a picture: noises the guide and "
            "paints it anew, where a mask allows it.",
            search_aliases=[
                "sdedit",
                "img2img",
                "stroke to image",
                "sketch to image",
                "scribble to image",
                "paint over",
                "harmonize",
                "compositing",
                "blend pasted object",
            ],
            inputs=[
                *prompt_inputs(),
                *Noising.inputs(),
                *painting_inputs(),
                REPEATS,
                seed_input(),
                io.Mask.Input("mask", optional=True, tooltip=FULL_MASK),
            ],
            outputs=[LATENT_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def run(cls, model: ModelPatcher, latent: dict[str, Any], **asked: Any) -> io.NodeOutput:
        refuse_noise_mask(latent, "SDEdit")
        levels, sigma = taken(Noising, asked).levels(model)
        samples, numbers = samples_of(model, latent), batch_index_of(latent)
        request = SDEditRequest(model, **asked, samples=samples, levels=levels, batch_index=numbers)
        painted, spent = paint_anew(request)
        more = f"\nfrom sigma {sigma:.3g}"
        return io.NodeOutput(with_samples(latent, painted), ui=told(spent, len(levels) - 1, more))


NODES = [SDEditNoise, SDEdit]
