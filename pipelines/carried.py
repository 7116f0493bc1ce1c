"""What a method leaves on its trajectory for the edits along it.

A trajectory holds carried values without knowing them. Each is a frozen dataclass in the method's
own file: its tensors and settings are what a file keeps, its methods what it lends to an edit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .errors import PalimpsestError

if TYPE_CHECKING:
    from typing import Self

    from .attention.bank import Bank
    from .editing import Editing
    from .lending import Asked, Lender
    from .rows import After, Traced
    from .trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Carried:
    """The base of what is carried: lends nothing.

    Fields that hold a tensor are stored as tensors, all others as JSON.
    """

    #: What a file calls it; never changed once released.
    name: ClassVar[str]
    #: How a sentence names it ("EDICT's, whose two chains") where an edit along it has a loop of
    #: its own; "" where that is `editing.Edit`.
    own_loop: ClassVar[str] = ""
    #: Whether in that loop the source's rows may run beside the target's that read them.
    pairs: ClassVar[bool] = False

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by field."""
        every = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in every if isinstance(value, Tensor)}

    @property
    def settings(self) -> dict[str, Any]:
        """All else, by field."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if not isinstance(getattr(self, field.name), Tensor)
        }

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on a device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})

    def check(self, trajectory: Trajectory) -> None:
        """Refuse a trajectory that it does not fit.

        Raises:
            PalimpsestError: In one sentence.
        """

    def check_edit(self, cfg: float) -> None:
        """Refuse an edit under a guidance that it does not hold for.

        Raises:
            PalimpsestError: In one sentence.
        """

    def asked(self, trajectory: Trajectory, source: Asked, target: Asked) -> tuple[Asked, Asked]:
        """What source and target are denoised under, along its trajectory."""
        return source, target

    def traced(self, lender: Lender, target: Asked) -> Traced | None:
        """The target's denoiser where it has more to say than its guess; None where it has not."""
        return None

    def afters(self) -> tuple[After, ...]:
        """What happens to the rows after every step."""
        return ()

    def loop(
        self, trajectory: Trajectory, lender: Lender, bank: Bank | None, mask: Tensor | None
    ) -> Editing | None:
        """The edit, where its loop is its own; None where it is `editing.Edit`."""
        return None

    def told(self, trajectory: Trajectory, cfg: float) -> str:
        """What a person must know of an edit at this guidance; "" where that is nothing."""
        return ""


def check_learned_cfg(learned: float, cfg: float) -> None:
    """Refuse an edit under another guidance than what it reads was learned for.

    Raises:
        PalimpsestError: Naming both.
    """
    if abs(cfg - learned) > 1e-6:
        raise PalimpsestError(
            f"The trajectory was learned at cfg {learned:g}, the edit's cfg is {cfg:g}: set it to "
            f"{learned:g} too, or invert again at cfg {cfg:g}."
        )
