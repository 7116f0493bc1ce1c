"""Editing on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.attention.bank import Control, Moving, source_roles
from ....pipelines.attention.hooks import Role
from ....pipelines.correction import Correction
from ....pipelines.denoiser import Denoiser
from ....pipelines.edit_along import check_control, edit_along
from ....pipelines.editing import Editing
from ....pipelines.errors import PalimpsestError
from ....pipelines.lending import Asked
from ....pipelines.schedule import Scale
from ....pipelines.trajectory import Trajectory
from ..attention import heads_of, require_unet
from ..coordinates import coordinates_of, host_levels
from ..cost import Spent
from ..fingerprint import conditioning_key, features_key, guided_key
from ..guidance import BranchGuider, Conditioning, Conds
from ..inversions.proximal import check_proximal
from ..learning.gradients import gradients, trainable
from ..learning.training import check_differentiable
from ..masks import check_mask_fits, latent_mask
from ..refusals import check_one_entry, check_owner, check_trajectory
from ..session import Session, run
from ..value_patch import with_values


@dataclass(frozen=True, eq=False)
class BoundControl:
    """A control, and the two conditionings it was made for where it is about their words.

    Attributes:
        control: The attention control.
        source: [1, tokens, channels] embedding of the source prompt; None takes any.
        target: [prompts, tokens, channels] embeddings of the target prompts, mostly of one; None
            takes any.
        name: Of the node that made it, for messages.
    """

    control: Control
    source: Tensor | None = None
    target: Tensor | None = None
    name: str = "Prompt-to-Prompt"

    def check_source(self, source: Conditioning, role: str) -> None:
        """Refuse a source whose attention the control could not read.

        Args:
            source: Conditioning of the source prompt.
            role: The name of that input, for messages.
        """
        check_one_entry(source, role)
        if self.source is not None:
            check_owner(self.source, source, role)

    def check_prompts(
        self, source: Conditioning, target: Conditioning, negative: Conditioning
    ) -> None:
        """Refuse conditionings that it was not made for, or could not read."""
        self.check_source(source, "source")
        if self.target is not None:
            check_owner(self.target, target, "target")
        if "uncond" in source_roles(self.control):
            check_one_entry(negative, "negative")


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
            require_unet(self.model.model, self.control.name, instead="edit without the control")
            self.control.check_prompts(self.source, self.target, self.negative)
        if self.moves:
            prompts = {"target": self.target, "negative": self.negative}
            check_differentiable(self.model, prompts, self.control.name)
        prompts, pictures = self.prompts, len(self.trajectory.origin)
        if prompts > 1 and pictures not in (1, prompts):
            raise PalimpsestError(
                f"The target holds {prompts} prompts, the trajectory {pictures} pictures: edit one "
                "picture with many prompts, or give as many prompts as pictures."
            )
        if self.mask is not None:
            origin = self.trajectory.origin
            check_mask_fits(self.mask, self.model, origin, max(prompts, pictures))

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
        device, mask = session.x0.device, None
        if self.mask is not None:
            mask = latent_mask(self.mask, self.model, self.trajectory.origin).to(device)
        return edit_along(
            self.trajectory.to(device),
            Lent(self, session),
            control=self.control and self.control.control,
            correction=self.correction,
            mask=mask,
            keep_source=self.keep_source,
        )


@dataclass(frozen=True, eq=False)
class Lent:
    """A session and the prompts of a request, as a `lending.Lender`."""

    request: EditRequest
    session: Session

    @property
    def scale(self) -> Scale:
        """How the model family scales its input."""
        return self.session.coordinates.scale

    @property
    def cfg(self) -> float:
        """Guidance scale of the edit."""
        return self.request.cfg

    @property
    def heads(self) -> Sequence[int]:
        """Attention heads of every transformer block."""
        return heads_of(self.session.guider.inner_model.diffusion_model)

    def denoiser(self, asked: Asked) -> Denoiser:
        """The guided denoiser of a branch."""
        conds = self._conds(asked)
        if asked.negative is not None:
            conds = self.session.with_negative(conds, asked.negative)
        return self._under(asked).denoiser(
            conds,
            asked.hooks,
            guidance=asked.guidance,
            mix=asked.mix,
            conditional=asked.conditional,
        )

    def recorder(self, asked: Asked, roles: Sequence[Role]) -> Denoiser:
        """Some rows of a branch alone; within `EditRequest.walking` gradients flow through them."""
        conds = self._conds(asked)
        if asked.negative is None or "uncond" not in roles:
            return self._under(asked).recorder(conds, asked.hooks, roles=roles)
        conds_at = self.session.with_negative(conds, asked.negative)

        def record(x: Tensor, sigma: Tensor) -> Tensor:
            here = self._under(asked).recorder(conds_at(sigma), asked.hooks, roles=roles)
            return here(x, sigma)

        return record

    def one_row(self, asked: Asked) -> bool:
        """Whether the prompt of a branch is the negative prompt."""
        if asked.negative is not None or asked.values is not None:
            return False
        key = conditioning_key(self._prompt(asked))
        return bool(key) and key == conditioning_key(self.request.negative)

    def key(self, asked: Asked) -> str:
        """What tells the guided prediction of a branch from others; "" where nothing does."""
        request = self.request
        if asked.negative is not None or asked.values is not None:
            return ""
        positive = self._prompt(asked)
        # A guidance that is not the edit's own is the same at every level here.
        cfg = request.cfg if asked.guidance is None else asked.guidance(1.0)
        return guided_key(request.model, positive, request.negative, cfg)

    def features_key(self) -> str:
        """What the source's features depend on besides the chain."""
        return features_key(self.request.model, self.request.source)

    def _prompt(self, asked: Asked) -> Conditioning:
        return self.request.source if asked.prompt == "source" else self.request.target

    def _conds(self, asked: Asked) -> Conds:
        return self.session.source if asked.prompt == "source" else self.session.target

    def _under(self, asked: Asked) -> Session:
        """The session, with values mapped where the branch maps them."""
        return self.session if asked.values is None else with_values(self.session, asked.values)


def edit(request: EditRequest) -> tuple[Tensor, Tensor | None, Spent]:
    """Edit along a trajectory.

    Returns:
        The edited LATENT samples, those of the source row (None if not followed), and the cost.
    """
    request.check()
    trajectory = request.trajectory
    coordinates = coordinates_of(request.model, "Edit")

    def algorithm(session: Session) -> tuple[Tensor, Tensor | None]:
        with request.walking(session) as walking:
            whole = request.start(walking)
            edited = whole.run(session.on_step, start=request.first(whole.trajectory.start))
        chain = whole.trajectory
        kept = comfy.model_management.intermediate_device()
        restored = [
            None if x is None else session.restore(x, chain.clean, chain.origin).to(kept)
            for x in (edited.latent, edited.source)
        ]
        return restored[0], restored[1]

    levels = host_levels(coordinates, trajectory.sigmas)
    (latent, source), spent = run(
        request.guider(), trajectory.origin, levels, algorithm, coordinates=coordinates
    )
    return latent, source, spent


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
