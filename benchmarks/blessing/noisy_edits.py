"""Edits of noisy samples of two Gaussians, and where ODE, SDE and Cycle-SDE take them.

References:
    Nie et al. 2023, The Blessing of Randomness: SDE Beats ODE in General Diffusion-based Image
        Editing, arXiv:2311.01410, eq. 6 to 8 (Cycle-SDE), theorem 3.3, eq. 12 (copy and paste)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...pipelines import couplings
from ...pipelines.correction import CYCLE
from ...pipelines.denoiser import Denoiser
from ...pipelines.editing import Branches, Edit
from ...pipelines.noise import seeded
from ...pipelines.schedule import vp_scale
from ...pipelines.trajectory import Recipe, Trajectory
from .laws import histogram, kl, number
from .toy import END_BINS, MIXTURE, sd_sigmas, walk


@dataclass(frozen=True)
class NoisyEdit:
    """Something done to noisy particles `x` [P, 1] of a level, with fresh noise at hand."""

    name: str
    apply: Callable[[Tensor, float, Tensor], Tensor]


def _mix(x: Tensor, size: float, noise: Tensor) -> Tensor:
    """What SDE-Drag does to the place that something was dragged away from, beta 0.3."""
    return 0.3 * x + math.sqrt(1 - 0.3**2) * size * noise


#: `size` is sqrt(1 + sigma^2): the deviation, in x, of what has deviation 1 in z.
NOISY_EDITS = (
    NoisyEdit("none", lambda x, size, noise: x),
    NoisyEdit("shifted by half a deviation", lambda x, size, noise: x + 0.5 * size),
    NoisyEdit("times 1.1", lambda x, size, noise: 1.1 * x),
    NoisyEdit("mixed with noise, beta 0.3", _mix),
)


@dataclass(frozen=True)
class Ended:
    """Edited particles: divergence from the data, and root mean square distance to the source."""

    kl: float
    distance: float


@dataclass(frozen=True, eq=False)
class Source:
    """Samples of the data and the two chains that lead from them up to t0.

    Attributes:
        markov: [N+1, P, 1] noised step by step.
        inverted: [N+1, P, 1] by DDIM inversion.
        sigmas: [N+1] rising.
    """

    markov: Tensor
    inverted: Tensor
    sigmas: Tensor

    def edits(self, edit: NoisyEdit) -> dict[str, Ended]:
        """One edit at the noisiest level, and where each method takes it."""
        size = 1 / float(vp_scale(self.sigmas[-1]))
        noise = seeded(2)(self.markov[0])
        noised, inverted = (
            edit.apply(chain[-1], size, noise) for chain in (self.markov, self.inverted)
        )
        falling = self.sigmas.flip(0)
        ends = {
            "ODE": walk(MIXTURE, inverted, falling, eta=0, draw=seeded(3)),
            "Cycle-SDE": cycle_sde(MIXTURE, self.markov, noised, self.sigmas),
            "SDE": walk(MIXTURE, noised, falling, eta=1, draw=seeded(3)),
        }
        return {name: self._ended(end) for name, end in ends.items()}

    def _ended(self, x: Tensor) -> Ended:
        shares = histogram(x.flatten(), END_BINS)
        distance = float((x - self.markov[0]).square().mean().sqrt())
        return Ended(kl(shares, MIXTURE.masses(END_BINS, number(0))), distance)


def make_source(particles: int, steps: int = 200, start: float = 0.6) -> Source:
    """Draw from the data and record both chains up to `start`, a fraction of the schedule."""
    sigmas, draw = sd_sigmas(steps, start), seeded(0)
    x0 = MIXTURE.draw(particles, draw)[:, None]
    inverted = couplings.ddim(MIXTURE, x0, sigmas, scale=vp_scale, convention="current")
    return Source(couplings.markov(x0, sigmas, draw), inverted, sigmas)


def cycle_sde(denoise: Denoiser, chain: Tensor, x: Tensor, sigmas: Tensor) -> Tensor:
    """Take edited particles `x` down along the recorded chain of their source.

    The delta form of Cycle-SDE (eq. 6 to 8), with one denoiser for source and target:
        x_next = chain_next + c (x - chain) + (1 - c) (D(x) - D(chain))
    """
    trajectory = Trajectory(chain, sigmas, chain[0], Recipe("markov", eta=1.0))
    return Edit(trajectory, Branches(denoise, denoise), CYCLE, eta=1.0).run(start=x).latent
