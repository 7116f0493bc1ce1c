"""The SDE family on ComfyUI's MODEL, CONDITIONING and LATENT: Cycle-SDE, DiffEdit, SDEdit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..pipelines.cycle_sde import Recorder
from ..pipelines.denoiser import Denoiser, constant
from ..pipelines.diffedit import edit_mask
from ..pipelines.editing import CYCLE, Branches, Edit
from ..pipelines.errors import PalimpsestError
from ..pipelines.noise import Draw, seeded
from ..pipelines.sdedit import sdedit
from ..pipelines.trajectory import Trajectory
from .comfy import BranchGuider, Conditioning, Session, run
from .comfy_checks import check_mask_count, check_samples, check_trajectory
from .comfy_editing import Spent, describe, latent_mask
from .comfy_fingerprint import conditioning_key
from .comfy_space import Space, host_levels, rising_sigmas, space_of


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
    levels_at_once: int = 8
    feature: str = "Cycle-SDE"

    def check(self) -> Space:
        """Refuse what does not belong together.

        Raises:
            PalimpsestError: In one sentence.
        """
        space = space_of(self.model, self.feature)
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
            check_mask_count(self.mask, len(self.origin))
        return space

    @property
    def origin(self) -> Tensor:
        """[B, C, h, w] the picture, as LATENT samples."""
        return self.samples if self.trajectory is None else self.trajectory.origin

    def sigmas(self, space: Space) -> Tensor:
        """[k+1] rising levels of the chain."""
        if self.trajectory is not None:
            return self.trajectory.sigmas
        return rising_sigmas(space, self.levels)

    @property
    def unchanged(self) -> bool:
        """Whether source and target are one denoiser, so that nothing changes."""
        source, target = (conditioning_key(c) for c in (self.source, self.target))
        return bool(source) and source == target and self.cfg == self.source_cfg

    @property
    def source_key(self) -> str:
        """What the source's guesses depend on besides chain and model; "" where it has no name."""
        keys = [conditioning_key(self.source)]
        if self.source_cfg != 1:
            keys.append(conditioning_key(self.negative))
        if self.model.patches:  # LoRA, and whatever else changes weights
            keys.append(str(self.model.patches_uuid))
        if not _plain(self.model.model_options):
            return ""  # patches of calls are functions, which have no name to go by
        return f"{self.source_cfg:g} {' '.join(keys)}" if all(keys) else ""


def _plain(options: dict[str, Any]) -> bool:
    """Whether a model's options hold nothing that changes its calls."""
    return all(isinstance(value, dict) and _plain(value) for value in options.values())


def cycle_sde(request: CycleRequest) -> tuple[Tensor, Trajectory, Spent]:
    """Edit a picture along a chain of its own noise.

    Returns:
        The edited LATENT samples, the chain for further edits, and the cost.
    """
    space = request.check()
    sigmas = request.sigmas(space)
    steps = len(sigmas) - 1

    def algorithm(session: Session) -> tuple[Tensor, Trajectory]:
        walk = _Walk(request, session, sigmas, steps)
        return walk.edit(walk.mask(request.mask))

    (latent, trajectory), spent = timed(_guider(request), request, space, 2 * steps, algorithm)
    return latent, _kept(request, trajectory, spent), spent


