"""An edit as core's GUIDER."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....pipelines.denoiser import RowCount
from ....pipelines.editing import Edit
from ....pipelines.errors import PalimpsestError
from ....pipelines.rows import Rows
from ....pipelines.schedule import step_down
from ..guidance import BranchGuider
from ..refusals import require_variance_preserving
from ..session import Session
from .edit import EditRequest


class EditGuider(BranchGuider):
    """An edit as a GUIDER: what it predicts takes core's euler sampler along the edit's steps.

    Core's sampler asks once a step; the answer is the D for which x_next = c x + (1 - c) D is the
    edit's own next latent.
    """

    def __init__(self, request: EditRequest) -> None:
        request.check()
        require_variance_preserving(request.model, "Edit Guider")
        for carried in request.trajectory.carried:
            if carried.own_loop:
                raise PalimpsestError(
                    f"The trajectory is {carried.own_loop} no sampler of core's can walk: use the "
                    "Edit Inverted Image."
                )
        if request.prompts not in (1, len(request.trajectory.origin)):
            raise PalimpsestError(
                f"The target holds {request.prompts} prompts, the guider takes one: use Edit "
                "Inverted Image."
            )
        if not (request.correction.on_chain or request.correction.scale == 0):
            raise PalimpsestError(
                "The guider takes the corrections 'direct inversion' (scale 1, every step) and "
                "'none': use Edit Inverted Image for the others."
            )
        super().__init__(request.running)
        request.fill(self)
        self.request = request

    def sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: comfy.samplers.Sampler,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
    ) -> Tensor:
        self._check_run(latent_image, sampler, sigmas, denoise_mask)
        self.walk: _Walk | None = None
        try:
            out = super().sample(
                noise, latent_image, sampler, sigmas, None, callback, disable_pbar, seed
            )
            return (
                self.walk.restored.to(out) if self.walk and self.walk.restored is not None else out
            )
        finally:
            self.walk = None

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006 - core's signature
        seed: int | None = None,
    ) -> Tensor:
        if self.walk is None:
            options = create_model_options_clone(model_options)
            # Core has run these wrappers around this call already.
            options["transformer_options"].get("wrappers", {}).pop(WrappersMP.PREDICT_NOISE, None)
            session = Session(self, options, RowCount(), x, lambda *_: None)
            with self.request.walking(session) as walking:
                edit = self.request.start(walking)
            _check_start(x, edit.trajectory.start)
            self.walk = _Walk(session, edit, Rows(x, edit.trajectory.start))
        with self.request.walking(self.walk.session):
            return self.walk.predict(x)

    def _check_run(
        self,
        latent_image: Tensor,
        sampler: comfy.samplers.Sampler,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
    ) -> None:
        trajectory = self.request.trajectory
        name = getattr(
            getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__
        )
        if (
            getattr(sampler, "sampler_function", None)
            is not comfy.k_diffusion.sampling.sample_euler
        ):
            raise PalimpsestError(
                f"The guider of an edit walks with the samplers euler and ddim, the sampler is "
                f"{name.removeprefix('sample_')}: choose euler in KSamplerSelect."
            )
        expected = trajectory.falling_sigmas
        if sigmas.shape != expected.shape or not torch.allclose(sigmas.cpu(), expected):
            raise PalimpsestError(
                "The guider of an edit needs the trajectory's own sigmas "
                f"({len(expected) - 1} steps from {expected[0]:.4g}), got {len(sigmas) - 1} steps "
                f"from {float(sigmas[0]):.4g}: connect the SIGMAS output of Invert."
            )
        if denoise_mask is not None:
            raise PalimpsestError(
                "The latent carries a noise mask, which would put inverted noise into the kept "
                "region: give the mask to Edit Inverted Image (Guider) instead."
            )
        if latent_image.shape != trajectory.origin.shape:
            raise PalimpsestError(
                f"The latent is {tuple(latent_image.shape)}, the trajectory's "
                f"{tuple(trajectory.origin.shape)}: connect the LATENT output of Invert."
            )


@dataclass(eq=False)
class _Walk:
    """Where one run of an EditGuider stands; made at its first step and dropped at its end."""

    session: Session
    edit: Edit
    rows: Rows
    i: int = 0
    restored: Tensor | None = None

    def predict(self, x: Tensor) -> Tensor:
        """The D that makes core's Euler step the edit's."""
        trajectory = self.edit.trajectory
        level = trajectory.steps - self.i
        self.rows = self.edit.step(self.i, self.rows._replace(target=x))
        self.i += 1
        if level == 1:
            # Core's arithmetic rounds; the edit's own result is exact where nothing was edited.
            self.restored = self.session.restore(
                self.rows.target, trajectory.clean, trajectory.origin
            )
        c = step_down(trajectory.sigmas[level], trajectory.sigmas[level - 1]).c
        return (self.rows.target - c * x) / (1 - c)


def _check_start(x: Tensor, start: Tensor) -> None:
    """Refuse a run that begins elsewhere than the inversion ended."""
    if float((x - start).norm()) > 1e-3 * float(start.norm()):
        raise PalimpsestError(
            "The sampler does not start where the inversion ended: connect Invert's NOISE to the "
            "sampler, or its LATENT together with Disable Noise."
        )
