"""ComfyUI's coordinates and levels of a model family, in our x = x0 + sigma * noise.

Eps- and v-prediction models are sampled in x already. Rectified-flow models are sampled in
z = (1 - t) x0 + t s noise, s being the model's noise scale (1 almost everywhere):

    x = z / (1 - t)        sigma = s t / (1 - t)        t = sigma / (s + sigma)
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pipelines.errors import PalimpsestError
from ...pipelines.schedule import FLOW_T_MAX, VP, Family, vp_scale


@dataclass(frozen=True)
class Coordinates:
    """How a model family relates to x.

    Attributes:
        noise_scale: s of a flow model, None for eps and v prediction.
    """

    noise_scale: float | None = None

    def level(self, sigma: Tensor) -> Tensor:
        """What ComfyUI calls a noise level: the same sigma, or the flow's t."""
        return sigma if self.noise_scale is None else sigma / (self.noise_scale + sigma)

    def sigma(self, level: Tensor) -> Tensor:
        """Our sigma of ComfyUI's noise level; pure noise of a flow is cut just below t = 1."""
        if self.noise_scale is None:
            return level
        t = level.clamp(max=FLOW_T_MAX)
        return self.noise_scale * t / (1 - t)

    def shown(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The latent that ComfyUI's model call takes, of our x at a 0-d or per-row level."""
        return x if self.noise_scale is None else x * self.scale(sigma).to(x)

    def scale(self, sigma: Tensor) -> Tensor:
        """How the network's input is scaled, from our x."""
        if self.noise_scale is None:
            return vp_scale(sigma)
        return self.noise_scale / (self.noise_scale + sigma)

    @property
    def family(self) -> Family:
        """The same, as the pipelines know it."""
        return VP if self.noise_scale is None else Family(self.scale, self.scale)


#: Models that are sampled in x itself.
OURS = Coordinates()


def coordinates_of(model: ModelPatcher, feature: str) -> Coordinates:
    """The coordinates of a model.

    Raises:
        PalimpsestError: If it predicts something else than noise, v or a flow, naming the feature.
    """
    sampling = model.get_model_object("model_sampling")
    families = comfy.model_sampling
    if isinstance(sampling, families.CONST) and not isinstance(sampling, families.IMG_TO_IMG_FLOW):
        return Coordinates(float(getattr(sampling, "noise_scale", 1.0)))
    eps = isinstance(sampling, families.EPS) and sampling.sigma_data == 1.0
    if eps and not isinstance(sampling, families.X0):
        return OURS
    raise PalimpsestError(
        f"{feature} takes models that predict noise, v or a flow (SD 1.x, SD 2.x, SDXL, SD 3, "
        f"Flux, ...), this {type(model.model).__name__} model predicts something else: load such a "
        "checkpoint."
    )


def rising_sigmas(coordinates: Coordinates, levels: Tensor) -> Tensor:
    """[N+1] float64 rising sigmas of ComfyUI's falling levels.

    Raises:
        PalimpsestError: If more than one of them lies where a flow is cut.
    """
    sigmas = coordinates.sigma(levels.double().cpu()).flip(0)
    if len(sigmas) > 1 and sigmas[-2] == sigmas[-1]:
        raise PalimpsestError(
            f"The schedule comes closer to pure noise than flow time {FLOW_T_MAX} in more than one "
            "step: use fewer steps or another scheduler."
        )
    return sigmas


def host_levels(coordinates: Coordinates, sigmas: Tensor) -> Tensor:
    """[N+1] float32 falling levels, as ComfyUI's SIGMAS, of rising sigmas."""
    return coordinates.level(sigmas.flip(0)).to(torch.float32)
