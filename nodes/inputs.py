"""Inputs, outputs and words that nodes have in common, and the values that they come back as."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.cost import Spent
from ..hosts.comfy.schedules import part_of_schedule
from ..pipelines.couplings import LEVELS_AT_ONCE
from .wires import Control, Trajectory, report

PROCESSES = {"sde": 1.0, "ode": 0.0}

Value = TypeVar("Value")

LATENT_OUT = io.Latent.Output(display_name="latent", tooltip="The edited picture.")
TRAJECTORY_OUT = Trajectory.Output(
    display_name="trajectory",
    tooltip="The picture's own noise, and what the model made of it: for a further edit.",
)

BEFORE = Control.Input(
    "control",
    optional=True,
    tooltip="A control to put this one on: both act on one edit. Where both want the same, this "
    "one has its way.",
)


def taken(group: Callable[..., Value], wires: dict[str, Any]) -> Value:
    """Take what belongs together out of a node's keywords, as one value.

    Args:
        group: A dataclass whose fields are called like the inputs.
        wires: The keywords; the group's are gone afterwards.
    """
    names = [field.name for field in fields(group) if field.name in wires]
    return group(**{name: wires.pop(name) for name in names})


def scheduler_input(default: str, tooltip: str) -> io.Input:
    """How steps are spread."""
    return io.Combo.Input(
        "scheduler", options=comfy.samplers.SCHEDULER_NAMES, default=default, tooltip=tooltip
    )


def cfg_input(
    default: float, tooltip: str = "How strongly the prompt is followed.", name: str = "cfg"
) -> io.Input:
    """A guidance scale."""
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def process_input() -> io.Input:
    """The switch between SDE and ODE."""
    return io.Combo.Input(
        "process",
        display_name="sde / ode",
        options=list(PROCESSES),
        tooltip="sde forgives an edit and paints it into place; ode follows it to the letter. "
        "The same node either way, so that one click compares them.",
    )


@dataclass(frozen=True)
class Walk:
    """Which part of which schedule is walked."""

    steps: int
    scheduler: str
    t0: float

    @staticmethod
    def inputs(t0: float, steps: int) -> list[io.Input]:
        """Its inputs.

        Args:
            t0: Default of the input of that name.
            steps: Default of the input of that name.
        """
        told = "Steps of the whole way from pure noise; the strength says how many are walked."
        return [
            io.Int.Input("steps", default=steps, min=1, max=1000, tooltip=told),
            scheduler_input(
                "ddim_uniform",
                "How the steps are spread: ddim_uniform is the published grid; flow models "
                "take simple.",
            ),
            io.Float.Input(
                "t0",
                display_name="strength",
                default=t0,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip="How far up the noise goes, t0 in the papers: more lets more change.",
            ),
        ]

    def levels(self, model: ModelPatcher) -> Tensor:
        """[k+1] falling levels, as core's SIGMAS."""
        return part_of_schedule(model, self.scheduler, self.steps, self.t0)


def seed_input() -> io.Input:
    """The seed of all noise."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="Of all noise: the same seed gives the same bits.",
    )


def levels_at_once_input() -> io.Input:
    """How many stages of the source go into one call of the model."""
    return io.Int.Input(
        "source_batch",
        default=LEVELS_AT_ONCE,
        min=1,
        max=256,
        tooltip="Stages of the source that go through the model in one call: more is faster and "
        "takes more memory.",
        advanced=True,
    )


def told(spent: Spent, steps: int, more: str = "") -> dict[str, list]:
    """What a node says of its run."""
    text = f"{steps} steps, {spent.rows} UNet rows, {spent.seconds:.1f} s{more}"
    return report(spent, text)
