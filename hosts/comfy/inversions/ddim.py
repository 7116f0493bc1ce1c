"""DDIM inversion on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ....pipelines.attention.features import FeatureRecorder
from ....pipelines.attention.hooks import NO_HOOKS
from ....pipelines.couplings import Convention, ddim
from ....pipelines.errors import PalimpsestError
from ....pipelines.inversion.method import Inverted
from ....pipelines.solvers import Solver, fixed_point
from ....pipelines.trajectory import Recipe, Trajectory
from ..attention import require_unet
from ..cost import Spent
from ..fingerprint import features_key
from ..refusals import check_has_picture
from ..session import Session
from .picture import Picture


def invert_ddim(
    picture: Picture,
    *,
    convention: Convention,
    refinement: int,
    solve: Solver = fixed_point,
    regularise: Callable[[Tensor], Tensor] | None = None,
    recorder: FeatureRecorder | None = None,
) -> tuple[Trajectory, Spent]:
    """DDIM inversion.

    Args:
        picture: The picture.
        convention: See `couplings.ddim`.
        refinement: See `couplings.ddim`.
        solve: See `couplings.ddim`.
        regularise: See `couplings.ddim`.
        recorder: Keeps the source's features for later edits; see `check_recorder`.
    """
    if recorder is not None:
        check_recorder(picture, convention)
    if regularise is not None:
        check_has_picture(picture.samples, "Noise regularisation")

    def algorithm(session: Session) -> Tensor:
        denoise = session.denoiser(session.target, recorder.hooks if recorder else NO_HOOKS)
        return ddim(
            recorder.watch(denoise) if recorder else denoise,
            session.x0,
            picture.sigmas,
            scale=picture.coordinates.scale,
            convention=convention,
            refinement=refinement,
            solve=solve,
            regularise=regularise,
            on_step=session.on_step,
        )

    latents, spent = picture.run(algorithm)
    recipe = Recipe("ddim", convention, refinement, picture.cfg, regularised=regularise is not None)
    made = picture.trajectory(Inverted(latents, recipe), spent)
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
