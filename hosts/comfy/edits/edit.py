"""Editing on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.attention.bank import Bank, Control
from ....pipelines.correction import Correction, correction_along
from ....pipelines.denoiser import constant
from ....pipelines.editing import Branches, Edit, Editing
from ....pipelines.errors import PalimpsestError
from ....pipelines.inversion.edict import CoupledEdit
from ....pipelines.proximal import ProximalGuidance
from ....pipelines.trajectory import Trajectory
from ..attention import require_unet
from ..coordinates import host_levels, space_of
from ..cost import Spent, timed
from ..fingerprint import features_key, guided_key
from ..guidance import BranchGuider, Conditioning
from ..inversions.proximal import check_proximal
from ..masks import check_mask_count, latent_mask
from ..refusals import check_owner, check_trajectory
from ..session import Session
from ..value_patch import along


@dataclass(frozen=True, eq=False)
class BoundControl:
    """A control and the two conditionings it was made for.

    Attributes:
        control: The attention control.
        source: [1, tokens, channels] embedding of the source prompt.
        target: [prompts, tokens, channels] embeddings of the target prompts, mostly of one.
    """

    control: Control
    source: Tensor
    target: Tensor


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
        self.trajectory.recipe.check_cfg(self.cfg)
        check_proximal(self.model, self.trajectory.recipe.proximal, self.cfg)
        if self.control is not None:
            require_unet(self.model.model, "Prompt-to-Prompt", instead="edit without the control")
            check_owner(self.control.source, self.source, "source")
            check_owner(self.control.target, self.target, "target")
        prompts, pictures = self.prompts, len(self.trajectory.origin)
        if prompts > 1 and pictures not in (1, prompts):
            raise PalimpsestError(
                f"The target holds {prompts} prompts, the trajectory {pictures} pictures: edit one "
                "picture with many prompts, or give as many prompts as pictures."
            )
        if self.mask is not None:
            check_mask_count(self.mask, max(prompts, pictures))

    @property
    def prompts(self) -> int:
        """How many prompts the target is a batch of."""
        return max((len(entry[0]) for entry in self.target), default=1)

    def first(self, start: Tensor) -> Tensor:
        """[rows, C, h, w] where the targets begin: one row per picture, or per prompt of one."""
        return start.expand(max(self.prompts, len(start)), *start.shape[1:])

    def guider(self) -> BranchGuider:
        """A guider with both pairs of conditionings."""
        return self.fill(BranchGuider(self.model))

    def fill(self, guider: BranchGuider) -> BranchGuider:
        """Give a guider the conditionings and the guidance scale."""
        guider.set_conds(self.target, self.negative)
        guider.set_source(self.source, self.negative)
        guider.set_cfg(self.cfg)
        return guider

    def start(self, session: Session) -> Editing:
        """The edit on the model's device."""
        device = session.x0.device
        trajectory = self.trajectory.to(device)
        bank, wanted = self._bank(trajectory), trajectory.recipe.proximal
        mask = None if self.mask is None else latent_mask(self.mask, trajectory.origin).to(device)
        if trajectory.partner is not None:
            return self._coupled(session, trajectory, bank, mask)
        proximal = ProximalGuidance(wanted) if wanted else None
        branches = self._branches(session, trajectory, bank, proximal)
        return Edit(
            trajectory,
            branches,
            correction=correction_along(trajectory, self.correction),
            eta=trajectory.recipe.eta,
            bank=bank,
            mask=mask,
            keep_source=self.keep_source,
            proximal=proximal,
        )

    def _coupled(
        self, session: Session, trajectory: Trajectory, bank: Bank | None, mask: Tensor | None
    ) -> CoupledEdit:
        """The edit along coupled chains."""
        return CoupledEdit(
            trajectory,
            session.denoiser(session.target, bank.inject if bank else None),
            session.space.scale,
            record=session.recorder(session.source, bank.record) if bank else None,
            bank=bank,
            mask=mask,
        )

    def _bank(self, trajectory: Trajectory) -> Bank | None:
        """The bank of the control, with the inversion's features where they are this source's."""
        if self.control is None:
            return None
        kept = trajectory.features
        on_chain = correction_along(trajectory, self.correction).on_chain
        same = kept is not None and kept.key == features_key(self.model, self.source)
        return Bank(self.control.control, trajectory.steps, kept if on_chain and same else None)

    def _branches(
        self,
        session: Session,
        trajectory: Trajectory,
        bank: Bank | None,
        proximal: ProximalGuidance | None,
    ) -> Branches:
        recipe = trajectory.recipe
        source = session.with_uncond(session.source, trajectory)
        target = session.target
        if recipe.uncond_for == "both":
            target = session.with_uncond(target, trajectory)
        guided = None if recipe.source_cfg is None else constant(recipe.source_cfg)
        mix, mix_source = (proximal.mix, proximal.mix_source) if proximal else (None, None)
        record = bank.record if bank else None
        of_source, above = along(session, trajectory)
        branches = Branches(
            target=above.denoiser(target, bank.inject if bank else None, mix=mix),
            source=of_source.denoiser(source, record, guidance=guided, mix=mix_source),
            record=of_source.recorder(session.source, bank.record) if bank else None,
            unedited=above.denoiser(target, mix=mix_source) if bank else None,
        )
        if bank is None and self._repeats(trajectory):
            return replace(branches, source=branches.target)
        return branches

    def _repeats(self, trajectory: Trajectory) -> bool:
        """Whether the target is what the chain's noise was recorded under: nothing is edited."""
        recipe = trajectory.recipe
        if not recipe.eta or trajectory.uncond is not None:
            return False
        source = recipe.source
        target = guided_key(self.model, self.target, self.negative, self.cfg)
        if trajectory.denoised is None:  # the source is going to be asked by this edit
            cfg = self.cfg if recipe.source_cfg is None else recipe.source_cfg
            source = guided_key(self.model, self.source, self.negative, cfg)
        return bool(target) and source == target


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
        edited = whole.run(session.on_step, start=request.first(whole.trajectory.start))
        chain = whole.trajectory
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
