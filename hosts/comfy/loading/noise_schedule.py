"""A diffusers scheduler's config as ComfyUI's sampling settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.model_sampling import rescale_zero_terminal_snr_sigmas
from torch import Tensor

from ....pipelines.errors import PalimpsestError, quoted
from .config import flag, listed, number, read_config, whole, words

#: diffusers' names of beta schedules, in ComfyUI's words.
BETA_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear"}

#: diffusers' names of what a network predicts, in the words of comfy.model_base.ModelType.
PREDICTIONS = {"epsilon": "EPS", "v_prediction": "V_PREDICTION"}

#: A beta is a part of what is there; 1 would leave nothing of the picture, 0 adds no noise.
BETA = number(1e-9, 0.999999)
MOST_STEPS = 100_000

#: What is read of scheduler_config.json.
FIELDS = {
    "_class_name": words("scheduler"),
    "prediction_type": words("epsilon"),
    "trained_betas": listed(BETA, least=2, most=MOST_STEPS),
    "beta_start": BETA,
    "beta_end": BETA,
    "beta_schedule": words("linear"),
    "rescale_betas_zero_snr": flag(),
    "num_train_timesteps": whole(2, MOST_STEPS, 1000),
}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels a model was trained on.

    Attributes:
        settings: ComfyUI's `sampling_settings`, read by ModelSamplingDiscrete.
        prediction: A name of comfy.model_base.ModelType.
        sigmas: [train steps] noise level of every timestep where the settings cannot say it,
            rising; None where they can.
    """

    settings: dict[str, Any]
    prediction: str
    sigmas: Tensor | None


def read_schedule(folder: Path) -> NoiseSchedule:
    """Read the noise schedule of a pipeline folder.

    Raises:
        PalimpsestError: If it is no schedule of betas, or predicts something else than noise or v.
    """
    config = read_config(folder / "scheduler" / "scheduler_config.json", FIELDS)
    prediction = config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise _refusal(config, "prediction_type", prediction, PREDICTIONS)
    trained = config["trained_betas"]
    if trained is None and None in (config["beta_start"], config["beta_end"]):
        raise PalimpsestError(
            f"The scheduler of this folder is a {config['_class_name']} without betas: it must "
            "be one of DDIM's kind with beta_start and beta_end; choose a model that was trained "
            "on discrete noise levels."
        )
    name, steps = config["beta_schedule"], config["num_train_timesteps"]
    zero_snr = config["rescale_betas_zero_snr"]
    settings = {"timesteps": steps, "zsnr": zero_snr}
    if trained is not None:
        betas = torch.tensor(trained, dtype=torch.float64)
        settings["timesteps"] = len(trained)
    elif name in BETA_SCHEDULES:
        settings |= {
            "beta_schedule": BETA_SCHEDULES[name],
            "linear_start": config["beta_start"],
            "linear_end": config["beta_end"],
        }
        return NoiseSchedule(settings, PREDICTIONS[prediction], None)
    elif name == "squaredcos_cap_v2":
        betas = cosine_betas(steps)
    else:
        raise _refusal(config, "beta_schedule", name, [*BETA_SCHEDULES, "squaredcos_cap_v2"])
    return NoiseSchedule(settings, PREDICTIONS[prediction], sigmas_from_betas(betas, zero_snr))


def cosine_betas(steps: int) -> Tensor:
    """The betas of diffusers' `squaredcos_cap_v2`, [steps] float64."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def sigmas_from_betas(betas: Tensor, zero_snr: bool) -> Tensor:
    """Noise levels of the training timesteps, [steps], in latent standard deviations."""
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    sigmas = ((1 - alpha_bar) / alpha_bar) ** 0.5
    return rescale_zero_terminal_snr_sigmas(sigmas) if zero_snr else sigmas


def _refusal(
    config: Mapping[str, Any], key: str, value: object, allowed: object
) -> PalimpsestError:
    return PalimpsestError(
        f"The scheduler of this folder ({config['_class_name']}) has {key} = "
        f"{quoted(value)}: it must be {' or '.join(allowed)}; choose a model that was trained so."
    )
