"""How much room what a source left may take beside the rows that read it.

A guided call runs two rows. One row of a source that both branches of the target read is kept until
both have run, and what is kept of it grows with the layers that are read: 10 tensors of the size of
the network's largest query on Stable Diffusion 1, 42 on SDXL under Plug-and-Play. Measured, of the
memory of a guided call: `BESIDE_BOTH` and a call for both branches are 1.1, `BESIDE_ONE` and a call
for one of them as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..schedule import Moment
from .control import Control, read_by_target
from .hooks import QKV, Site

#: Kept beside one call for both branches, in tensors of the size of the largest query.
BESIDE_BOTH = 12

#: Kept beside a call for one branch.
BESIDE_ONE = 36

#: What was recorded at a site.
Recorded = QKV | Tensor


@dataclass
class Room:
    """What keeping takes, as it was seen so far.

    Attributes:
        largest: Bytes of the largest tensor that was seen: of a query, or of what was kept.
        taken: Bytes of what was kept, site by site.
    """

    largest: int = 0
    taken: dict[Site, int] = field(default_factory=dict)

    def see(self, queries: Tensor) -> None:
        """Look at an attention of the source."""
        self.largest = max(self.largest, queries.nbytes)

    def keep(self, site: Site, recorded: Recorded) -> None:
        """Something of it was kept."""
        tensors = (recorded,) if isinstance(recorded, Tensor) else recorded
        sizes = [tensor.nbytes for tensor in tensors if tensor is not None]
        self.largest = max(self.largest, *sizes)
        self.taken[site] = sum(sizes)

    def of(self, control: Control, at: Moment) -> float:
        """What a control keeps in a step of one row, at the sites that are known by now.

        In tensors of the size of the largest query.
        """
        read = (site for site in self.taken if read_by_target(control, site, at))
        return sum(self.taken[site] for site in read) / max(self.largest, 1)
