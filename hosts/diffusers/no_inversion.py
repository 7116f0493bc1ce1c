"""Edits without inversion, headless: a picture under fresh noise, for the edits along it.

sigmas = model.unet.ddim_sigmas(50)[:26]                                   half of the steps
trajectory = noise_freshly(model.unet, model.encode(image), source, sigmas, whole=50)
edited = model.unet.edit(trajectory, source, target, empty, cfg=5.0).run()
"""

from torch import Tensor

from ...pipelines.aligned import FLOW_EDIT, Manner
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.fresh_noise import fresh_noise
from ...pipelines.noise import Draw, seeded
from ...pipelines.trajectory import Trajectory
from .prompt import Prompt, asked_of
from .unet import DiffusersUNet


def noise_freshly(
    unet: DiffusersUNet,
    x0: Tensor,
    source: Prompt,
    sigmas: Tensor,
    *,
    whole: int,
    negative: Prompt | None = None,
    source_cfg: float = 1.0,
    manner: Manner = FLOW_EDIT,
    draws: int = 1,
    draw: Draw | None = None,
    rows: RowCount | None = None,
) -> Trajectory:
    """Noise a latent at every level, and ask the source about it.

    Args:
        unet: The model.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        source: Describes the picture.
        sigmas: [N+1] rising levels.
        whole: Steps of the schedule whose last these are.
        negative: The other end of the guidance; not read at guidance 1.
        source_cfg: Guidance of the source.
        manner: How edits walk.
        draws: Noises at every level that are averaged.
        draw: The noise; that of seed 0 if not given.
        rows: Counts the rows spent.
    """
    spent = RowCount()
    denoise = unet.denoiser(source, negative, cfg=source_cfg, rows=spent)
    options = {"manner": manner, "whole": whole, "draws": draws}
    made = fresh_noise(denoise, x0, sigmas, draw or seeded(0), **options)
    if rows is not None:
        rows.add(spent.rows)
    recipe = asked_of(made.recipe, source, negative, source_cfg, spent.rows)
    return Trajectory(made.latents, sigmas, x0, recipe, carried=made.carried)
