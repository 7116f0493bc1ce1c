"""EDICT: two coupled chains, each of which steps where the other one stands.

A DDIM step needs the noise at the latent it starts from, which the step back does not know. Of two
chains x and y, each moved by the noise at the other, it does. A step down from sigma to sigma_next,
x first in every even step and y first in every odd one (counted from the noisiest level):

    x <- x + (sigma_next - sigma) n(y, sigma)
    y <- y + (sigma_next - sigma) n(x s(sigma_next) / s(sigma), sigma)
    x <- p x + (1 - p) y
    y <- p y + (1 - p) x

The second line takes a latent of the level below under the label of the level above; s is how the
model family scales its input. The last two, the mixing, keep the chains together. In x and the
difference d = y - x they are

    x <- x + (1 - p) d                  d <- p^2 d

An inversion undoes all this line by line, from the last to the first, and is exact in exact
arithmetic. It divides d by p^2 at every step: what it rounds grows 330 times in 40 steps at
p = 0.93, and a network that is chaotic makes more of it on the way back. The published code
answers with float64 throughout. Here the inversion records both chains and the denoised guess D of
every evaluation, and an edit walks the deviations u = x_edit - x, v = y_edit - y from them:

    u <- u + (sigma_next - sigma) (n_target(y + v, sigma) - n_source(y, sigma))          and so on

which is the same recurrence. A target that says what the source said leaves u and v at zero: the
picture comes back bit for bit, in every precision of the network.

On the published grid the lowest two levels are equal. Such a step only mixes: it is not evaluated.

References:
    Wallace, Gokul & Naik 2022, EDICT: Exact Diffusion Inversion via Coupled Transformations,
        arXiv:2211.12446, section 4 (coupling, mixing, alternation)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..attention.bank import Bank
from ..attention.control import source_roles
from ..attention.own_loop import beside_source, kept_within
from ..carried import Carried
from ..couplings import OnStep
from ..denoiser import Denoiser, noise_of
from ..editing import Edited, Editing
from ..errors import PalimpsestError
from ..finite import check_finite
from ..lending import Asked, Lender
from ..schedule import Family, Scale, check_rising, moment_at
from ..trajectory import Recipe, Trajectory
from .method import Inverted


class Pair(NamedTuple):
    """Both chains at one level, or their deviations: [B, C, ...] each."""

    x: Tensor
    y: Tensor

    def moved(self, chain: int, by: Tensor) -> Pair:
        """The pair with one of the chains (0 or 1) moved."""
        return Pair(self.x + by, self.y) if chain == 0 else Pair(self.x, self.y + by)


def mix(pair: Pair, mixing: float) -> Pair:
    """The end of a step down: the chains move towards each other."""
    gap = pair.y - pair.x
    x = pair.x + (1 - mixing) * gap
    return Pair(x, x + mixing**2 * gap)


def unmix(pair: Pair, mixing: float) -> Pair:
    """The inverse of `mix`: how the chains lay before."""
    gap = (pair.y - pair.x) / mixing**2
    x = pair.x - (1 - mixing) * gap
    return Pair(x, x + gap)


def drop_rests(sigmas: Tensor) -> tuple[Tensor, int]:
    """Levels without those that repeat the lowest one, and how many these were.

    Args:
        sigmas: [N+1] levels that never fall; on the published grid the first two are equal.
    """
    rests = int((sigmas[1:] == sigmas[0]).sum())
    return sigmas[rests:], rests


def couple(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    *,
    family: Family,
    mixing: float = 0.93,
    rests: int = 0,
    on_step: OnStep | None = None,
) -> Inverted:
    """Invert an image by EDICT; both chains begin as the image.

    Args:
        denoise: The guided source.
        x0: [B, C, ...] float32, the image at `sigmas[0]`.
        sigmas: [N+1] rising noise levels; the first may be 0. `drop_rests` takes out equal ones.
        family: How the latents of the model family relate to x.
        mixing: The weight p, in [0.5, 1]; 1 leaves the chains unmixed.
        rests: Steps at the lowest level that `drop_rests` took out.
        on_step: Progress callback.

    Returns:
        The chain x, which carries the chain y and the guesses.

    Raises:
        PalimpsestError: If the levels do not rise, the weight is out of range, or the latents stop
            being finite.
    """
    check_rising(sigmas)
    if not 0.5 <= mixing <= 1:
        raise PalimpsestError(f"The mixing must be 0.5 to 1, got {mixing}: 0.93 is usual.")
    steps, pairs, guesses = len(sigmas) - 1, [Pair(x0, x0)], []
    for level in range(1, steps + 1):
        sigma, below = sigmas[level], sigmas[level - 1]
        first, pair = _first(steps - level), unmix(pairs[-1], mixing)
        read = _shown(pair[first], below, sigma, family.scale)
        late = denoise(read, sigma)
        pair = pair.moved(1 - first, (sigma - below) * noise_of(read, late, sigma))
        read = pair[1 - first]
        early = denoise(read, sigma)
        pair = pair.moved(first, (sigma - below) * noise_of(read, early, sigma))
        if not all(bool(torch.isfinite(chain).all()) for chain in pair):
            raise PalimpsestError(
                f"The inversion left the finite numbers at step {level} of {steps} "
                f"(sigma {float(sigma):.4g}): use a lower cfg, a mixing nearer 1 or more steps."
            )
        pairs.append(pair)
        guesses.append(torch.stack([early, late]))
        if on_step:
            on_step(level, pair.x, early)
    x, y = (torch.stack(chain) for chain in zip(*pairs, strict=True))
    coupled = Coupled(y, torch.stack(guesses), mixing, rests)
    return Inverted(x, Recipe("edict"), carried=(coupled,))


def _first(step: int) -> int:
    """Which chain a step down moves first; steps count from the noisiest level."""
    return step % 2


def _shown(x: Tensor, at: Tensor, sigma: Tensor, scale: Scale) -> Tensor:
    """A latent of the level `at`, for a call that is labelled with the level `sigma`."""
    return x * (scale(at) / scale(sigma))


@dataclass(frozen=True, eq=False)
class Coupled(Carried):
    """The other chain, which an edit walks together with the recorded one.

    Attributes:
        partner: [N+1, B, C, ...] the chain y; the trajectory's latents are x.
        guesses: [N, 2, B, C, ...] the denoised guesses of a step's two evaluations, at the levels
            1 to N, in the order in which an edit makes them.
        mixing: The weight p.
        rests: Steps of a published grid at whose lowest level the chains only mix.
    """

    name: ClassVar[str] = "coupled chain"
    own_loop: ClassVar[str] = "EDICT's, whose two chains"

    partner: Tensor
    guesses: Tensor
    mixing: float
    rests: int = 0

    def check(self, trajectory: Trajectory) -> None:
        """Refuse chains that do not belong together, and what would touch one of them alone."""
        chain, steps = trajectory.latents.shape, trajectory.steps
        wanted = {"partner": tuple(chain), "guesses": (steps, 2, *chain[1:])}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if found != wanted:
            raise PalimpsestError(
                f"The trajectory's coupled chains are {found}, they must be a partner of "
                f"{tuple(chain)} and guesses of {(steps, 2, *chain[1:])}."
            )
        if not 0.5 <= self.mixing <= 1:
            raise PalimpsestError(
                f"The mixing of the trajectory's coupled chains is {self.mixing}, it must be 0.5 "
                "to 1."
            )
        if len(trajectory.carried) > 1:
            raise PalimpsestError(
                "Proximal Guidance draws an edit back to one chain, EDICT has two that are "
                "coupled: take the trajectory of another Invert node."
            )

    def loop(
        self, trajectory: Trajectory, lender: Lender, bank: Bank | None, mask: Tensor | None
    ) -> Editing:
        """The edit along both chains."""
        record = bank and lender.recorder(
            Asked("source", hooks=bank.recording), source_roles(bank.control)
        )
        target = Asked("target", hooks=bank.injecting) if bank else Asked("target")
        return CoupledEdit(
            trajectory, self, lender.denoiser(target), lender.scale, record, bank, mask
        )

    def told(self, trajectory: Trajectory, cfg: float) -> str:
        """That correction has no part in it, and where it does not hold the picture."""
        text = "correction is not read: the chains of EDICT lead back by themselves"
        if cfg == trajectory.recipe.cfg:
            return text
        return (
            f"{text}\ncfg is {cfg:g}, that of Invert (EDICT) {trajectory.recipe.cfg:g}: the "
            "picture is only kept where they are equal"
        )


@dataclass(frozen=True, eq=False)
class CoupledEdit:
    """One edit along coupled chains: all that is fixed before its first step.

    Attributes:
        trajectory: Its latents are the chain x.
        coupled: The chain y, and what the source made of both.
        target: Guided by the target prompt; reads the bank.
        scale: How the model family scales its input.
        record: The source rows that the control reads and no more; fills the bank before each of
            the two evaluations of a step. None without a control.
        bank: Attention recorded from the source and read by the target, if there is a control.
        mask: [1 or B, 1, h, w] in 0..1; where it is 0 both chains are the recorded ones.
        record_at: Where the source is evaluated for the control: on its own recorded chains, or at
            the edit's latents, as the published code does.
    """

    trajectory: Trajectory
    coupled: Coupled
    target: Denoiser
    scale: Scale
    record: Denoiser | None = None
    bank: Bank | None = None
    mask: Tensor | None = None
    record_at: Literal["chain", "edit"] = "chain"

    def run(self, on_step: OnStep | None = None, *, start: Tensor | None = None) -> Edited:
        """Walk all steps, from the noisiest level to the lowest.

        Args:
            on_step: Progress callback.
            start: [B, C, ...] chain x of the target at the noisiest level, or one row per target;
                the recorded one if not given.
        """
        end = self.walk(on_step, start=start)
        return Edited(end.x, self.trajectory.latents[0], self.bank and self.bank.bounds)

    def walk(self, on_step: OnStep | None = None, *, start: Tensor | None = None) -> Pair:
        """As `run`, but both chains at the lowest level."""
        trajectory = self.trajectory
        begin = trajectory.start if start is None else start
        off = Pair(begin - trajectory.start, torch.zeros_like(begin))
        for i in range(trajectory.steps):
            off, guess = self.step(i, off)
            if on_step:
                here = self._recorded(trajectory.steps - i - 1)
                on_step(i + 1, here.x + off.x, guess)
        for _ in range(self.coupled.rests):
            off = mix(off, self.coupled.mixing)
        end = self._recorded(0)
        return Pair(end.x + off.x, end.y + off.y)

    def step(self, i: int, off: Pair) -> tuple[Pair, Tensor]:
        """Take the deviations from the recorded chains over step `i`, and the target's guess.

        Args:
            i: Counts from the noisiest level.
            off: [B, C, ...] each, at the level of the step.
        """
        mixing = self.coupled.mixing
        level, first = self.trajectory.steps - i, _first(i)
        sigma, below = self.trajectory.sigmas[level], self.trajectory.sigmas[level - 1]
        above, under = self._recorded(level), unmix(self._recorded(level - 1), mixing)
        early, late = self.coupled.guesses[level - 1]
        gap, guess = self._noise_gap(i, above[1 - first], off[1 - first], early, sigma)
        off = off.moved(first, (below - sigma) * gap)
        read, aside = (_shown(x, below, sigma, self.scale) for x in (under[first], off[first]))
        gap, _ = self._noise_gap(i, read, aside, late, sigma)
        off = mix(off.moved(1 - first, (below - sigma) * gap), mixing)
        check_finite(off.x, moment_at(self.trajectory.sigmas, i))
        return Pair(*(kept_within(self.bank, self.mask, o) for o in off)), guess

    def _recorded(self, level: int) -> Pair:
        """The recorded chains at a level."""
        return Pair(self.trajectory.latents[level], self.coupled.partner[level])

    def _noise_gap(
        self, i: int, read: Tensor, aside: Tensor, source_guess: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How far the target's noise is from the source's, and the target's guess.

        Args:
            i: The step.
            read: [B, C, ...] where the source was evaluated.
            aside: How far from there the target is.
            source_guess: What the source made of it.
            sigma: The level both are labelled with.
        """
        at = read + aside
        moment = moment_at(self.trajectory.sigmas, i)
        source_at = read if self.record_at == "chain" else at
        with beside_source(self.bank, self.record, moment, source_at):
            guess = self.target(at, sigma)
        return (aside - (guess - source_guess)) / sigma, guess
