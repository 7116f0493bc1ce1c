"""Which noise levels a run visits."""

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pipelines.errors import PalimpsestError
from .coordinates import Coordinates

#: Levels at most of a schedule whose end is walked: core takes half a minute for millions of them,
#: and cannot be cancelled meanwhile. Every strength of 0.01 and above has fewer at 1000 steps.
LARGEST_SCHEDULE = 100_000


def part_of_schedule(model: ModelPatcher, scheduler: str, steps: int, t0: float) -> Tensor:
    """The last `t0` of a schedule's falling levels, as the SDE papers count.

    Args:
        model: The model.
        scheduler: A name of core's.
        steps: Of the whole way from pure noise.
        t0: The part of them that is walked, 0 to 1.

    Raises:
        PalimpsestError: If no step is left, or the schedule has no such levels.
    """
    if not 0 <= t0 <= 1:
        raise PalimpsestError(f"The strength must be above 0 and at most 1, got {t0}: try 0.6.")
    if steps < 1:
        raise PalimpsestError(f"Steps must be 1 or more, got {steps}.")
    sampling = model.get_model_object("model_sampling")
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, steps).cpu()
    walked = round(t0 * (len(whole) - 1))
    if walked < 1:
        raise PalimpsestError(
            f"Strength {t0:g} of {steps} steps leaves no step to walk, so nothing would change: "
            f"raise it to at least {1 / steps:.2g}."
        )
    levels = whole[-(walked + 1) :]
    if not bool((levels.diff() < 0).all()):
        raise PalimpsestError(
            f"The schedule {scheduler!r} has no {steps} different levels: use fewer steps or "
            "another scheduler."
        )
    return levels


def sigma_of_part(model: ModelPatcher, coordinates: Coordinates, part: float) -> Tensor:
    """0-d noise level at a part of the model's training timesteps."""
    if not 0 < part <= 1:
        raise PalimpsestError(
            f"The mask's strength must be above 0 and at most 1, got {part}: try 0.5."
        )
    levels = model.get_model_object("model_sampling").sigmas
    level = levels[max(0, round(part * len(levels)) - 1)]
    return coordinates.sigma(torch.as_tensor(level).double().cpu())


def schedule(model: ModelPatcher, scheduler: str, steps: int, strength: float) -> Tensor:
    """Core's falling sigmas for the last `strength` of a schedule, as KSampler's denoise does.

    Raises:
        PalimpsestError: If there are no such steps.
    """
    sampling = model.get_model_object("model_sampling")
    train_steps = len(getattr(sampling, "sigmas", ())) or 1000
    if not 1 <= steps <= train_steps:
        raise PalimpsestError(
            f"Steps must be 1 to {train_steps}, the model's training steps, got {steps}."
        )
    if not 0 < strength <= 1:
        raise PalimpsestError(f"Strength must be above 0 and at most 1, got {strength}.")
    if steps > strength * LARGEST_SCHEDULE:
        raise PalimpsestError(
            f"{steps} steps at strength {strength:.3g} are the end of a schedule of more than "
            f"{LARGEST_SCHEDULE} levels: raise the strength to {steps / LARGEST_SCHEDULE:.2g} or "
            "more, or use fewer steps."
        )
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, int(steps / strength)).cpu()
    sigmas = whole if strength == 1 else whole[-(steps + 1) :]
    if not bool((sigmas.diff() < 0).all()):
        raise PalimpsestError(
            f"The schedule {scheduler!r} has no {steps} different levels at strength {strength}: "
            "use fewer steps or another scheduler."
        )
    return sigmas
