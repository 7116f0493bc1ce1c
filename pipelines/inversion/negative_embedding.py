"""An embedding in the place of the negative prompt.

Null-text inversion learns it, step by step; Negative-prompt inversion takes the source prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from ..carried import Carried, check_learned_cfg
from ..errors import PalimpsestError
from ..schedule import moment_of

if TYPE_CHECKING:
    from ..lending import Asked
    from ..trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class NegativeEmbedding(Carried):
    """What an edit pushes away from, along its trajectory.

    Attributes:
        embedding: [N or 1, B or 1, tokens, channels] at the levels 1 to N, or at all of them.
        rows: Which rows read it: "both", or the "source" alone.
        cfg: The guidance that it was learned for; None where it holds for any.
    """

    name: ClassVar[str] = "negative embedding"

    embedding: Tensor
    rows: Literal["both", "source"] = "both"
    cfg: float | None = None

    def check(self, trajectory: Trajectory) -> None:
        """Refuse another number of steps or pictures."""
        steps, pictures = trajectory.steps, len(trajectory.origin)
        shape = self.embedding.shape
        if len(shape) != 4 or shape[0] not in (1, steps) or shape[1] not in (1, pictures):
            raise PalimpsestError(
                f"The trajectory's unconditional embeddings are {tuple(shape)}, they must be "
                f"[{steps} steps or 1, {pictures} pictures or 1, tokens, channels]."
            )

    def check_edit(self, cfg: float) -> None:
        """Refuse another guidance than what it was learned for."""
        if self.cfg is not None:
            check_learned_cfg(self.cfg, cfg)

    def asked(self, trajectory: Trajectory, source: Asked, target: Asked) -> tuple[Asked, Asked]:
        """The embedding stands for the negative prompt."""

        def at(sigma: Tensor) -> Tensor:
            if len(self.embedding) == 1:
                return self.embedding[0]
            return self.embedding[-1 - moment_of(trajectory.sigmas, sigma).step]

        source = replace(source, negative=at)
        return source, replace(target, negative=at) if self.rows == "both" else target
