"""Null-text inversion: at every step an unconditional embedding that leads back to the picture.

Under guidance w the way down leaves the chain z* of DDIM inversion. Step by step the embedding u
that stands for the empty prompt is fitted, so that it comes back:

    eps_w = eps(x, u) + w (eps(x, c) - eps(x, u))
    L(u) = mse(z_{k-1}(x; eps_w), z*_{k-1})              in the model's own, VP coordinates
    x <- x_{k-1}(x; eps_w) with the fitted u             the source's path, which the edit follows

A step begins with the embedding of the step before it and a new Adam. The published constants count
the steps from the noisiest, i = 0, 1, ...: learning rate 1e-2 (1 - i / 100), and no further inner
step where L, before the update, was below epsilon + 2e-5 i. They were chosen for 50 steps and are
kept for fewer; above 50, i is replaced by 50 i / N, since the learning rate would fall below 0.

The path is kept, so that the edit along it needs no unconditional row of its source. Variants:

    null-text     the embeddings stand for the negative prompt of both rows
    source only   of the source's row alone (NT-S); the target keeps the negative prompt
    null-latent   nothing stands for it: the source's latents are set (NL)

Null-latent optimises the unconditional embeddings of source and target under the loss of the
source, adds to the source's step under the plain negative prompt the offset

    o = x_{k-1}(x; u) - x_{k-1}(x; "")

and goes on from there. No gradient of that loss reaches the target's embedding, which Adam
therefore leaves alone (0 / (0 + 1e-8)); and the source's latent becomes x_{k-1}(x; "") + o =
x_{k-1}(x; u), by induction the path of NT-S. The target is denoised under the plain prompt in both.
So they differ in what is kept: NL needs the latents alone.

References:
    Mokady et al. 2022, Null-text Inversion for Editing Real Images using Guided Diffusion Models,
        arXiv:2211.09794, algorithm 1 (its authors' code where the two differ)
    Ju et al. 2023, Direct Inversion, arXiv:2310.01506, ablations (NT-S and NL)
    Kingma & Ba 2014, Adam, arXiv:1412.6980, algorithm 1
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..couplings import OnStep
from ..denoiser import Denoiser, guide
from ..errors import PalimpsestError
from ..schedule import Step, step_down, vp_scale
from ..trajectory import Trajectory
from .negative_embedding import NegativeEmbedding

#: The steps that the published constants were chosen for.
PUBLISHED_STEPS = 50

#: What the edit does with the embeddings.
Variant = Literal["null-text", "source only", "null-latent"]

#: The unconditional prediction of some pictures: (x, sigma, their embeddings [b, T, C], which
#: pictures they are) -> D. Gradients flow to the embeddings.
Unconditional = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class NullText:
    """How the embeddings are fitted.

    Attributes:
        cfg: Guidance of the way down, and of the edit to come.
        inner_steps: At most so many steps of Adam per level.
        epsilon: Early stop: the loss below which the noisiest level is left.
        learning_rate: Adam's at the noisiest level.
    """

    cfg: float = 7.5
    inner_steps: int = 10
    epsilon: float = 1e-5
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        if self.inner_steps < 0:
            raise PalimpsestError(f"The inner steps must be 0 or more, got {self.inner_steps}.")
        if not 0 <= self.epsilon < float("inf"):
            raise PalimpsestError(
                f"The early stop must be a loss of 0 or more, got {self.epsilon}: 1e-5 is usual."
            )
        if self.cfg == 1:
            raise PalimpsestError(
                "The cfg is 1, at which nothing depends on the negative and nothing can be "
                "learned: set the cfg that the Edit shall have, 7.5 for example."
            )

    def rate(self, i: int, steps: int) -> float:
        """Adam's learning rate at step `i` of `steps`."""
        return self.learning_rate * (1 - _published(i, steps) / 100)

    def threshold(self, i: int, steps: int) -> float:
        """The loss below which step `i` of `steps` is done."""
        return self.epsilon + 2e-5 * _published(i, steps)


