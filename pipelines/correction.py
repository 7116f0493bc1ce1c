"""What an edit does about the residual of its source chain (the formulas are in `editing`).

References:
    Ju et al. 2023, Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code,
        arXiv:2310.01506, algorithm 1 and the ablations
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .errors import PalimpsestError
from .schedule import Step
from .trajectory import Trajectory

#: Whose residual along the chain is added to the target.
ResidualOf = Literal["source", "target"]


@dataclass(frozen=True)
class Correction:
    """What is done about the residual of the source chain.

    Attributes:
        scale: Part of the residual added to the source row; 1 puts it back on the chain.
        interval: The source row is corrected at every interval-th step, the noisiest first.
        target_strength: Part of the residual added to the target.
        residual_of: Whose residual that is.
    """

    scale: float = 1.0
    interval: int = 1
    target_strength: float = 0.0
    residual_of: ResidualOf = "source"

    def __post_init__(self) -> None:
        for name, part in (("scale", self.scale), ("target strength", self.target_strength)):
            if not math.isfinite(part):
                raise PalimpsestError(f"The {name} of a correction must be a number, got {part}.")
        if self.interval < 1:
            raise PalimpsestError(f"The interval must be 1 or more steps, got {self.interval}.")
        if self.target_strength and not self.on_chain:
            raise PalimpsestError(
                "The residual is added to the target along the recorded chain: "
                f"scale and interval must be 1, got {self.scale} and {self.interval}."
            )

    @property
    def on_chain(self) -> bool:
        """Whether the source row is the recorded chain itself at every step."""
        return self.scale == 1 and self.interval == 1

    def scale_at(self, step: int) -> float:
        """Part of the residual added to the source row in this step."""
        return self.scale if step % self.interval == 0 else 0.0


DIRECT_INVERSION = Correction()
UNCORRECTED = Correction(scale=0.0)
ADD_SOURCE = Correction(target_strength=1.0)
ADD_TARGET = Correction(target_strength=1.0, residual_of="target")

#: The delta form, by its name in the SDE literature: the edit repeats the chain's own noise.
CYCLE = ADD_SOURCE


def correction_along(trajectory: Trajectory, wanted: Correction) -> Correction:
    """What is done about the residual along a trajectory.

    Where it is the noise that the picture is made of, the chain says how much of it an edit
    repeats, whatever is wanted of an ODE chain's inversion error.
    """
    strength = trajectory.recipe.strength
    return wanted if strength is None else Correction(target_strength=strength)


def residual(chain: Tensor, chain_next: Tensor, denoised: Tensor, step: Step) -> Tensor:
    """What the mean of a step does not explain of a chain: R, in units of the latent."""
    return chain_next - step.c * chain - (1 - step.c) * denoised
