"""Inversion and editing on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..pipelines.attention.bank import Bank
from ..pipelines.attention.prompt_to_prompt import PromptToPrompt
from ..pipelines.couplings import Convention, ddim
from ..pipelines.editing import Branches, Correction, Edit
from ..pipelines.errors import PalimpsestError
from ..pipelines.schedule import check_falling, vp_scale
from ..pipelines.trajectory import Recipe, Trajectory
from .comfy import (
    BranchGuider,
    Conditioning,
    Session,
    require_variance_preserving,
    run,
)
from .comfy_attention import require_unet
from .comfy_checks import check_mask_count, check_owner, check_samples, check_trajectory
from .comfy_fingerprint import fingerprint
from .comfy_space import OURS, Space


@dataclass(frozen=True, eq=False)
class BoundControl:
    """A control and the two conditionings it was made for.

    Attributes:
        control: The attention control.
        source: [1, tokens, channels] embedding of the source prompt.
        target: [1, tokens, channels] embedding of the target prompt.
    """

    control: PromptToPrompt
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Spent:
    """What a run cost.

    Attributes:
        rows: UNet rows.
        seconds: Wall time, loading included.
    """

    rows: int
    seconds: float


@dataclass(frozen=True, eq=False)
class EditRequest:
    """All that an edit is made of, as it comes from the wires.

    Attributes:
        model: The model.
        trajectory: The recorded chain of the source.
        source: Conditioning of the source prompt.
        target: Conditioning of the target prompt.
        negative: The other end of the guidance.
        cfg: Guidance scale.
        control: Attention control, or None.
        mask: [b, H, W] in 0..1, white where the edit may be; None edits everywhere.
        correction: What is done about the residual.
        keep_source: Follow a drifting source row to the end.
    """

    model: ModelPatcher
    trajectory: Trajectory
    source: Conditioning
    target: Conditioning
    negative: Conditioning
    cfg: float
    control: BoundControl | None
    mask: Tensor | None
    correction: Correction
    keep_source: bool = False

    def check(self) -> None:
        """Refuse what does not belong together.

        Raises:
            PalimpsestError: In one sentence.
        """
        require_variance_preserving(self.model, "Edit")
        check_trajectory(self.model, self.trajectory)
        if self.trajectory.recipe.eta:
            raise PalimpsestError(
                "Edit walks along inversions, this trajectory is drawn noise of Cycle-SDE: connect "
                "it to the trajectory input of Cycle-SDE, or invert the picture with Invert (DDIM)."
            )
        if self.control is not None:
            require_unet(self.model.model, "Prompt-to-Prompt")
            check_owner(self.control.source, self.source, "source")
            check_owner(self.control.target, self.target, "target")
        if self.mask is not None:
            check_mask_count(self.mask, len(self.trajectory.origin))

    def guider(self) -> BranchGuider:
        """A guider with both pairs of conditionings."""
        return self.fill(BranchGuider(self.model))

    def fill(self, guider: BranchGuider) -> BranchGuider:
        """Give a guider the conditionings and the guidance scale."""
        guider.set_conds(self.target, self.negative)
        guider.set_source(self.source, self.negative)
        guider.set_cfg(self.cfg)
        return guider

    def start(self, session: Session) -> Edit:
        """The edit on the model's device."""
        device = session.x0.device
        trajectory = self.trajectory.to(device)
        bank = Bank(self.control.control, trajectory.steps) if self.control else None
        branches = Branches(
            target=session.denoiser(session.target, bank.inject if bank else None),
            source=session.denoiser(session.source, bank.record if bank else None),
            record=session.recorder(session.source, bank.record) if bank else None,
        )
        mask = None if self.mask is None else latent_mask(self.mask, trajectory.origin).to(device)
        return Edit(
            trajectory,
            branches,
            correction=self.correction,
            bank=bank,
            mask=mask,
            keep_source=self.keep_source,
        )


