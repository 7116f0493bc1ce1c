"""A picture under noise of its own at every level: what is edited without being inverted.

    a = x0 + sigma n                     n fresh at every level, and for every draw of it
    D = denoise_src(a, sigma)

No level waits for another, so that many go through the model in one call, and both hang on the
picture, the source and the seed alone: every edit of the picture shares them. The edit is
`aligned.AlignedEdit` at these points, which is FlowEdit; several draws are averaged in it.

References:
    Kulikov et al. 2024, FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models,
        arXiv:2412.08629, algorithm 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor

from ..aligned import AlignedEdit, Manner, lent
from ..attention.bank import Bank
from ..carried import Carried
from ..couplings import LEVELS_AT_ONCE, denoise_chain
from ..denoiser import Denoiser
from ..editing import Editing
from ..errors import PalimpsestError
from ..lending import Asked, Lender
from ..noise import Draw
from ..schedule import check_rising
from ..trajectory import Recipe, Trajectory
from .method import Inverted


def noised(x0: Tensor, levels: Tensor, draw: Draw, *, draws: int = 1) -> Tensor:
    """A picture under fresh noise at every level.

    Args:
        x0: [B, C, ...] float32, the image at sigma 0.
        levels: [N] rising sigmas.
        draw: Asked N times `draws` times, from the noisiest level down.
        draws: How many at each level.

    Returns:
        [N, draws, B, C, ...].

    Raises:
        PalimpsestError: If nothing is drawn.
    """
    if draws < 1:
        raise PalimpsestError(f"At least 1 noise is drawn at every level, got {draws}: raise it.")
    falling = levels.flip(0).tolist()
    drawn = [x0 + sigma * draw(x0) for sigma, _ in product(falling, range(draws))]
    return torch.stack(drawn).unflatten(0, (len(falling), draws)).flip(0)


def fresh_noise(
    source: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    draw: Draw,
    *,
    manner: Manner,
    whole: int,
    draws: int = 1,
    levels_at_once: int = LEVELS_AT_ONCE,
    on_levels: Callable[[int], None] | None = None,
) -> Inverted:
    """Noise a picture at every level, and ask the source about it.

    It is not asked where sampling will be plain: no one reads it there.

    Args:
        source: Guided as the edits want it; called with one sigma per row, unless `levels_at_once`
            is 1.
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising levels.
        draw: Asked as by `noised`, and once more for the plain steps.
        manner: How edits walk.
        whole: Steps of the schedule whose last are walked.
        draws: How many noises at each level are averaged.
        levels_at_once: Noised pictures (of B rows) per call.
        on_levels: Called with the number of noised pictures done.

    Raises:
        PalimpsestError: If the levels do not rise, nothing is drawn, no level goes into a call, or
            there are as many plain steps as steps.
    """
    check_rising(sigmas)
    if levels_at_once < 1:
        raise PalimpsestError(f"At least 1 level goes into a call, got {levels_at_once}: raise it.")
    plain, steps = manner.plain_steps, len(sigmas) - 1
    if plain >= steps:
        raise PalimpsestError(
            f"The last {plain} steps shall be plain sampling, of {steps} that are walked: set the "
            f"plain steps to {steps - 1} or fewer."
        )
    points = noised(x0, sigmas[1 + plain :], draw, draws=draws)
    levels = torch.cat([sigmas[:1], sigmas[1 + plain :].repeat_interleave(draws)])
    chain = torch.cat([x0[None], points.flatten(0, 1)])
    guesses = denoise_chain(
        source, chain, levels, levels_at_once=levels_at_once, on_levels=on_levels
    ).unflatten(0, points.shape[:2])
    noise = draw(x0)
    below = [x0 + sigma * noise for sigma in sigmas[1 : 1 + plain].tolist()]
    carried = FreshNoise(
        manner.renoise,
        manner.zeta,
        manner.lag,
        manner.plain_steps,
        points=points,
        guesses=guesses,
        noise=noise,
        whole=whole,
    )
    latents = torch.stack([x0, *below, *points[:, 0]])
    return Inverted(latents, Recipe("fresh noise"), carried=(carried,))


@dataclass(frozen=True, eq=False)
class FreshNoise(Manner, Carried):
    """A picture under noise, what its source made of it, and how edits walk from there.

    Attributes:
        points: [N - plain steps, draws, B, C, ...] the noised pictures at the levels above the
            plain steps, in x.
        guesses: Of that shape, the source's denoised guesses.
        noise: [B, C, ...] of the plain steps.
        whole: Steps of the schedule whose last are walked.
    """

    name: ClassVar[str] = "fresh noise"
    own_loop: ClassVar[str] = "that of Edit (no inversion), which"
    pairs: ClassVar[bool] = True

    points: Tensor = field(kw_only=True)
    guesses: Tensor = field(kw_only=True)
    noise: Tensor = field(kw_only=True)
    whole: int = field(kw_only=True)

    def check(self, trajectory: Trajectory) -> None:
        """Refuse tensors of another size, and what would touch the chain alone."""
        levels, *image = trajectory.latents[1 + self.plain_steps :].shape
        draws = self.points.shape[1] if self.points.ndim > 1 else 0
        wanted = {"points": (levels, max(draws, 1), *image), "noise": tuple(image)}
        wanted["guesses"] = wanted["points"]
        for name, tensor in self.tensors.items():
            if tuple(tensor.shape) != wanted[name]:
                raise PalimpsestError(
                    f"The trajectory's {name} are {tuple(tensor.shape)}, they must be "
                    f"{wanted[name]}: those of the levels above the plain steps."
                )
        if len(trajectory.carried) > 1:
            raise PalimpsestError(
                "Proximal Guidance draws an edit back between two steps, an edit without inversion "
                "walks its distance from the picture: take the trajectory of another Invert node."
            )

    def loop(
        self, trajectory: Trajectory, lender: Lender, bank: Bank | None, mask: Tensor | None
    ) -> Editing:
        """The edit at the points."""
        plain, known = self.edit(trajectory), trajectory.recipe.source_key
        if bank is None and known and known == lender.key(Asked("target")):
            return plain  # the target is the source
        return lent(plain, lender, bank, mask)

    def edit(self, trajectory: Trajectory, target: Denoiser | None = None) -> AlignedEdit:
        """The plain edit at the points; of a target that is the source where it is None."""
        return AlignedEdit(
            trajectory,
            self.points,
            self.guesses,
            target,
            manner=self,
            noise=self.noise,
            whole=self.whole,
        )

    def told(self, trajectory: Trajectory, cfg: float) -> str:
        """That correction has no part in it."""
        return "correction is not read: nothing was inverted"
