"""Uni-Inv: every level asks the model where the last velocity leads, and the edit asks there too.

In the coordinates y = g x, in which the family moves on straight lines in a time tau (x itself in
sigma for eps and v prediction, z in t for rectified flow), a step up from level k is

    y^ = y + (tau' - tau) V              where the velocity of the step before leads
    D = denoise(a, sigma')               a = y^ / g', labelled with the level one goes to
    V' = (y^ - D) / tau'
    y' = y + (tau' - tau) V'

with V = 0 at the image: one evaluation a level, nearer to where the step down will ask than that of
DDIM inversion. Plain steps lead back to the picture up to the square of a step, not the step.

The points a and the guesses D are kept. An edit walks its distance from the chain and asks the
target where the source was asked (`aligned`): a target that says what the source said gives the
picture back by construction, at the cost of the target's rows alone, and what a control reads of
the source was seen at the same point under the same label.

References:
    Jiao et al. 2025, UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models,
        arXiv:2504.13109 (Uni-Inv; its first velocity is zero here)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..aligned import AlignedEdit, lent
from ..attention.bank import Bank
from ..carried import Carried
from ..couplings import OnStep
from ..denoiser import Denoiser
from ..editing import Editing
from ..errors import PalimpsestError
from ..finite import check_finite
from ..lending import Lender
from ..schedule import Family, Moment, check_rising
from ..trajectory import Recipe, Trajectory
from .method import Inverted


def uni_inv(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    *,
    family: Family,
    on_step: OnStep | None = None,
) -> Inverted:
    """Invert an image by Uni-Inv. A `method.Inversion`.

    Raises:
        PalimpsestError: If the levels do not rise, or the latents stop being finite.
    """
    check_rising(sigmas)
    straight = family.straight(sigmas)
    times, y, velocity = straight * sigmas, straight[0] * x0, torch.zeros_like(x0)
    latents, points, guesses = [x0], [], []
    for level in range(1, len(sigmas)):
        ahead = times[level] - times[level - 1]
        led = y + ahead * velocity
        point = led / straight[level]
        denoised = denoise(point, sigmas[level])
        velocity = (led - denoised) / times[level]
        y = y + ahead * velocity
        latents.append(y / straight[level])
        # Of an inversion steps are counted upwards.
        up = Moment(level - 1, len(sigmas) - 1, sigmas[level])
        check_finite(latents[-1], up, what="inversion")
        points.append(point)
        guesses.append(denoised)
        if on_step:
            on_step(level, latents[-1], denoised)
    aligned = Aligned(torch.stack(points), torch.stack(guesses))
    return Inverted(torch.stack(latents), Recipe("uni-inv"), carried=(aligned,))


@dataclass(frozen=True, eq=False)
class Aligned(Carried):
    """Where an inversion asked the model, and what it was told.

    Attributes:
        points: [N, B, C, ...] the latents shown at the levels 1 to N, in x.
        guesses: [N, B, C, ...] the source's denoised guesses there.
    """

    name: ClassVar[str] = "aligned points"
    own_loop: ClassVar[str] = "Uni-Inv's, whose evaluation points"
    pairs: ClassVar[bool] = True

    points: Tensor
    guesses: Tensor

    def check(self, trajectory: Trajectory) -> None:
        """Refuse another number or size of points, and what would touch the chain alone."""
        wanted = tuple(trajectory.latents[1:].shape)
        for name, tensor in self.tensors.items():
            if tuple(tensor.shape) != wanted:
                raise PalimpsestError(
                    f"The trajectory's {name} are {tuple(tensor.shape)}, they must be {wanted}: "
                    "one for each level above the lowest."
                )
        if len(trajectory.carried) > 1:
            raise PalimpsestError(
                "Proximal Guidance draws an edit back between two steps, Uni-Inv walks its "
                "distance from the picture: take the trajectory of another Invert node."
            )

    def loop(
        self, trajectory: Trajectory, lender: Lender, bank: Bank | None, mask: Tensor | None
    ) -> Editing:
        """The edit at the points."""
        return lent(self.edit(trajectory), lender, bank, mask)

    def edit(self, trajectory: Trajectory, target: Denoiser | None = None) -> AlignedEdit:
        """The plain edit at the points; of a target that is the source where it is None."""
        return AlignedEdit(trajectory, self.points[:, None], self.guesses[:, None], target)

    def told(self, trajectory: Trajectory, cfg: float) -> str:
        """That correction has no part in it."""
        return "correction is not read: nothing drifts"
