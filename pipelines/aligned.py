"""The edit at points where its source was asked: how far it is from the picture, walked down.

A picture's chain has points a at its levels, and what the source made of them, D. What is walked is
the edit's distance e from the chain, 0 where it begins:

    e_next = c e + (1 - c) (denoise_tgt(a + e, sigma) - D)              c = sigma_next / sigma

No source row is run, nothing large is subtracted from anything large, and a target that says what
the source said leaves e at zero. The points are those of an inversion (Uni-Inv), or the picture
under noise of its own at every level, of which several may be averaged: that is FlowEdit.

The editors without inversion that came after it are numbers of the same step (`Manner`):

    e_next = c' e + (1 - c - zeta (1 + sigma_next)) (denoise_tgt(a + (1 - b) e, sigma) - D)
    c'     = c + (1 - c) b / (1 + sigma)

In flow time t = sigma / (1 + sigma) that is how they are published, with their d = e / (1 + sigma)
and b = t - c_t.

References:
    Kulikov et al. 2024, FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models,
        arXiv:2412.08629, algorithm 1
    Kim et al. 2025, FlowAlign: Trajectory-Regularized, Inversion-Free Flow-based Image Editing,
        arXiv:2505.23145 (zeta)
    Delta Velocity Rectified Flow for Text-to-Image Editing, arXiv:2509.05342 (the lag)
    Xu et al. 2023, Inversion-Free Image Editing with Natural Language, arXiv:2312.04965 (c = 0)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .attention.bank import Bank
from .attention.control import source_roles
from .attention.own_loop import beside_source, kept_within
from .couplings import OnStep
from .denoiser import Denoiser
from .editing import Edited
from .errors import PalimpsestError
from .finite import check_finite
from .lending import Asked, Beside, Lender
from .schedule import Moment, moment_at, step_down, t_from_sigma
from .trajectory import Trajectory

#: How far the point that the target is asked at lags behind the edit: see `Manner.lag`.
Lag = Literal["none", "fading", "whole"]


@dataclass(frozen=True)
class Manner:
    """How the distance from the picture is walked.

    Attributes:
        renoise: c = 0: nothing is carried from one level to the next but through the target's
            guess (the virtual inversion of InfEdit). For models of few steps.
        zeta: What is taken off of the two guesses' difference again, 0 to 1 (FlowAlign).
        lag: b, the part of e that is left out where the target is asked. "none": nothing
            (FlowEdit). "fading": t at the noisiest level of the whole schedule, none of it at the
            image (DVRF). "whole": t, nearly the noised picture itself (delta denoising).
        plain_steps: The last of the steps, that many, are plain sampling under the target, from the
            picture's noise and the distance together: n_min of FlowEdit.
    """

    renoise: bool = False
    zeta: float = 0.0
    lag: Lag = "none"
    plain_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.zeta <= 1:
            raise PalimpsestError(f"Zeta is {self.zeta:g}, it must be 0 to 1: 0.01 is usual.")
        if self.plain_steps < 0:
            raise PalimpsestError(f"The plain steps are {self.plain_steps}: set 0 or more.")


FLOW_EDIT = Manner()


@dataclass(frozen=True, eq=False)
class AlignedEdit:
    """One edit at recorded points: all that is fixed before its first step.

    Attributes:
        trajectory: The chain.
        points: [N - plain steps, draws, B, C, ...] where the source was asked, at the levels above
            the plain steps.
        guesses: Of that shape, what it said.
        target: Guided by the target prompt; reads the bank. None where it is the source: the
            picture is given back.
        record: The source rows that a control reads; fills the bank. None without a control.
        bank: What the source leaves for the target, if there is a control.
        mask: [1 or B, 1, h, w] in 0..1; where it is 0 the picture is kept.
        manner: How e is walked.
        noise: [B, C, ...] the one noise of the plain steps; None where there are none.
        whole: Steps of the whole schedule, of which these are the last; the chain's own if None.
    """

    trajectory: Trajectory
    points: Tensor
    guesses: Tensor
    target: Denoiser | None
    record: Denoiser | None = None
    bank: Bank | None = None
    mask: Tensor | None = None
    manner: Manner = FLOW_EDIT
    noise: Tensor | None = None
    whole: int | None = None

    def __post_init__(self) -> None:
        if self.manner.plain_steps and self.noise is None:
            raise PalimpsestError("Plain steps need a noise of their own, there is none.")

    def run(self, on_step: OnStep | None = None, *, start: Tensor | None = None) -> Edited:
        """Walk all steps; see `Edit.run`."""
        trajectory = self.trajectory
        apart = torch.zeros_like(trajectory.start)
        if start is not None:
            apart = start - trajectory.start
        for i in range(trajectory.steps):
            if self.target is None:
                break
            apart, guess = self.step(i, apart)
            if on_step:
                on_step(i + 1, trajectory.latents[trajectory.steps - i - 1] + apart, guess)
        end = trajectory.latents[0] + apart
        return Edited(end, trajectory.latents[0], self.bank and self.bank.bounds)

    def step(self, i: int, apart: Tensor) -> tuple[Tensor, Tensor]:
        """Take the distance from the chain over step `i`; it and the target's guess.

        Args:
            i: Counts from the noisiest level.
            apart: [B, C, ...] e, at the level of the step.
        """
        at = moment_at(self.trajectory.sigmas, i)
        low = self.trajectory.sigmas[at.steps - i - 1]
        c = 0.0 if self.manner.renoise else step_down(at.sigma, low).c
        if i >= at.steps - self.manner.plain_steps:
            moved, guess = self._plain(at, apart, step_down(at.sigma, low).c)
        else:
            lag = self._lag(at)
            difference, guess = self._difference(at, (1 - lag) * apart if lag else apart)
            kept = c + (1 - c) * lag / (1 + float(at.sigma))
            gained = 1 - c - self.manner.zeta * (1 + float(low))
            moved = kept * apart + gained * difference
        check_finite(moved, at)
        return kept_within(self.bank, self.mask, moved), guess

    def _difference(self, at: Moment, apart: Tensor) -> tuple[Tensor, Tensor]:
        """What the target makes of the points, less what the source made; and the former."""
        asked, guesses = at.steps - at.step - 1 - self.manner.plain_steps, []
        for point in self.points[asked]:
            with beside_source(self.bank, self.record, at, point, len(apart)):
                guesses.append(self.target(point + apart, at.sigma))
        if len(guesses) == 1:
            return guesses[0] - self.guesses[asked, 0], guesses[0]
        pairs = zip(guesses, self.guesses[asked], strict=True)
        differences = torch.stack([guess - known for guess, known in pairs])
        return differences.mean(0), torch.stack(guesses).mean(0)

    def _plain(self, at: Moment, apart: Tensor, c: float) -> tuple[Tensor, Tensor]:
        """A step of plain sampling, less the picture under the noise of the level it leads to."""
        image = self.trajectory.latents[0]
        point = image + float(at.sigma) * self.noise
        with beside_source(self.bank, self.record, at, point, len(apart)):
            guess = self.target(point + apart, at.sigma)
        return c * apart + (1 - c) * (guess - image), guess

    def _lag(self, at: Moment) -> float:
        """b: see `Manner.lag`."""
        if self.manner.lag == "none":
            return 0.0
        t = float(t_from_sigma(at.sigma))
        if self.manner.lag == "whole":
            return t
        return t * (at.steps - at.step) / (self.whole or at.steps)


def lent(plain: AlignedEdit, lender: Lender, bank: Bank | None, mask: Tensor | None) -> AlignedEdit:
    """A plain edit of a host's target, under a control and a mask.

    Args:
        plain: The edit; its target is not read.
        lender: Lends the denoisers.
        bank: Of the control, or None.
        mask: See `AlignedEdit`.
    """
    record, target = None, Asked("target")
    if bank is not None:
        source = Asked("source")
        recorded = replace(source, hooks=bank.recording)
        record = lender.recorder(recorded, source_roles(bank.control))
        beside = Beside(source, bank.beside) if bank.pairs else None
        target = Asked("target", hooks=bank.injecting, beside=beside)
    return replace(plain, target=lender.denoiser(target), record=record, bank=bank, mask=mask)