def _published(i: int, steps: int) -> float:
    """Where in the published 50 steps a step lies."""
    return i * min(1.0, PUBLISHED_STEPS / steps)


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was learned.

    Attributes:
        latents: [N+1, B, C, ...] the path of the source under the embeddings, from clean to noisy.
        uncond: [N, B, T, C] the embeddings, in float32 at least, at the levels 1 to N.
        losses: [N, B] the loss that each of these levels was left with.
        inner_steps: Steps of Adam, over all levels and pictures.
    """

    latents: Tensor
    uncond: Tensor
    losses: Tensor
    inner_steps: int


def fit(
    conditional: Denoiser,
    unconditional: Unconditional,
    chain: Tensor,
    sigmas: Tensor,
    start: Tensor,
    settings: NullText,
    *,
    on_step: OnStep | None = None,
) -> Fitted:
    """Fit the embeddings along a chain of DDIM inversion; a picture that is done is left alone.

    Per level one conditional row, one unconditional row for each inner step (with a backward pass),
    and one under the fitted embedding.

    Args:
        conditional: The source's prediction without guidance.
        unconditional: That under an embedding.
        chain: [N+1, B, C, ...] from DDIM inversion of the source without guidance.
        sigmas: [N+1] its rising levels.
        start: [1 or B, T, C] the embedding of the negative prompt.
        settings: How.
        on_step: Progress callback.

    Raises:
        PalimpsestError: If the latents stop being finite.
    """
    steps, pictures = len(sigmas) - 1, chain.shape[1]
    x, u = chain[-1], start.to(torch.promote_types(start.dtype, torch.float32))
    u = u.expand(pictures, -1, -1)
    path, embeddings, losses, inner = [x], [], [], 0
    for i in range(steps):
        level = steps - i
        with torch.no_grad():
            d_cond = conditional(x, sigmas[level])
        step = _Step(x, d_cond, chain[level - 1], sigmas, level, settings.cfg)
        u, spent = _fit_step(unconditional, step, u, i, settings)
        with torch.no_grad():
            everyone = range(pictures)
            denoised, x, loss = step.taken(unconditional(x, sigmas[level], u, everyone), everyone)
        if not bool(torch.isfinite(x).all()):
            raise PalimpsestError(
                f"The optimisation left the finite numbers at step {i + 1} of {steps} (sigma "
                f"{float(sigmas[level]):.4g}): use a lower cfg, fewer inner steps, or a model "
                "in bfloat16 or float32."
            )
        path.append(x)
        embeddings.append(u)
        losses.append(loss)
        inner += spent
        if on_step:
            on_step(i + 1, x, denoised)
    kept = (torch.stack(tensors[::-1]) for tensors in (path, embeddings, losses))
    return Fitted(*kept, inner)


def carried_by(
    chain: Trajectory, fitted: Fitted, settings: NullText, variant: Variant
) -> Trajectory:
    """The trajectory of a fitted picture.

    Args:
        chain: Of its DDIM inversion; its recipe says the rows of both.
        fitted: What was learned along it.
        settings: How it was learned.
        variant: What the edit does with it.
    """
    method = variant if variant == "null-latent" else "null-text"
    made = replace(
        chain,
        latents=fitted.latents,
        recipe=replace(chain.recipe, method=method, cfg=settings.cfg),
        image=chain.latents[0],
    )
    if variant == "null-latent":
        return made
    rows = "source" if variant == "source only" else "both"
    return made.with_carried(NegativeEmbedding(fitted.uncond, rows, settings.cfg))


@dataclass(frozen=True, eq=False)
class _Step:
    """A guided step down from `level`, and the latent of the chain that it shall end at."""

    x: Tensor
    d_cond: Tensor
    wanted: Tensor
    sigmas: Tensor
    level: int
    cfg: float

    def taken(self, d_uncond: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Guided guess, next latent and loss [b] of some pictures."""
        low = self.sigmas[self.level - 1]
        step: Step = step_down(self.sigmas[self.level], low)
        x, d_cond, wanted = (t[list(rows)] for t in (self.x, self.d_cond, self.wanted))
        denoised = guide(d_cond, d_uncond, self.cfg)
        x_next = step.c * x + (1 - step.c) * denoised
        missed = float(vp_scale(low)) * (x_next - wanted)
        return denoised, x_next, missed.square().flatten(1).mean(1)


def _fit_step(
    unconditional: Unconditional, step: _Step, u: Tensor, i: int, settings: NullText
) -> tuple[Tensor, int]:
    """The embeddings of one level, and the inner steps they took."""
    sigma, steps = step.sigmas[step.level], len(step.sigmas) - 1
    active, adam, spent = list(range(len(u))), Adam(torch.zeros_like(u), torch.zeros_like(u)), 0
    u = u.clone()
    for _ in range(settings.inner_steps):
        leaf = u[active].requires_grad_()
        with torch.enable_grad():
            d_uncond = unconditional(step.x[active], sigma, leaf, active)
            loss = step.taken(d_uncond, active)[2]
            # The sum of squares, not the mean: in half precision the slopes of that vanish.
            size = step.x[0].numel()
            (slope,) = torch.autograd.grad(size * loss.sum(), leaf)
        moved, adam = adam.step(slope / size, active, settings.rate(i, steps))
        u[active] -= moved
        spent += len(active)
        far = (loss.detach() >= settings.threshold(i, steps)).tolist()
        active = [row for row, goes_on in zip(active, far, strict=True) if goes_on]
        if not active:
            break
    return u, spent


@dataclass(frozen=True, eq=False)
class Adam:
    """The state of Adam where every row moves until it is done.

    Attributes:
        mean: [B, ...] of the slopes.
        square: [B, ...] of their squares.
        count: Steps taken.
    """

    mean: Tensor
    square: Tensor
    count: int = 0

    def step(self, slope: Tensor, rows: Sequence[int], rate: float) -> tuple[Tensor, "Adam"]:
        """How far some rows move against their slopes, and the state after that."""
        rows, count = list(rows), self.count + 1
        mean, square = self.mean.clone(), self.square.clone()
        mean[rows] = 0.9 * mean[rows] + 0.1 * slope
        square[rows] = 0.999 * square[rows] + 0.001 * slope.square()
        unbiased = mean[rows] / (1 - 0.9**count)
        size = (square[rows] / (1 - 0.999**count)).sqrt() + 1e-8
        return rate * unbiased / size, Adam(mean, square, count)
