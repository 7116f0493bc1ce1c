"""Inputs and outputs that all inversions have in common, so that one can stand for another."""

from dataclasses import replace
from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...hosts.comfy.cost import Spent
from ...hosts.comfy.guidance import Conditioning
from ...hosts.comfy.inversions.noise import noise_of_trajectory
from ...hosts.comfy.inversions.picture import Picture
from ...hosts.comfy.latents import samples_of
from ...hosts.comfy.refusals import refuse_noise_mask
from ...hosts.comfy.schedules import schedule
from ...pipelines.errors import PalimpsestError
from ...pipelines.trajectory import Trajectory as Chain
from ..wires import Trajectory, report

CATEGORY = "palimpsest/invert"

#: Which models a method takes, for the tooltip of the model input.
ANY_MODEL = "Predicts noise, v or a flow (SD 1.x, SD 2.x, SDXL, SD 3, Flux, ...), LoRA included."
UNET_MODEL = "Predicts noise or v, with a UNet (SD 1.x, SD 2.x, SDXL), LoRA included."


def picture_inputs(
    *,
    model: str,
    strength: float = 1.0,
) -> list[io.Input]:
    """The picture and its levels; every inversion begins with these.

    Args:
        model: Tooltip that says which models the method takes.
        strength: Default of the input of that name.
    """
    return [
        io.Model.Input("model", tooltip=model),
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
            tooltip="How the stages are spread: ddim_uniform is the published grid; flow models "
            "take simple. Not read if sigmas are connected.",
        ),
        io.Float.Input(
            "strength",
            default=strength,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="How far up: 1 goes to pure noise, 0.6 keeps the coarse layout safe. "
            "Not read if sigmas are connected.",
        ),
    ]


SIGMAS_IN = io.Sigmas.Input(
    "sigmas",
    optional=True,
    tooltip="Stages from a scheduler node; wins over steps, scheduler, strength.",
)


def convention_input() -> io.Input:
    """Which of the two plain steps of DDIM inversion is taken."""
    return io.Combo.Input(
        "convention",
        options=["destination", "current"],
        default="destination",
        tooltip="Which stage a step asks the model about: the one it goes to (the "
        "published choice) or the one it leaves.",
        advanced=True,
    )


def negative_input(tooltip: str) -> io.Input:
    """The other end of the guidance, where it is not always needed."""
    return io.Conditioning.Input("negative", optional=True, tooltip=tooltip)


def need_negative(cfg: float, negative: Conditioning | None, name: str = "cfg") -> None:
    """Refuse guidance without its other end.

    Raises:
        PalimpsestError: Naming the input.
    """
    if cfg != 1 and negative is None:
        raise PalimpsestError(
            f"{name} is {cfg}, which needs a negative: connect one, or set {name} to 1."
        )


def outputs() -> list[io.Output]:
    """What every inversion gives, in the same order."""
    return [
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
    ]


def picture_of(
    feature: str,
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning | None,
    latent: dict[str, Any],
    levels: tuple[int, str, float],
    sigmas: Tensor | None,
    *,
    cfg: float = 1.0,
) -> Picture:
    """The picture that the inputs describe.

    Args:
        feature: What the node is called.
        model: Of the input of that name, as are `positive`, `latent` and `sigmas`.
        positive: Describes the picture.
        negative: The other end of the guidance; the positive where it is not read.
        latent: The picture.
        levels: Steps, scheduler, strength.
        sigmas: Levels that win over these.
        cfg: Guidance of the inversion.
    """
    refuse_noise_mask(latent, "Edit")
    steps, scheduler, strength = levels
    return Picture(
        model,
        positive,
        positive if negative is None else negative,
        samples_of(model, latent),
        schedule(model, scheduler, steps, strength) if sigmas is None else sigmas,
        cfg,
        feature,
    )


def inverted(model: ModelPatcher, trajectory: Chain, spent: Spent, more: str = "") -> io.NodeOutput:
    """The outputs of an inversion, and what the node shows.

    Args:
        model: The model that inverted.
        trajectory: What it gave.
        spent: What it cost.
        more: A further line of text.
    """
    recipe = replace(trajectory.recipe, seconds=round(spent.seconds, 2))
    trajectory = replace(trajectory, recipe=recipe)
    text = f"{trajectory.steps} steps, {spent.rows} UNet rows, {spent.seconds:.1f} s"
    return io.NodeOutput(
        trajectory,
        {"samples": trajectory.in_host_scale(trajectory.start)},
        trajectory.falling_sigmas,
        noise_of_trajectory(model, trajectory),
        ui=report(spent, f"{text}\n{more}" if more else text),
    )
