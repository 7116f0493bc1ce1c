"""Null-text inversion on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.conds import CONDCrossAttn
from torch import Tensor

from ....pipelines.couplings import ddim
from ....pipelines.inversion.method import Inverted
from ....pipelines.inversion.null_text import (
    Fitted,
    NullText,
    Unconditional,
    Variant,
    carried_by,
    fit,
)
from ....pipelines.trajectory import Recipe, Trajectory
from ..cost import Spent
from ..learning.gradients import gradients, trainable
from ..learning.training import check_learned
from ..refusals import require_variance_preserving
from ..session import Session
from .picture import Picture


@dataclass(frozen=True)
class Learning:
    """What the optimisation came to, for people.

    Attributes:
        inner_steps: Steps of Adam, over all levels and pictures; each a row and a backward pass.
        loss: What the picture is missed by in the end: mean square, in the latent, of the worst
            picture.
    """

    inner_steps: int
    loss: float


def invert_null_text(
    picture: Picture, settings: NullText, *, variant: Variant = "null-text"
) -> tuple[Trajectory, Spent, Learning]:
    """Invert a picture and fit the unconditional embeddings that lead back to it.

    Args:
        picture: The picture, at cfg 1; the embeddings begin as its negative.
        settings: How to fit.
        variant: What the edit does with them.

    Raises:
        PalimpsestError: In one sentence, where nothing can be learned or memory runs out.
    """
    require_variance_preserving(picture.model, picture.feature)
    learner = replace(picture, model=trainable(picture.model, picture.feature))
    for role, conditioning in (("positive", picture.positive), ("negative", picture.negative)):
        check_learned(conditioning, role, picture.feature)
    steps = len(picture.sigmas) - 1

    def algorithm(session: Session) -> tuple[Tensor, Fitted]:
        def on_step(done: int, x: Tensor, denoised: Tensor) -> None:
            session.on_step(steps + done, x, denoised)

        plain = session.denoiser(session.target)
        chain = ddim(
            plain,
            session.x0,
            picture.sigmas,
            scale=picture.coordinates.scale,
            on_step=session.on_step,
        )
        with gradients(session, picture.feature) as learning:
            fitted = fit(
                learning.recorder(learning.target),
                _unconditional(learning),
                chain.clone(),
                picture.sigmas.clone(),
                _start(learning).clone(),
                settings,
                on_step=on_step,
            )
        return chain, fitted

    (chain, fitted), spent = learner.run(algorithm, total=2 * steps)
    recorded = Inverted(chain, Recipe("ddim", "destination"))
    made = carried_by(picture.trajectory(recorded, spent), fitted, settings, variant)
    learned = Learning(fitted.inner_steps, float(fitted.losses[0].max()))
    return made.to(made.origin.device), spent, learned


def _start(session: Session) -> Tensor:
    """[1 or B, tokens, channels] the embedding of the negative prompt."""
    return session.target["negative"][0]["model_conds"]["c_crossattn"].cond


def _unconditional(session: Session) -> Unconditional:
    """The rows of the negative, with a learned embedding in it; its other inputs stay."""
    (entry,) = session.target["negative"]
    among = len(session.x0)

    def unconditional(x: Tensor, sigma: Tensor, u: Tensor, pictures: Sequence[int]) -> Tensor:
        inputs = {
            name: _of(cond, pictures, among) for name, cond in entry["model_conds"].items()
        } | {"c_crossattn": CONDCrossAttn(u)}
        negative = [entry | {"model_conds": inputs}]
        return session.recorder({"negative": negative}, roles=("uncond",))(x, sigma)

    return unconditional


def _of(cond: Any, pictures: Sequence[int], among: int) -> Any:
    """An input of the network for some of the pictures, where it is one for each."""
    tensor = getattr(cond, "cond", None)
    if isinstance(tensor, Tensor) and len(tensor) == among > len(pictures):
        return cond._copy_with(tensor[torch.tensor(pictures, device=tensor.device)])
    return cond
