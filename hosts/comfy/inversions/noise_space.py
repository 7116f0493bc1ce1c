"""Edit-Friendly DDPM inversion and CycleDiffusion on ComfyUI's MODEL, CONDITIONING and LATENT."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ....pipelines.couplings import LEVELS_AT_ONCE
from ....pipelines.errors import PalimpsestError
from ....pipelines.inversion.method import Inverted
from ....pipelines.inversion.noise_space import NoiseSpace, invert_into_noise
from ....pipelines.noise import seeded
from ....pipelines.trajectory import Trajectory
from ..cost import Spent
from ..fingerprint import guided_key
from ..session import Session
from .picture import Picture


def invert_noise(
    picture: Picture,
    space: NoiseSpace,
    *,
    seed: int,
    batch_index: tuple[int, ...] | None = None,
    levels_at_once: int = LEVELS_AT_ONCE,
) -> tuple[Trajectory, Spent]:
    """Invert a picture into drawn noise.

    Args:
        picture: The picture; its cfg is the guidance of the source.
        space: `EDIT_FRIENDLY` or `cycle_diffusion()`.
        seed: Of the noise.
        batch_index: Numbers of the pictures that the noise is drawn by, if they have any.
        levels_at_once: Levels of the source per call, where all of them see the same conditioning.
    """

    def algorithm(session: Session) -> tuple[Tensor, Tensor]:
        return invert_into_noise(
            space,
            session.denoiser(session.target),
            session.x0,
            picture.sigmas,
            seeded(seed, batch_index),
            levels_at_once=session.levels_per_call(levels_at_once, session.target),
            on_levels=lambda done: session.on_step(done, session.x0, session.x0),
        )

    (latents, guesses), spent = picture.run(algorithm)
    recipe = replace(
        space.recipe,
        cfg=picture.cfg,
        source_key=guided_key(picture.model, picture.positive, picture.negative, picture.cfg),
        source_cfg=picture.cfg,
    )
    return picture.trajectory(Inverted(latents, recipe, guesses), spent), spent


def below_skip(levels: Tensor, skip: int) -> Tensor:
    """Falling levels without the noisiest `skip` of their steps.

    Args:
        levels: [N+1] falling levels.
        skip: 0 to N - 1.

    Raises:
        PalimpsestError: If no step is left.
    """
    steps = len(levels) - 1
    if not 0 <= skip < steps:
        raise PalimpsestError(
            f"skip is {skip}, of {steps} steps at least one must be walked: set skip to 0 to "
            f"{steps - 1}, or raise steps."
        )
    return levels[skip:]
