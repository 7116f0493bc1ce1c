"""Proximal guidance on ComfyUI's MODEL: what it cannot be combined with."""

from comfy.model_patcher import ModelPatcher

from ....pipelines.errors import PalimpsestError
from ....pipelines.proximal import Proximal
from ....pipelines.trajectory import Trajectory


def check_proximal(model: ModelPatcher, trajectory: Trajectory) -> None:
    """Refuse an edit whose guidance cannot be limited.

    Raises:
        PalimpsestError: In one sentence.
    """
    if trajectory.find(Proximal) is not None and "sampler_cfg_function" in model.model_options:
        raise PalimpsestError(
            "Proximal Guidance takes the place of the guidance, and another node on the model "
            "(RescaleCFG, for example) takes it as well: remove one of the two."
        )


def with_proximal(trajectory: Trajectory, settings: Proximal) -> Trajectory:
    """The same trajectory, whose edits are under proximal guidance.

    Raises:
        PalimpsestError: If its edits are not steps of one chain, but of EDICT's two.
    """
    return trajectory.with_carried(settings)
