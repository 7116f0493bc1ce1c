"""Cycle-SDE and DiffEdit on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.correction import CYCLE
from ....pipelines.couplings import LEVELS_AT_ONCE
from ....pipelines.cycle_sde import SourceChain
from ....pipelines.denoiser import Denoiser, constant
from ....pipelines.diffedit import edit_mask
from ....pipelines.editing import Branches, Edit
from ....pipelines.errors import PalimpsestError
from ....pipelines.kept_region import outside
from ....pipelines.noise import seeded
from ....pipelines.trajectory import Trajectory
from ..coordinates import Coordinates, coordinates_of, host_levels, rising_sigmas
from ..cost import Spent
from ..fingerprint import conditioning_key, describe, guided_key, prompt_key
from ..guidance import BranchGuider, Conditioning
from ..masks import check_mask_fits, latent_mask
from ..refusals import check_has_picture, check_samples, check_trajectory
from ..schedules import sigma_of_part
from ..session import Session, run


@dataclass(frozen=True)
class Draws:
    """How many noise draws DiffEdit's mask averages, and where it puts its threshold.

    Attributes:
        count: Noise draws.
        ratio: Threshold in units of half the mean difference.
        strength: Part of the schedule at which the prompts are compared.
    """

    count: int = 10
    ratio: float = 3.0
    strength: float = 0.5


@dataclass(frozen=True, eq=False)
class CycleRequest:
    """An edit by Cycle-SDE, or by its ODE, as it comes from the wires.

    Attributes:
        model: An eps-, v-prediction or flow model.
        source: Describes the picture.
        target: Describes the edit.
        negative: The other end of the guidance.
        samples: [B, C, h, w] the LATENT; read where there is no trajectory.
        levels: [k+1] falling levels, as core's SIGMAS, ending at 0; read with `samples`.
        cfg: Guidance of the target.
        source_cfg: Guidance of the source.
        eta: 1 for the SDE, 0 for the ODE; read with `samples`.
        seed: Of the chain, and of the draws of DiffEdit's mask.
        mask: [b, H, W] in 0..1, white where the edit may be; None edits everywhere.
        trajectory: A chain that an earlier edit recorded; nothing is drawn anew.
        levels_at_once: Levels of the source per model call.
        feature: What the node is called, for messages.
        batch_index: Numbers of the pictures that the noise is drawn by, if they have any.
    """

    model: ModelPatcher
    source: Conditioning
    target: Conditioning
    negative: Conditioning
    samples: Tensor | None
    levels: Tensor | None
    cfg: float
    source_cfg: float = 1.0
    eta: float = 1.0
    seed: int = 0
    mask: Tensor | None = None
    trajectory: Trajectory | None = None
    levels_at_once: int = LEVELS_AT_ONCE
    feature: str = "Cycle-SDE"
    batch_index: tuple[int, ...] | None = None

    def check(self) -> Coordinates:
        """Refuse what does not belong together.

        Raises:
            PalimpsestError: In one sentence.
        """
        coordinates = coordinates_of(self.model, self.feature)
        if self.trajectory is not None:
            check_trajectory(self.model, self.trajectory)
        elif self.samples is None or self.levels is None:
            raise PalimpsestError(
                f"{self.feature} needs a picture: connect a latent, or a trajectory of an earlier "
                "edit."
            )
        else:
            check_samples(self.model, self.samples)
        if self.mask is not None:
            check_mask_fits(self.mask, self.model, self.origin, len(self.origin))
        return coordinates

    @property
    def origin(self) -> Tensor:
        """[B, C, h, w] the picture, as LATENT samples."""
        return self.samples if self.trajectory is None else self.trajectory.origin

    def sigmas(self, coordinates: Coordinates) -> Tensor:
        """[k+1] rising levels of the chain."""
        if self.trajectory is not None:
            return self.trajectory.sigmas
        return rising_sigmas(coordinates, self.levels)

    @property
    def unchanged(self) -> bool:
        """Whether source and target are one denoiser, so that nothing changes."""
        source, target = (conditioning_key(c) for c in (self.source, self.target))
        return bool(source) and source == target and self.cfg == self.source_cfg

    @property
    def source_key(self) -> str:
        """What the source's guesses depend on besides chain and model; "" where it has no name."""
        return guided_key(self.model, self.source, self.negative, self.source_cfg)


def cycle_sde(request: CycleRequest) -> tuple[Tensor, Trajectory, Spent]:
    """Edit a picture along a chain of its own noise.

    Returns:
        The edited LATENT samples, the chain for further edits, and the cost.
    """
    coordinates = request.check()
    sigmas = request.sigmas(coordinates)
    steps = len(sigmas) - 1

    def algorithm(session: Session) -> tuple[Tensor, Trajectory]:
        walk = _Walk(request, session, sigmas, steps)
        return walk.edit(walk.mask(request.mask))

    (latent, trajectory), spent = _run(request, coordinates, sigmas, algorithm)
    return latent, _kept(request, trajectory, spent), spent