def diffedit(request: CycleRequest, draws: Draws) -> tuple[Tensor, Tensor, Trajectory, Spent]:
    """Find where two prompts disagree about a picture, and edit there.

    Returns:
        The edited LATENT samples, [B, h, w] the mask in latent cells, the chain, and the cost.
    """
    space = request.check()
    sigmas = request.sigmas(space)
    steps = len(sigmas) - 1
    level = sigma_of_part(request.model, space, draws.strength)

    def algorithm(session: Session) -> tuple[Tensor, Tensor, Trajectory]:
        walk = _Walk(request, session, sigmas, steps)
        x0 = session.x0
        found = edit_mask(
            session.denoiser(session.source, guidance=constant(request.cfg)),
            session.denoiser(session.target),
            x0,
            level,
            draw=seeded(request.seed),
            draws=draws.count,
            ratio=draws.ratio,
            draws_at_once=max(1, request.levels_at_once // len(x0)),
        )
        allowed = walk.mask(request.mask)
        found = found if allowed is None else found * allowed
        latent, trajectory = walk.edit(found)
        return latent, found[:, 0], trajectory

    (latent, found, trajectory), spent = timed(
        _guider(request), request, space, 2 * steps, algorithm
    )
    return latent, found.to(latent.device), _kept(request, trajectory, spent), spent


@dataclass(frozen=True, eq=False)
class _Walk:
    """Cycle-SDE inside a session."""

    request: CycleRequest
    session: Session
    sigmas: Tensor
    steps: int

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """[b, 1, h, w] on the model's device."""
        x0 = self.session.x0
        return None if mask is None else latent_mask(mask, x0).to(x0)

    def edit(self, mask: Tensor | None) -> tuple[Tensor, Trajectory]:
        """Record the chain if there is none, and walk back along it."""
        session, request = self.session, self.request
        target = session.denoiser(session.target)
        source = session.denoiser(session.source, guidance=constant(request.source_cfg))
        if request.unchanged:
            source = target
        trajectory = self._chain(None if request.unchanged else source)
        whole = Edit(trajectory, Branches(target, source), CYCLE, trajectory.recipe.eta, mask=mask)
        edited = whole.run(lambda i, x, d: session.on_step(self.steps + i, x, d))
        latent = session.restore(edited.latent, trajectory.latents[0], trajectory.origin)
        return latent.to(comfy.model_management.intermediate_device()), trajectory

    def _chain(self, source: Denoiser | None) -> Trajectory:
        request, session = self.request, self.session
        given = request.trajectory
        if given is not None:
            given = given.to(session.x0.device)
            known = bool(request.source_key) and given.recipe.source == request.source_key
            if source is None or (known and given.denoised is not None):
                return given
        recorder = Recorder(
            self.sigmas,
            source,
            invert=session.denoiser(session.source, guidance=constant(1.0)),
            scale=session.space.scale,
            eta=request.eta if given is None else given.recipe.eta,
            levels_at_once=session.levels_per_call(request.levels_at_once, session.source),
        )
        if given is not None:
            return recorder.denoise(given, on_levels=self._tell(given.origin))
        return recorder.record(
            session.x0,
            seeded(request.seed),
            origin=request.samples.to(session.x0),
            on_levels=self._tell(session.x0),
        )

    def _tell(self, shown: Tensor) -> Callable[[int], None]:
        return lambda done: self.session.on_step(done, shown, shown)


def _guider(request: CycleRequest) -> BranchGuider:
    guider = BranchGuider(request.model)
    guider.set_conds(request.target, request.negative)
    guider.set_source(request.source, request.negative)
    guider.set_cfg(request.cfg)
    return guider


def _kept(request: CycleRequest, trajectory: Trajectory, spent: Spent) -> Trajectory:
    """The chain as it goes out on the wire."""
    kept = trajectory.to(comfy.model_management.intermediate_device())
    recipe = kept.recipe
    if request.trajectory is None:
        recipe = describe(request.model, replace(recipe, rows=spent.rows))
    if kept.denoised is not None and not request.unchanged:  # else they are of an earlier source
        recipe = replace(recipe, source=request.source_key)
    return replace(kept, recipe=recipe)


def timed(
    guider: BranchGuider,
    request: CycleRequest | SDEditRequest,
    space: Space,
    total: int,
    algorithm: Callable[[Session], Any],
) -> tuple[Any, Spent]:
    """Run an algorithm over a request's levels and say what it cost."""
    start = time.perf_counter()
    levels = host_levels(space, request.sigmas(space))
    result, rows = run(guider, request.origin, levels, algorithm, space=space, total=total)
    return result, Spent(rows, time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class SDEditRequest:
    """A guide to be painted anew, as it comes from the wires.

    Attributes:
        model: An eps-, v-prediction or flow model.
        positive: What the picture shall show.
        negative: The other end of the guidance.
        samples: [B, C, h, w] the guide, a LATENT.
        levels: [k+1] falling levels, as core's SIGMAS; the first is where the walk begins.
        cfg: Guidance scale.
        seed: Of all noise.
        mask: [b, H, W] in 0..1, white where it is painted anew; None everywhere.
        eta: 1 for the SDE, 0 for the ODE.
        order: 1, or 2 for DPM-Solver++ (2M).
        repeats: How often.
        wipe: Begin with noise alone where the mask is open.
        feature: What the node is called, for messages.
    """

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    samples: Tensor
    levels: Tensor
    cfg: float
    seed: int
    mask: Tensor | None = None
    eta: float = 1.0
    order: Literal[1, 2] = 1
    repeats: int = 1
    wipe: bool = False
    feature: str = "SDEdit"

    @property
    def origin(self) -> Tensor:
        """[B, C, h, w] the guide, as LATENT samples."""
        return self.samples

    def sigmas(self, space: Space) -> Tensor:
        """[k+1] rising levels."""
        return rising_sigmas(space, self.levels)


def paint_anew(request: SDEditRequest) -> tuple[Tensor, Spent]:
    """SDEdit, and inpainting.

    Returns:
        The painted LATENT samples and the cost.
    """
    space = space_of(request.model, request.feature)
    check_samples(request.model, request.samples)
    if request.mask is not None:
        check_mask_count(request.mask, len(request.samples))
    guider = BranchGuider(request.model)
    guider.set_conds(request.positive, request.negative)
    guider.set_source(request.positive, request.negative)
    guider.set_cfg(request.cfg)
    draw: Draw = seeded(request.seed)

    def algorithm(session: Session) -> Tensor:
        x0, mask = session.x0, request.mask
        painted = sdedit(
            x0,
            request.sigmas(space),
            session.denoiser(session.target),
            draw=draw,
            mask=None if mask is None else latent_mask(mask, x0).to(x0),
            eta=request.eta,
            order=request.order,
            repeats=request.repeats,
            wipe=request.wipe,
            on_step=session.on_step,
        )
        restored = session.restore(painted, x0, request.samples)
        return restored.to(comfy.model_management.intermediate_device())

    total = request.repeats * (len(request.levels) - 1)
    return timed(guider, request, space, total, algorithm)


def part_of_schedule(model: ModelPatcher, scheduler: str, steps: int, t0: float) -> Tensor:
    """The last `t0` of a schedule's falling levels, as the SDE papers count.

    Args:
        model: The model.
        scheduler: A name of core's.
        steps: Of the whole way from pure noise.
        t0: The part of them that is walked, 0 to 1.

    Raises:
        PalimpsestError: If no step is left, or the schedule has no such levels.
    """
    if not 0 <= t0 <= 1:
        raise PalimpsestError(f"t0 must be above 0 and at most 1, got {t0}: try 0.6.")
    if steps < 1:
        raise PalimpsestError(f"Steps must be 1 or more, got {steps}.")
    sampling = model.get_model_object("model_sampling")
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, steps).cpu()
    walked = round(t0 * (len(whole) - 1))
    if walked < 1:
        raise PalimpsestError(
            f"t0 {t0:g} of {steps} steps leaves no step to walk, so nothing would change: raise t0 "
            f"to at least {1 / steps:.2g}."
        )
    levels = whole[-(walked + 1) :]
    if not bool((levels.diff() < 0).all()):
        raise PalimpsestError(
            f"The schedule {scheduler!r} has no {steps} different levels: use fewer steps or "
            "another scheduler."
        )
    return levels


def sigma_of_part(model: ModelPatcher, space: Space, part: float) -> Tensor:
    """0-d noise level at a part of the model's training timesteps."""
    if not 0 < part <= 1:
        raise PalimpsestError(
            f"The mask's strength must be above 0 and at most 1, got {part}: try 0.5."
        )
    levels = model.get_model_object("model_sampling").sigmas
    level = levels[max(0, round(part * len(levels)) - 1)]
    return space.sigma(torch.as_tensor(level).double().cpu())
