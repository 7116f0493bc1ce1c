"""Editing on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.attention.control import Moving
from ....pipelines.attention.masked import masks_of, placed
from ....pipelines.attention.watch import over
from ....pipelines.correction import Correction
from ....pipelines.edit_along import check_control, edit_along
from ....pipelines.editing import Editing
from ....pipelines.errors import PalimpsestError
from ....pipelines.trajectory import Trajectory
from ..coordinates import coordinates_of, host_levels
from ..cost import Spent
from ..guidance import BranchGuider, Conditioning
from ..inversions.proximal import check_proximal
from ..learning.gradients import gradients, trainable
from ..learning.training import check_differentiable
from ..masks import check_mask_fits, latent_mask, pixel_mask
from ..refusals import check_trajectory
from ..session import Session, run
from .bound import BoundControl
from .lent import Lent


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
        coordinates_of(self.model, "Edit")
        check_trajectory(self.model, self.trajectory)
        for carried in self.trajectory.carried:
            carried.check_edit(self.cfg)
        check_control(self.trajectory, self.control and self.control.control)
        check_proximal(self.model, self.trajectory)
        if self.control is not None:
            self.control.check_edit(self.model, self.source, self.target, self.negative)
        if self.moves:
            prompts = {"target": self.target, "negative": self.negative}
            check_differentiable(self.model, prompts, self.control.name)
        prompts, pictures = self.prompts, len(self.trajectory.origin)
        if prompts > 1 and pictures not in (1, prompts):
            raise PalimpsestError(
                f"The target holds {prompts} prompts, the trajectory {pictures} pictures: edit one "
                "picture with many prompts, or give as many prompts as pictures."
            )
        for mask in self.masks:
            check_mask_fits(mask, self.model, self.trajectory.origin, max(prompts, pictures))

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Every MASK that the edit was given: its own, and those of its control."""
        of_control = () if self.control is None else masks_of(self.control.control)
        return of_control if self.mask is None else (self.mask, *of_control)

    @property
    def moves(self) -> bool:
        """Whether the control moves the latent, for which gradients flow through the model."""
        return self.control is not None and isinstance(self.control.control, Moving)

    @property
    def running(self) -> ModelPatcher:
        """The model that runs: where gradients flow, a clone that lets them."""
        return trainable(self.model, self.control.name) if self.moves else self.model

    @contextmanager
    def walking(self, session: Session) -> Iterator[Session]:
        """Within it the edit may be made with the session, and its steps taken."""
        if not self.moves:
            yield session
            return
        name, instead = self.control.name, "edit without the control"
        with gradients(session, name, instead=instead) as learning:
            yield learning

    @property
    def prompts(self) -> int:
        """How many prompts the target is a batch of."""
        return max((len(entry[0]) for entry in self.target), default=1)

    def first(self, start: Tensor) -> Tensor:
        """[rows, C, h, w] where the targets begin: one row per picture, or per prompt of one."""
        return start.expand(max(self.prompts, len(start)), *start.shape[1:])

    def guider(self) -> BranchGuider:
        """A guider with both pairs of conditionings."""
        return self.fill(BranchGuider(self.running))

    def fill(self, guider: BranchGuider) -> BranchGuider:
        """Give a guider the conditionings and the guidance scale."""
        guider.set_conds(self.target, self.negative)
        guider.set_source(self.source, self.negative)
        guider.set_cfg(self.cfg)
        return guider

    def start(self, session: Session) -> Editing:
        """The edit on the model's device."""
        device = session.x0.device

        def cells(mask: Tensor) -> Tensor:
            return latent_mask(mask, self.model, self.trajectory.origin).to(device)

        return edit_along(
            self.trajectory.to(device),
            Lent(self, session),
            control=self.control and placed(self.control.control, cells),
            correction=self.correction,
            mask=None if self.mask is None else cells(self.mask),
            keep_source=self.keep_source,
        )


class Outcome(NamedTuple):
    """What an edit made.

    Attributes:
        latent: [B, C, h, w] the edited LATENT samples.
        source: [B, C, h, w] those of the source row; None if it was not followed.
        spent: The cost.
        bounds: [1 or B, 1, h, w] in 0..1, where the control let the edit be; None where it is none
            that bounds it.
    """

    latent: Tensor
    source: Tensor | None
    spent: Spent
    bounds: Tensor | None


def edit(request: EditRequest) -> Outcome:
    """Edit along a trajectory."""
    request.check()
    trajectory = request.trajectory
    coordinates = coordinates_of(request.model, "Edit")

    def algorithm(session: Session) -> tuple[Tensor | None, ...]:
        with request.walking(session) as walking:
            whole = request.start(walking)
            edited = whole.run(session.on_step, start=request.first(whole.trajectory.start))
        chain = whole.trajectory
        kept = comfy.model_management.intermediate_device()
        restored = [
            None if x is None else session.restore(x, chain.clean, chain.origin).to(kept)
            for x in (edited.latent, edited.source)
        ]
        return *restored, edited.bounds if edited.bounds is None else edited.bounds.to(kept)

    levels = host_levels(coordinates, trajectory.sigmas)
    (latent, source, bounds), spent = run(
        request.guider(), trajectory.origin, levels, algorithm, coordinates=coordinates
    )
    return Outcome(latent, source, spent, bounds)


def allowed(request: EditRequest, bounds: Tensor | None) -> Tensor:
    """[1 or B, H, W] MASK, white where an edit was let be: by its own mask, and by its control.

    Args:
        request: The edit.
        bounds: See `Outcome`.
    """
    origin = request.trajectory.origin
    where = torch.ones(1, 1, *origin.shape[2:])
    if request.mask is not None:
        where = where * latent_mask(request.mask, request.model, origin).cpu()
    if bounds is not None:
        where = where * over(bounds.float().cpu(), where)
    return pixel_mask(where, request.model)


def reconstruction_text(source: Tensor | None, origin: Tensor) -> str:
    """How well the source row came back, for people: exact, or the PSNR in the latent.

    A latent that is the same everywhere has no PSNR: how far the row came off it is said instead.

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
    if not peak or not error:
        return f"off by {math.sqrt(error):.2g} in the latent"
    return f"{10 * math.log10(peak**2 / error):.1f} dB in the latent"
