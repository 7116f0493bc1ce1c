"""What StyleDiffusion leaves on a trajectory: a mapping of cross-attention's values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..attention.value_mapping import ValuesAt
from ..carried import Carried, check_learned_cfg
from ..errors import PalimpsestError
from ..schedule import moment_of

if TYPE_CHECKING:
    from ..lending import Asked
    from ..trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class MappedValues(Carried):
    """Scale and shift of what the conditional branch computes cross-attention's values from.

    Attributes:
        values: [N, 2, B or 1, tokens, channels] scale and shift at the levels 1 to N.
        cfg: The guidance that they were learned for.
        window: Part of an edit's steps, the noisiest first, in which the target's values are
            mapped; the source's are in all of them.
    """

    name: ClassVar[str] = "mapped values"

    values: Tensor
    cfg: float
    window: float = 1.0

    def check(self, trajectory: Trajectory) -> None:
        """Refuse another number of steps or pictures."""
        steps, pictures, shape = trajectory.steps, len(trajectory.origin), self.values.shape
        if len(shape) != 5 or shape[:2] != (steps, 2) or shape[2] not in (1, pictures):
            raise PalimpsestError(
                f"The trajectory's mapping of values is {tuple(shape)}, it must be "
                f"[{steps} steps, 2, {pictures} pictures or 1, tokens, channels]."
            )
        if not 0 <= self.window <= 1:
            raise PalimpsestError(f"The value window must be 0 to 1, got {self.window}.")

    def check_edit(self, cfg: float) -> None:
        """Refuse another guidance than what they were learned for."""
        check_learned_cfg(self.cfg, cfg)

    def asked(self, trajectory: Trajectory, source: Asked, target: Asked) -> tuple[Asked, Asked]:
        """Both rows' values are mapped, the target's in its window."""
        return (
            replace(source, values=self.at(trajectory)),
            replace(target, values=self.at(trajectory, window=self.window)),
        )

    def at(self, trajectory: Trajectory, *, window: float = 1.0) -> ValuesAt:
        """Gives the mapping [2, B or 1, tokens, channels] of a level, None outside the window."""

        def here(sigma: Tensor) -> Tensor | None:
            at = moment_of(trajectory.sigmas, sigma)
            return self.values[-1 - at.step] if at.step < int(window * at.steps) else None

        return here
