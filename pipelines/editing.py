"""The one edit loop: a target denoised along a recorded chain of its source.

A chain x_src of the source leaves at every step a residual that the model's mean does not explain,

    R = x_src_next - c * x_src - (1 - c) * denoise_src(x_src)

the inversion error of an ODE chain, the recorded noise of an SDE chain. Every edit is

    x_next = c * x + (1 - c) * denoise_tgt(x) + target_strength * R

The source row that the target's attention reads is the chain itself (Direct Inversion), or drifts:

    x_src' <- mean_src(x_src') + s (x_src_next - mean_src(x_src'))

with s = scale at every `interval`-th step and 0 between. s = 0 is the uncorrected baseline. An edit
that takes nothing of R and has eta above 0 draws fresh noise instead: the plain SDE.

At target strength 1 the noise of the chain cancels, and nothing small is divided by (the delta
form; Cycle-SDE is this with eta 1 on a Markov chain):

    x_next = x_src_next + c (x - x_src) + (1 - c) (denoise_tgt(x) - denoise_src(x_src))

Of the source it needs denoise_src(x_src) alone, which the chain fixes before the edit begins:
`couplings.denoise_chain` computes it for many levels in one call.

The residual may also be that of the target's own denoiser, unedited, along the chain (the paper's
"add target"): R is then what denoise_tgt does not explain of x_src.

A step is the equation. Who moves x before it (`rows.Stepping`) and what happens after it (a mask, a
pull towards the chain, a blend) is handed in.

A second-order step puts for D the line through the last two denoised guesses, taken at the middle
of the step in log sigma (DPM-Solver++ 2M, with or without noise):

    D' = D + (D - D_last) h / (2 h_last)           h = log(sigma / sigma_next)

References:
    Ju et al. 2023, Direct Inversion: Boosting Diffusion-based Editing with 3 Lines of Code,
        arXiv:2310.01506, algorithm 1 and the ablations
    Song et al. 2020, Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 12 (eta)
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, eq. 6 to 8 (Cycle-SDE)
    Lu et al. 2022, DPM-Solver++, arXiv:2211.01095, algorithm 2 (2M, and its SDE of appendix D)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from .attention.bank import Bank
from .correction import DIRECT_INVERSION, Correction, residual
from .couplings import OnStep
from .denoiser import Denoiser
from .errors import PalimpsestError
from .finite import check_finite
from .noise import Draw
from .rows import After, Guess, Rows, Stepping, Traced
from .schedule import Moment, Step, moment_at, step_down
from .trajectory import Trajectory

#: What a step runs of the source: all that guidance needs, the rows a control reads, or nothing.
SourceRows = Literal["guided", "recorded", "none"]


@dataclass(frozen=True, eq=False)
class Branches:
    """The denoisers of an edit.

    Attributes:
        target: Guided by the target prompt; reads the bank.
        source: Guided by the source prompt as the target is; fills the bank. Run where the source
            row drifts or its residual is added to the target. The same object as `target` where
            an untouched latent shall come back bit for bit.
        record: The source rows that the control reads and no more; fills the bank. Run where the
            source row is the chain. None without a control.
        unedited: The target's without a control; run along the chain where the residual of the
            target is added. `target` itself if None.
        traced: As `target`, and says where guidance changed anything: asked in its place.
        stepping: Moves the target before it denoises it: asked in the place of both.
    """

    target: Denoiser
    source: Denoiser
    record: Denoiser | None = None
    unedited: Denoiser | None = None
    traced: Traced | None = None
    stepping: Stepping | None = None


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit: all that is fixed before its first step. Steps count from the noisiest level.

    Attributes:
        trajectory: The recorded chain of the source.
        branches: The denoisers.
        correction: What is done about the residual.
        eta: Of the step down; 0 for an ODE chain, 1 for an SDE chain.
        bank: Attention recorded from the source and read by the target, if there is a control.
        keep_source: Follow a drifting source row to the end although nothing reads it.
        draw: Fresh noise for the target where eta is above 0 and nothing of R is added to it.
        order: 1, or 2 for second-order steps of a target that takes nothing of R.
        after: What happens to the rows after every step, in order.
    """

    trajectory: Trajectory
    branches: Branches
    correction: Correction = DIRECT_INVERSION
    eta: float = 0.0
    bank: Bank | None = None
    keep_source: bool = False
    draw: Draw | None = None
    order: Literal[1, 2] = 1
    after: tuple[After, ...] = ()

    def __post_init__(self) -> None:
        if self.order == 2 and self.correction.target_strength:
            raise PalimpsestError(
                "A second-order step has no residual that could be added to the target: use order "
                "1, or a correction with target strength 0."
            )

    @cached_property
    def source_rows(self) -> list[SourceRows]:
        """What each step runs of the source: a row that no one reads is never run."""
        steps, correction = self.trajectory.steps, self.correction
        adds_source = correction.target_strength and correction.residual_of == "source"
        if adds_source and self.trajectory.denoised is None:
            return ["guided"] * steps
        moments = [moment_at(self.trajectory.sigmas, i) for i in range(steps)]
        if correction.on_chain:
            return ["recorded" if self._runs_source(at) else "none" for at in moments]
        # A drifting source is followed as long as some later step still reads it.
        read = [at.step + 1 for at in moments if self._reads_source(at)]
        last = steps if self.keep_source else max(read, default=0)
        return ["guided"] * last + ["none"] * (steps - last)

    def _reads_source(self, at: Moment) -> bool:
        """Whether anyone reads the source in a step."""
        active = self.bank is not None and self.bank.control.active(at)
        return active or any(after.reads_source(at) for after in self.after)

    def _runs_source(self, at: Moment) -> bool:
        """Whether a step has to run the source for them: not where the inversion kept it."""
        runs = self.bank is not None and self.bank.runs(at)
        return runs or any(after.reads_source(at) for after in self.after)

    def step(self, i: int, rows: Rows) -> Rows:
        """Take both rows from the level of step `i` to the next.

        Args:
            i: Counts from the noisiest level.
            rows: At the level of the step. The guess that led there makes a step of order 2; a step
                without one is of order 1.
        """
        trajectory, at = self.trajectory, moment_at(self.trajectory.sigmas, i)
        level = trajectory.steps - i
        chain, chain_next = trajectory.latents[level], trajectory.latents[level - 1]
        if self._untouched(rows.target, chain):
            return Rows(chain_next, chain_next, Guess(trajectory.latents[0]))
        step = step_down(at.sigma, trajectory.sigmas[level - 1], self.eta)
        with self._recorded(at):
            d_source = self._denoise_source(rows.source, at, len(rows.target))
            d_chain = self._denoise_chain(chain, at, d_source)
            x, guess = self._denoise_target(rows.target, at)
        used = self._extrapolated(level, guess, rows.guess)
        x_next = _target_step(x, used, chain, chain_next, d_chain, step, self.correction)
        if self.draw is not None and step.sigma_up and not self.correction.target_strength:
            x_next = x_next + step.sigma_up * self.draw(x)
        source = self._source_step(rows.source, d_source, chain_next, step, at)
        moved = Rows(x_next, source, guess)
        for after in self.after:
            moved = after(moved, chain_next, at)
        check_finite(moved.target, at)
        return moved

    @contextmanager
    def _recorded(self, at: Moment) -> Iterator[None]:
        """Within a step the bank holds what the source row leaves; after it, nothing."""
        if self.bank is not None:
            self.bank.begin(at)
        yield
        if self.bank is not None:
            self.bank.begin(None)

    def _denoise_source(self, source: Tensor, at: Moment, targets: int) -> Tensor | None:
        """Run the source rows of a step; their prediction, where it is that of the guidance.

        Args:
            source: Where they stand.
            at: The step.
            targets: How many rows of the target there are.
        """
        rows = self.source_rows[at.step]
        if rows == "guided":
            return self.branches.source(source, at.sigma)
        if rows == "recorded" and self.branches.record is not None:
            self._fill(source, at, targets)
        return None

    def _fill(self, source: Tensor, at: Moment, targets: int) -> None:
        """Run the source rows that are read, for what is seen in them."""
        if self.bank is None:
            self.branches.record(source, at.sigma)
        else:
            self.bank.fill(self.branches.record, source, targets)

    def _denoise_chain(self, chain: Tensor, at: Moment, d_source: Tensor | None) -> Tensor | None:
        """The prediction along the chain whose residual is added to the target, if one is."""
        if not self.correction.target_strength:
            return None
        if self.correction.residual_of == "target":
            return (self.branches.unedited or self.branches.target)(chain, at.sigma)
        kept = self.trajectory.denoised
        return d_source if kept is None else kept[at.steps - at.step - 1]

    def _denoise_target(self, x: Tensor, at: Moment) -> tuple[Tensor, Guess]:
        """Where the target goes on from, and the guess there."""
        branches = self.branches
        if branches.stepping is not None:
            return branches.stepping(x, at)
        if branches.traced is not None:
            return x, branches.traced(x, at.sigma)
        return x, Guess(branches.target(x, at.sigma))

    def _untouched(self, x: Tensor, chain: Tensor) -> bool:
        """Whether both rows are the chain under one denoiser: their difference is zero then."""
        if self.correction.residual_of == "target":
            same = self.branches.unedited in (None, self.branches.target)
        else:
            same = self.branches.target is self.branches.source
        added = self.bank is None and self.correction.target_strength == 1
        return same and added and torch.equal(x, chain)

    def _extrapolated(self, level: int, guess: Guess, last: Guess | None) -> Tensor:
        """The D' of a second-order step from `level`; D itself where the step is of order 1."""
        if self.order == 1 or last is None or level == 1:
            return guess.denoised  # the last step is long in log sigma, or endless: first order
        before, now, after = (float(self.trajectory.sigmas[level + i]) for i in (1, 0, -1))
        ahead = math.log(now / after) / (2 * math.log(before / now))
        return guess.denoised + ahead * (guess.denoised - last.denoised)

    def _source_step(
        self, source: Tensor, d_source: Tensor | None, chain_next: Tensor, step: Step, at: Moment
    ) -> Tensor:
        """The source row at the next level: the chain itself, or where its own steps lead."""
        if self.correction.on_chain:
            return chain_next
        if d_source is None:  # no one follows it any more
            return source
        mean = step.c * source + (1 - step.c) * d_source
        return mean + self.correction.scale_at(at.step) * (chain_next - mean)

    def run(self, on_step: OnStep | None = None, *, start: Tensor | None = None) -> Edited:
        """Walk all steps, from the noisiest level to the lowest.

        Args:
            on_step: Progress callback.
            start: [B, C, ...] the target at the noisiest level; the chain's own if not given.

        Raises:
            PalimpsestError: If the latents stop being finite, naming the step.
        """
        top = self.trajectory.start
        rows = Rows(top if start is None else start, top)
        for i in range(self.trajectory.steps):
            rows = self.step(i, rows)
            if on_step:
                on_step(i + 1, rows.target, rows.guess.denoised)
        followed = self.correction.on_chain or self.source_rows[-1] == "guided"
        bounds = self.bank and self.bank.bounds
        return Edited(rows.target, rows.source if followed else None, bounds)