def diffedit(request: CycleRequest, draws: Draws) -> tuple[Tensor, Tensor, Trajectory, Spent]:
    """Find where two prompts disagree about a picture, and edit there.

    Returns:
        The edited LATENT samples, [B or B * frames, h, w] the mask in latent cells, the chain,
        and the cost.
    """
    coordinates = request.check()
    check_has_picture(request.origin, "DiffEdit")
    sigmas = request.sigmas(coordinates)
    steps = len(sigmas) - 1
    level = sigma_of_part(request.model, coordinates, draws.strength)

    def algorithm(session: Session) -> tuple[Tensor, Tensor, Trajectory]:
        walk = _Walk(request, session, sigmas, steps)
        x0 = session.x0
        found = edit_mask(
            session.denoiser(session.source, guidance=constant(request.cfg)),
            session.denoiser(session.target),
            x0,
            level,
            draw=seeded(request.seed, request.batch_index),
            draws=draws.count,
            ratio=draws.ratio,
            draws_at_once=max(1, request.levels_at_once // len(x0)),
        )
        allowed = walk.mask(request.mask)
        found = found if allowed is None else found * allowed
        latent, trajectory = walk.edit(found)
        return latent, found[:, 0].flatten(0, -3), trajectory

    (latent, found, trajectory), spent = _run(request, coordinates, sigmas, algorithm)
    return latent, found.to(latent.device), _kept(request, trajectory, spent), spent


@dataclass(frozen=True, eq=False)
class _Walk:
    """Cycle-SDE inside a session."""

    request: CycleRequest
    session: Session
    sigmas: Tensor
    steps: int

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """In the latent's cells, on the model's device."""
        x0 = self.session.x0
        return None if mask is None else latent_mask(mask, self.request.model, x0).to(x0)

    def edit(self, mask: Tensor | None) -> tuple[Tensor, Trajectory]:
        """Record the chain if there is none, and walk back along it."""
        session, request = self.session, self.request
        target = session.denoiser(session.target)
        source = session.denoiser(session.source, guidance=constant(request.source_cfg))
        if request.unchanged:
            source = target
        trajectory = self._chain(None if request.unchanged else source)
        branches, kept = Branches(target, source), outside(mask, trajectory)
        whole = Edit(trajectory, branches, CYCLE, trajectory.recipe.eta, after=kept)
        edited = whole.run(lambda i, x, d: session.on_step(self.steps + i, x, d))
        latent = session.restore(edited.latent, trajectory.clean, trajectory.origin)
        return latent.to(comfy.model_management.intermediate_device()), trajectory

    def _chain(self, source: Denoiser | None) -> Trajectory:
        request, session = self.request, self.session
        given = request.trajectory
        if given is not None:
            given = given.to(session.x0.device)
            known = bool(request.source_key) and given.recipe.source_key == request.source_key
            if source is None or (known and given.denoised is not None):
                return given
        chain = SourceChain(
            self.sigmas,
            source,
            invert=session.denoiser(session.source, guidance=constant(1.0)),
            scale=session.coordinates.scale,
            eta=request.eta if given is None else given.recipe.eta,
            levels_at_once=session.levels_per_call(request.levels_at_once, session.source),
        )
        if given is not None:
            return chain.denoise(given, on_levels=self._tell(given.origin))
        return chain.of(
            session.x0,
            seeded(request.seed, request.batch_index),
            origin=request.samples.to(session.x0),
            on_levels=self._tell(session.x0),
        )

    def _tell(self, shown: Tensor) -> Callable[[int], None]:
        return lambda done: self.session.on_step(done, shown, shown)


def _run(
    request: CycleRequest,
    coordinates: Coordinates,
    sigmas: Tensor,
    algorithm: Callable[[Session], Any],
) -> tuple[Any, Spent]:
    """Run an algorithm over the chain, its progress once up and once down."""
    guider = BranchGuider(request.model)
    guider.set_conds(request.target, request.negative)
    guider.set_source(request.source, request.negative)
    guider.set_cfg(request.cfg)
    levels = host_levels(coordinates, sigmas)
    total = 2 * (len(sigmas) - 1)
    return run(guider, request.origin, levels, algorithm, coordinates=coordinates, total=total)


def _kept(request: CycleRequest, trajectory: Trajectory, spent: Spent) -> Trajectory:
    """The chain as it goes out on the wire."""
    kept = trajectory.to(comfy.model_management.intermediate_device())
    recipe = kept.recipe
    if request.trajectory is None:
        spent_on = replace(recipe, rows=spent.rows, source_cfg=request.source_cfg)
        recipe = replace(describe(request.model, spent_on), prompt=prompt_key(request.source))
    if kept.denoised is not None and not request.unchanged:  # else they are of an earlier source
        recipe = replace(recipe, source_key=request.source_key)
    return replace(kept, recipe=recipe)
