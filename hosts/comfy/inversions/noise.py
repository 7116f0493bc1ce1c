"""An inverted picture as a NOISE of core's."""

from __future__ import annotations

from dataclasses import dataclass

from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.errors import PalimpsestError
from ....pipelines.trajectory import Trajectory
from ..coordinates import coordinates_of


@dataclass(frozen=True, eq=False)
class TrajectoryNoise:
    """A NOISE that starts core's samplers where an inversion ended.

    Core adds the latent to noise times the first sigma (at a model's largest sigma: times
    sqrt(1 + sigma^2)), or mixes both for a flow; this is what gives the start after that.

    Attributes:
        start: [B, C, h, w] where the inversion ended, as core's samplers hold it, in model scale.
        noise_part: What core will multiply the noise by.
        latent_part: What core will multiply the latent by.
        latent_format: How the model scales a LATENT.
        seed: Core wants one; nothing is drawn.
    """

    start: Tensor
    noise_part: float
    latent_part: float
    latent_format: LatentFormat
    seed: int = 0

    def generate_noise(self, input_latent: dict) -> Tensor:
        """The noise that goes with the latent it will be added to."""
        samples = input_latent["samples"].to(self.start)
        if samples.shape != self.start.shape:
            raise PalimpsestError(
                f"The latent is {tuple(samples.shape)}, the inverted noise "
                f"{tuple(self.start.shape)}: connect a latent of the inverted picture's size."
            )
        if samples.any():  # core leaves empty latents unscaled
            samples = self.latent_format.process_in(samples)
        return (self.start - self.latent_part * samples) / self.noise_part


def noise_of_trajectory(model: ModelPatcher, trajectory: Trajectory) -> TrajectoryNoise:
    """The NOISE from which core's samplers start at the trajectory's noisiest level."""
    latent_format = model.get_model_object("latent_format")
    coordinates = coordinates_of(model, "A trajectory's noise")
    sigma = float(trajectory.sigmas[-1])
    if coordinates.noise_scale is not None:
        t = float(coordinates.level(trajectory.sigmas[-1]))
        start = trajectory.start * (1 - t)
        return TrajectoryNoise(start, t * coordinates.noise_scale, 1 - t, latent_format)
    largest = float(model.get_model_object("model_sampling").sigma_max)
    full = sigma > largest or abs(sigma - largest) <= 1e-5 * largest
    scale = (1 + sigma**2) ** 0.5 if full else sigma
    return TrajectoryNoise(trajectory.start, scale, 1.0, latent_format)
