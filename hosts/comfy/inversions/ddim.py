"""Inversions on ComfyUI's MODEL, CONDITIONING and LATENT: what all of them share, and DDIM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.attention.features import FeatureRecorder
from ....pipelines.couplings import Convention, ddim
from ....pipelines.errors import PalimpsestError
from ....pipelines.schedule import check_falling
from ....pipelines.solvers import Solver, fixed_point
from ....pipelines.trajectory import Recipe, Trajectory
from ..attention import require_unet
from ..coordinates import Space, host_levels, rising_sigmas, space_of
from ..cost import Spent, timed
from ..fingerprint import describe, features_key
from ..guidance import BranchGuider, Conditioning
from ..refusals import check_samples
from ..session import Session


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that shall be inverted, as it comes from the wires.

    Attributes:
        model: The model.
        positive: Describes the picture as it is.
        negative: The other end of the guidance.
        samples: [B, C, h, w] the LATENT.
        levels: [N+1] falling levels, as core's SIGMAS, ending at 0.
        cfg: Guidance of the inversion.
        feature: What the node is called, for messages.
    """

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    samples: Tensor
    levels: Tensor
    cfg: float
    feature: str

    def __post_init__(self) -> None:
        """Refuse what cannot be inverted.

        Raises:
            PalimpsestError: In one sentence.
        """
        space_of(self.model, self.feature)
        check_falling(self.levels)
        check_samples(self.model, self.samples)

    @cached_property
    def space(self) -> Space:
        """The model's coordinates."""
        return space_of(self.model, self.feature)

    @cached_property
    def sigmas(self) -> Tensor:
        """[N+1] float64 rising levels, in x."""
        return rising_sigmas(self.space, self.levels)

    def run(
        self, algorithm: Callable[[Session], Any], *, total: int | None = None
    ) -> tuple[Any, Spent]:
        """Call `algorithm` with the model loaded; its source and target are both the picture's.

        Args:
            algorithm: What to do.
            total: Steps of its progress; one per level if not given.
        """
        guider = BranchGuider(self.model)
        guider.set_conds(self.positive, self.negative)
        guider.set_source(self.positive, self.negative)
        guider.set_cfg(self.cfg)
        levels = host_levels(self.space, self.sigmas)
        return timed(guider, self.samples, levels, algorithm, space=self.space, total=total)

    def trajectory(self, latents: Tensor, recipe: Recipe, **carried: Tensor | None) -> Trajectory:
        """What goes out on the wire.

        Args:
            latents: [N+1, B, C, h, w] the chain.
            recipe: How it was made; the model's part is filled in here.
            carried: Further tensors of a Trajectory, by name.
        """
        kept = comfy.model_management.intermediate_device()
        made = Trajectory(
            latents.float(),
            self.sigmas,
            self.samples.to(latents),
            describe(self.model, recipe),
            **carried,
        )
        return replace(made.to(kept), origin=self.samples.to(kept))


def invert_ddim(
    picture: Picture,
    *,
    convention: Convention,
    refinement: int,
    solve: Solver = fixed_point,
    recorder: FeatureRecorder | None = None,
) -> tuple[Trajectory, Spent]:
    """DDIM inversion.

    Args:
        picture: The picture.
        convention: See `couplings.ddim`.
        refinement: See `couplings.ddim`.
        solve: See `couplings.ddim`.
        recorder: Keeps the source's features for later edits; see `check_recorder`.
    """
    if recorder is not None:
        check_recorder(picture, convention)

    def algorithm(session: Session) -> Tensor:
        denoise = session.denoiser(session.target, recorder.record if recorder else None)
        return ddim(
            recorder.watch(denoise) if recorder else denoise,
            session.x0,
            picture.sigmas,
            scale=picture.space.scale,
            convention=convention,
            refinement=refinement,
            solve=solve,
            on_step=session.on_step,
        )

    latents, spent = picture.run(algorithm)
    recipe = Recipe("ddim", convention, refinement, picture.cfg, rows=spent.rows)
    made = picture.trajectory(latents, recipe)
    key = features_key(picture.model, picture.positive)
    return replace(made, features=recorder.result(key) if recorder else None), spent


def check_recorder(picture: Picture, convention: Convention) -> None:
    """Refuse to keep features that no edit could use.

    Raises:
        PalimpsestError: In one sentence.
    """
    require_unet(
        picture.model.model, "Keeping source features", instead="set source_features to off"
    )
    if convention != "current":
        raise PalimpsestError(
            f"The convention is {convention}, which never shows the model the stages themselves: "
            "set it to current to keep source features."
        )
    if not features_key(picture.model, picture.positive):
        raise PalimpsestError(
            "The positive or the model carries something that cannot be told from its like "
            "(ControlNet, hooks, patches of other nodes): set source_features to off."
        )
