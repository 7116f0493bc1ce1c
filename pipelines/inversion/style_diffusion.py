"""StyleDiffusion: a picture's appearance, learned as a mapping of cross-attention's values.

Under guidance the way down leaves the chain z* of DDIM inversion. Step by step a small network M_i
brings it back. It takes tokens E of the picture to a scale and a shift of the text embedding c,
where the conditional branch computes values; keys keep the text, so the layout stays its own:

    K: c        V: c~ = c * s_i + b_i        (s_i, b_i) = M_i(E)

    M_i = conv -> conv, batch norm, leaky ReLU -> conv        kernel 1; tokens are the channels

M_i begins as M_{i-1} and is fitted by Adam to

    L_i = mse(z_{k-1}(x; s_i, b_i), z*_{k-1}) + w_A sum over layers mse(A*_k, A(x; s_i, b_i))

in VP coordinates, where x is the latent that the fitted steps before led to and A*_k are the
cross-attention maps seen while inverting at z*_k, without the mapping. Batch norm sees one picture,
always with its own statistics: it norms every token over its width.

The published constants count steps of 50, from the noisiest: n_i = ceil(100 exp(-0.1 i)) rounds
(1071 in all), learning rate 1e-2 (1 - i / 100), stop below 1e-5 + 2e-5 i after the update. With N
steps i is replaced by 50 i / N.

References:
    Li et al. 2023, StyleDiffusion: Prompt-Embedding Inversion for Text-Based Editing,
        arXiv:2303.15649, section 3 (its authors' code where the two differ)
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.cross_maps import CrossMaps, paired
from ..couplings import OnStep, ddim
from ..denoiser import Denoiser, guide
from ..errors import PalimpsestError
from ..schedule import step_down, vp_scale
from ..trajectory import Recipe
from .mapped_values import MappedValues
from .mapping_network import ValueMapping, mapping_of, new_networks

#: The steps that the published constants count.
PUBLISHED_STEPS = 50

#: The conditional prediction under a value mapping [2, B, T, C]; gradients flow to the mapping.
Mapped = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fitting:
    """How the mapping is learned.

    Attributes:
        rounds: Optimiser steps in all, spread over the steps as published; 1071 at 50 steps.
        cfg: Guidance of the way down that is fitted, and of the edit to come.
        learning_rate: Adam's at the noisiest step; it falls to half of that.
        map_weight: Weight of the maps in the loss; 0 leaves them out.
        early_stop: Loss at which the noisiest step is good enough; later ones allow more.
        seed: Of the first network.

    Raises:
        PalimpsestError: If a number is out of its range.
    """

    rounds: int = 1071
    cfg: float = 7.5
    learning_rate: float = 1e-2
    map_weight: float = 1.0
    early_stop: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cfg == 0 or not math.isfinite(self.cfg):
            raise PalimpsestError(
                f"The cfg is {self.cfg}: at 0 the prompt, whose values are learned, has no part in "
                "the picture; set it to that of the edit, 7.5 as published."
            )
        positive = {"learning rate": self.learning_rate}
        at_least_0 = {"map weight": self.map_weight, "early stop": self.early_stop}
        for name, value in (positive | at_least_0).items():
            if not math.isfinite(value) or value < 0 or (name in positive and value == 0):
                least = "above 0" if name in positive else "0 or more"
                raise PalimpsestError(f"The {name} must be {least}, got {value}.")


@dataclass(frozen=True, eq=False)
class Source:
    """What a host lends: the picture's own prompt, in three predictions.

    Attributes:
        plain: The conditional prediction; fills `maps`.
        uncond: The unconditional prediction.
        mapped: The conditional prediction under a value mapping, differentiable; fills `maps`.
        context: (tokens, channels) of the embedding whose values are mapped.
        maps: The maps of the last conditional prediction; None where they do not count.
    """

    plain: Denoiser
    uncond: Denoiser
    mapped: Mapped
    context: tuple[int, int]
    maps: CrossMaps | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """A picture with its mapping.

    Attributes:
        latents: [N+1, B, C, ...] the path of the source under guidance and mapping, rising.
        values: [N, 2, B, T, C] scale and shift at the levels 1 to N.
        rounds: Of learning in all; a batch goes on until its last picture is good enough.
        losses: The mean loss of the pictures before the last update, at the levels 1 to N.
    """

    latents: Tensor
    values: Tensor
    rounds: int
    losses: tuple[float, ...]


def carried_by(
    fitted: Fitted, fitting: Fitting, value_window: float, rows: int
) -> tuple[Recipe, MappedValues]:
    """How the trajectory of a fitted picture was made, and what it carries.

    Args:
        fitted: What was learned.
        fitting: How it was learned.
        value_window: See `MappedValues`.
        rows: UNet rows it cost.
    """
    recipe = Recipe("style diffusion", "destination", cfg=fitting.cfg, rows=rows)
    return recipe, MappedValues(fitted.values, fitting.cfg, value_window)


def rounds_per_step(steps: int, total: int) -> list[int]:
    """Rounds of every step, the noisiest first: ceil(a exp(-0.1 i)), with the a that gives `total`.

    Raises:
        PalimpsestError: If there is less than one for every step.
    """
    if total < steps:
        raise PalimpsestError(
            f"The learning has {total} rounds for {steps} steps: give it at least one for each."
        )
    weights = [math.exp(-0.1 * _published(i, steps)) for i in range(steps)]
    counts = [1] * steps
    due = [(1 / weight, i) for i, weight in enumerate(weights)]  # it rises, so it is a heap
    for _ in range(total - steps):
        _, i = due[0]
        counts[i] += 1
        heapq.heapreplace(due, (counts[i] / weights[i], i))
    return counts


def _published(i: int, steps: int) -> float:
    """Where a step lies among the published fifty."""
    return i * PUBLISHED_STEPS / steps


def fit(
    source: Source,
    tokens: Tensor,
    x0: Tensor,
    sigmas: Tensor,
    fitting: Fitting,
    *,
    on_step: OnStep | None = None,
) -> Fitted:
    """Invert a picture and learn its value mapping.

    Args:
        source: The model, conditioned on a description of the picture.
        tokens: [B, E, C] of the picture, as wide as the text embedding (see `image_tokens`).
        x0: [B, C, ...] float32, the picture at `sigmas[0]`.
        sigmas: [N+1] rising levels.
        fitting: How to learn.
        on_step: Progress callback; it counts the steps up and then the rounds.

    Raises:
        PalimpsestError: If the rounds are too few, or the loss stops being finite.
    """
    steps = len(sigmas) - 1
    rounds = rounds_per_step(steps, fitting.rounds)
    chain, maps = _invert(source, x0, sigmas, on_step)
    networks = new_networks(tokens, source.context[0], fitting.seed)
    path, values, losses, spent = [chain[-1]], [], [], 0
    for i, most in enumerate(rounds):
        level, x = steps - i, path[-1]
        seen = [m.to(x.device) for m in maps[min(level, steps - 1)]]
        way = _Way(source, sigmas[level], sigmas[level - 1], fitting, _published(i, steps))
        with torch.no_grad():
            uncond = source.uncond(x, way.sigma)
        done, loss = way.learn(networks, tokens, (x, uncond), (chain[level - 1], seen), most)
        with torch.no_grad():
            mapping = mapping_of(networks, tokens)
            x, denoised = way.walk(x, uncond, mapping)
        path.append(x)
        values.append(mapping)
        losses.append(loss)
        spent += done
        if on_step:
            on_step(steps + sum(rounds[: i + 1]), x, denoised)
    rising = torch.stack(path).flip(0), torch.stack(values).flip(0)
    return Fitted(*rising, spent, tuple(reversed(losses)))


def _invert(
    source: Source, x0: Tensor, sigmas: Tensor, on_step: OnStep | None
) -> tuple[Tensor, list[list[Tensor]]]:
    """The DDIM chain, and the maps at its levels 0 to N-1, kept in main memory."""
    maps: list[list[Tensor]] = []

    def keep(done: int, x: Tensor, denoised: Tensor) -> None:
        maps.append([] if source.maps is None else [m.cpu() for m in source.maps.take()])
        if on_step:
            on_step(done, x, denoised)

    with torch.no_grad():
        return ddim(source.plain, x0, sigmas, scale=vp_scale, on_step=keep), maps


@dataclass(frozen=True, eq=False)
class _Way:
    """One step down, whose mapping is learned; `i` counts in the published steps."""

    source: Source
    sigma: Tensor
    sigma_next: Tensor
    fitting: Fitting
    i: float

    def walk(self, x: Tensor, uncond: Tensor, mapping: Tensor) -> tuple[Tensor, Tensor]:
        """The latent of the next level under a mapping, and the guided guess that leads there."""
        denoised = guide(self.source.mapped(x, self.sigma, mapping), uncond, self.fitting.cfg)
        c = step_down(self.sigma, self.sigma_next).c
        return c * x + (1 - c) * denoised, denoised

    def learn(
        self,
        networks: list[ValueMapping],
        tokens: Tensor,
        start: tuple[Tensor, Tensor],
        wanted: tuple[Tensor, list[Tensor]],
        most: int,
    ) -> tuple[int, float]:
        """Fit the networks, one per picture; a picture that is good enough rests.

        Args:
            networks: What learns.
            tokens: What they are shown.
            start: The latent, and its unconditional guess.
            wanted: The chain at the next level, and the maps.
            most: Rounds at most.

        Returns:
            Rounds spent, and the pictures' mean loss before their last update.
        """
        rate = self.fitting.learning_rate * (1 - self.i / 100)
        optimisers = [torch.optim.Adam(network.parameters(), lr=rate) for network in networks]
        last, done = [0.0] * len(networks), 0
        learns = [True] * len(networks)
        while any(learns) and done < most:
            with torch.enable_grad():
                x_next, _ = self.walk(*start, mapping_of(networks, tokens))
                losses = self._losses(x_next, *wanted)
                losses.sum().backward()
            done += 1
            for b, loss in enumerate(losses.tolist()):
                if learns[b]:
                    last[b] = loss
                    optimisers[b].step()
                optimisers[b].zero_grad()
                learns[b] &= loss >= self.fitting.early_stop + 2e-5 * self.i
            _check_finite(last, self.i)
        return done, sum(last) / len(last)

    def _losses(self, x_next: Tensor, wanted: Tensor, wanted_maps: list[Tensor]) -> Tensor:
        """[B] the loss of every picture, after a walk."""
        missed = vp_scale(self.sigma_next).to(x_next) * (x_next - wanted)
        losses = missed.square().flatten(1).mean(1)
        if self.source.maps is not None:
            for seen, aim in paired(self.source.maps.take(), wanted_maps):
                per_picture = (seen - aim).square().flatten(1).mean(1)
                losses = losses + self.fitting.map_weight * per_picture
        return losses


def _check_finite(losses: list[float], i: float) -> None:
    if not all(map(math.isfinite, losses)):
        raise PalimpsestError(
            f"The learning left the finite numbers after {2 * i:.0f} % of the steps: use a lower "
            "cfg or learning rate, or a model in float32 or bfloat16."
        )
