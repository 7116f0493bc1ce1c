"""A walk that leaves the finite numbers is an error, never a result."""

import torch
from torch import Tensor

from .errors import PalimpsestError
from .schedule import Moment


def check_finite(x: Tensor, at: Moment, *, what: str = "edit") -> None:
    """Refuse latents that a step made infinite or NaN.

    Args:
        x: [B, C, ...] after the step.
        at: The step.
        what: Who took it, for the message.

    Raises:
        PalimpsestError: Naming the step and what usually causes this.
    """
    if not bool(torch.isfinite(x).all()):
        raise PalimpsestError(
            f"The {what} left the finite numbers at step {at.step + 1} of {at.steps} (sigma "
            f"{float(at.sigma):.4g}): use a lower cfg, or load the model in bfloat16 or float32 "
            "(float16 overflows in some models)."
        )