def invert(
    model: ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    samples: Tensor,
    sigmas: Tensor,
    *,
    cfg: float,
    convention: Convention,
    refinement: int,
) -> tuple[Trajectory, Spent]:
    """DDIM inversion of a LATENT.

    Args:
        model: An eps- or v-prediction model.
        positive: Describes the picture as it is.
        negative: The other end of the guidance; not evaluated at cfg 1.
        samples: [B, C, h, w] the LATENT.
        sigmas: [N+1] falling levels, ending at 0.
        cfg: Guidance of the inversion.
        convention: See `couplings.ddim`.
        refinement: See `couplings.ddim`.
    """
    require_variance_preserving(model, "Invert (DDIM)")
    check_falling(sigmas)
    check_samples(model, samples)
    rising = sigmas.flip(0).double().cpu()
    guider = BranchGuider(model)
    guider.set_conds(positive, negative)
    guider.set_source(positive, negative)
    guider.set_cfg(cfg)

    def algorithm(session: Session) -> Tensor:
        return ddim(
            session.denoiser(session.target),
            session.x0,
            rising,
            scale=vp_scale,
            convention=convention,
            refinement=refinement,
            on_step=session.on_step,
        )

    latents, spent = timed(guider, samples, sigmas, algorithm)
    recipe = describe(model, Recipe("ddim", convention, refinement, cfg, rows=spent.rows))
    kept = comfy.model_management.intermediate_device()
    return Trajectory(latents.float().to(kept), rising, samples.to(kept), recipe), spent


def describe(model: ModelPatcher, recipe: Recipe) -> Recipe:
    """A recipe that also says which model it was and how that model scales a LATENT."""
    channels = model.get_model_object("latent_format").latent_channels
    zero, one = (
        model.model.process_latent_out(torch.full((1, channels, 1, 1), value)).flatten().tolist()
        for value in (0.0, 1.0)
    )
    slope = tuple(b - a for a, b in zip(zero, one, strict=True))
    return replace(recipe, model=fingerprint(model), latent_slope=slope, latent_offset=tuple(zero))


def edit(request: EditRequest) -> tuple[Tensor, Tensor | None, Spent]:
    """Edit along a trajectory.

    Returns:
        The edited LATENT samples, those of the source row (None if not followed), and the cost.
    """
    request.check()
    trajectory = request.trajectory

    def algorithm(session: Session) -> tuple[Tensor, Tensor | None]:
        whole = request.start(session)
        edited, chain = whole.run(session.on_step), whole.trajectory
        kept = comfy.model_management.intermediate_device()
        restored = [
            None if x is None else session.restore(x, chain.latents[0], chain.origin).to(kept)
            for x in (edited.latent, edited.source)
        ]
        return restored[0], restored[1]

    (latent, source), spent = timed(
        request.guider(), trajectory.origin, trajectory.falling_sigmas, algorithm
    )
    return latent, source, spent


def timed(
    guider: BranchGuider,
    samples: Tensor,
    levels: Tensor,
    algorithm: Callable[[Session], Any],
    *,
    space: Space = OURS,
    total: int | None = None,
) -> tuple[Any, Spent]:
    """Call `run`, and say what it cost."""
    start = time.perf_counter()
    result, rows = run(guider, samples, levels, algorithm, space=space, total=total)
    return result, Spent(rows, time.perf_counter() - start)


def latent_mask(mask: Tensor, origin: Tensor) -> Tensor:
    """[b, 1, h, w] of a MASK: a cell may change if any of its pixels may.

    Args:
        mask: [b, H, W] in 0..1.
        origin: [B, C, h, w] latent it is meant for.
    """
    size = origin.shape[-2:]
    mask = mask.float().unsqueeze(1).clamp(0, 1)
    if mask.shape[-2] < size[0] or mask.shape[-1] < size[1]:
        return torch.nn.functional.interpolate(mask, size=size, mode="nearest")
    return torch.nn.functional.adaptive_max_pool2d(mask, size)


def reconstruction_text(source: Tensor | None, origin: Tensor) -> str:
    """How well the source row came back, for people: exact, or the PSNR in the latent.

    Args:
        source: [B, C, h, w] where the source row ended, or None if it was not followed.
        origin: [B, C, h, w] the picture that was inverted.
    """
    if source is None:
        return "drifts; connect that output to follow it"
    origin = origin.to(source)  # core may keep latents in half precision
    if torch.equal(source, origin):
        return "exact"
    peak = float(origin.max() - origin.min())
    error = float((source - origin).square().mean())
    return f"{10 * math.log10(peak**2 / error):.1f} dB in the latent"
