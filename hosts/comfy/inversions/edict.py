"""EDICT on ComfyUI's MODEL, CONDITIONING and LATENT."""

from torch import Tensor

from ....pipelines.inversion.edict import couple
from ....pipelines.trajectory import Recipe, Trajectory
from ..cost import Spent
from ..session import Session
from .ddim import Picture


def invert_edict(picture: Picture, *, mixing: float = 0.93) -> tuple[Trajectory, Spent]:
    """EDICT inversion.

    Args:
        picture: The picture, at the guidance of its source.
        mixing: See `edict.couple`.
    """

    def algorithm(session: Session) -> tuple[Tensor, Tensor, Tensor]:
        return couple(
            session.denoiser(session.target),
            session.x0,
            picture.sigmas,
            scale=picture.space.scale,
            mixing=mixing,
            on_step=session.on_step,
        )

    (latents, partner, guesses), spent = picture.run(algorithm)
    recipe = Recipe("edict", cfg=picture.cfg, rows=spent.rows, mixing=mixing)
    return picture.trajectory(latents, recipe, partner=partner, guesses=guesses), spent