@dataclass(frozen=True, eq=False)
class Edited:
    """Latents at the lowest level.

    Attributes:
        latent: [B, C, ...] the edit.
        source: [B, C, ...] where the source row ended, or None if it was not followed to the end.
        bounds: [1 or B, 1, h, w] in 0..1, where the control let the edit be in its last step; None
            where it is none that bounds it.
    """

    latent: Tensor
    source: Tensor | None
    bounds: Tensor | None = None


class Editing(Protocol):
    """An edit along a trajectory, whatever its loop: this one's, or that of coupled chains."""

    @property
    def trajectory(self) -> Trajectory: ...

    def run(self, on_step: OnStep | None = None, *, start: Tensor | None = None) -> Edited:
        """Walk all steps; see `Edit.run`."""
        ...


def _target_step(
    x: Tensor,
    d_target: Tensor,
    chain: Tensor,
    chain_next: Tensor,
    d_chain: Tensor | None,
    step: Step,
    correction: Correction,
) -> Tensor:
    """The target at the next level."""
    c, strength = step.c, correction.target_strength
    mean = c * x + (1 - c) * d_target
    if not strength or d_chain is None:
        return mean
    if strength == 1:
        # The delta form: nothing small is divided by, and equal rows cancel bit for bit.
        return chain_next + (c * (x - chain) + (1 - c) * (d_target - d_chain))
    return mean + strength * residual(chain, chain_next, d_chain, step)
