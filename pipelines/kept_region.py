"""A region of the picture that an edit keeps: there the recorded chain is put back every step.

    x_next <- chain_next + m (x_next - chain_next)               m = 0 keeps, 1 edits

After the last step it is the image itself that is put back, which the chain may only come close to.
"""

from dataclasses import dataclass

from torch import Tensor

from .rows import Rows
from .schedule import Moment
from .trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class KeptRegion:
    """What is outside a mask, as an `editing.After`.

    Attributes:
        mask: [1 or B, 1, h, w] in 0..1; where it is 0 the picture is kept.
        image: [B, C, h, w] the picture, in x.
    """

    mask: Tensor
    image: Tensor

    def reads_source(self, at: Moment) -> bool:
        """The chain is enough."""
        return False

    def __call__(self, rows: Rows, chain_next: Tensor, at: Moment) -> Rows:
        kept = self.image if at.last else chain_next
        return rows._replace(target=self.within(rows.target, kept))

    def within(self, x: Tensor, kept: Tensor) -> Tensor:
        """`x` inside the mask, `kept` outside; bit for bit where the mask is 0."""
        return kept + self.mask * (x - kept)


def outside(mask: Tensor | None, trajectory: Trajectory) -> tuple[KeptRegion, ...]:
    """The `Edit.after` of a mask, or of none."""
    return () if mask is None else (KeptRegion(mask, trajectory.clean),)
