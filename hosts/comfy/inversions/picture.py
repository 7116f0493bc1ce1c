"""A picture on ComfyUI's wires, and its way into a trajectory: what all inversions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.inversion.method import Inversion, Inverted
from ....pipelines.schedule import check_falling
from ....pipelines.trajectory import Trajectory
from ..coordinates import Coordinates, coordinates_of, host_levels, rising_sigmas
from ..cost import Spent
from ..fingerprint import describe, prompt_key
from ..guidance import BranchGuider, Conditioning
from ..refusals import check_samples
from ..session import Session, run


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
        coordinates_of(self.model, self.feature)
        check_falling(self.levels)
        check_samples(self.model, self.samples)

    @cached_property
    def coordinates(self) -> Coordinates:
        """The model's coordinates."""
        return coordinates_of(self.model, self.feature)

    @cached_property
    def sigmas(self) -> Tensor:
        """[N+1] float64 rising levels, in x."""
        return rising_sigmas(self.coordinates, self.levels)

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
        levels = host_levels(self.coordinates, self.sigmas)
        return run(
            guider, self.samples, levels, algorithm, coordinates=self.coordinates, total=total
        )

    def trajectory(self, recorded: Inverted, spent: Spent) -> Trajectory:
        """What goes out on the wire.

        Args:
            recorded: What the inversion found; the recipe gets the model's part here.
            spent: What it cost.
        """
        kept = comfy.model_management.intermediate_device()
        recipe = replace(recorded.recipe, rows=spent.rows, prompt=prompt_key(self.positive))
        made = Trajectory(
            recorded.latents.float(),
            self.sigmas,
            self.samples.to(recorded.latents),
            describe(self.model, recipe),
            None if recorded.denoised is None else recorded.denoised.float(),
            recorded.image,
            recorded.carried,
        )
        return replace(made.to(kept), origin=self.samples.to(kept))


def invert(picture: Picture, method: Inversion) -> tuple[Trajectory, Spent]:
    """Invert a picture by a method that asks nothing but its denoiser.

    Args:
        picture: The picture.
        method: One of `pipelines.inversion`, its settings bound.
    """

    def algorithm(session: Session) -> Inverted:
        made = method(
            session.denoiser(session.target),
            session.x0,
            picture.sigmas,
            family=picture.coordinates.family,
            on_step=session.on_step,
        )
        return replace(made, recipe=replace(made.recipe, cfg=picture.cfg))

    recorded, spent = picture.run(algorithm)
    return picture.trajectory(recorded, spent), spent
