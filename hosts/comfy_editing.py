"""Editing on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..pipelines.attention.bank import Bank
from ..pipelines.attention.prompt_to_prompt import PromptToPrompt
from ..pipelines.denoiser import constant
from ..pipelines.editing import Branches, Correction, Edit, correction_along
from ..pipelines.trajectory import Trajectory
from .comfy import BranchGuider, Conditioning, Session, run
from .comfy_attention import require_unet
from .comfy_checks import check_mask_count, check_owner, check_trajectory
from .comfy_space import OURS, Space, host_levels, space_of


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
        space_of(self.model, "Edit")
        check_trajectory(self.model, self.trajectory)
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
        branches = self._branches(session, trajectory, bank)
        mask = None if self.mask is None else latent_mask(self.mask, trajectory.origin).to(device)
        return Edit(
            trajectory,
            branches,
            correction=correction_along(trajectory, self.correction),
            eta=trajectory.recipe.eta,
            bank=bank,
            mask=mask,
            keep_source=self.keep_source,
        )

    def _branches(self, session: Session, trajectory: Trajectory, bank: Bank | None) -> Branches:
        recipe = trajectory.recipe
        source = session.with_uncond(session.source, trajectory)
        target = session.target
        if recipe.uncond_for == "both":
            target = session.with_uncond(target, trajectory)
        guided = None if recipe.source_cfg is None else constant(recipe.source_cfg)
        return Branches(
            target=session.denoiser(target, bank.inject if bank else None),
            source=session.denoiser(source, bank.record if bank else None, guidance=guided),
            record=session.recorder(session.source, bank.record) if bank else None,
            unedited=session.denoiser(target) if bank else None,
        )


def edit(request: EditRequest) -> tuple[Tensor, Tensor | None, Spent]:
    """Edit along a trajectory.

    Returns:
        The edited LATENT samples, those of the source row (None if not followed), and the cost.
    """
    request.check()
    trajectory = request.trajectory
    space = space_of(request.model, "Edit")

    def algorithm(session: Session) -> tuple[Tensor, Tensor | None]:
        whole = request.start(session)
        edited, chain = whole.run(session.on_step), whole.trajectory
        kept = comfy.model_management.intermediate_device()
        restored = [
            None if x is None else session.restore(x, chain.clean, chain.origin).to(kept)
            for x in (edited.latent, edited.source)
        ]
        return restored[0], restored[1]

    levels = host_levels(space, trajectory.sigmas)
    (latent, source), spent = timed(
        request.guider(), trajectory.origin, levels, algorithm, space=space
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
