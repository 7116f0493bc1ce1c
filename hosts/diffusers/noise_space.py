"""Edit-Friendly DDPM inversion and CycleDiffusion, headless.

sigmas = model.unet.ddim_sigmas(50)[:39]                     12 of 50 steps are skipped
trajectory = invert_noise(model.unet, EDIT_FRIENDLY, model.encode(image), source, sigmas)
edited = model.unet.edit(trajectory, source, target, empty).run()
"""

from torch import Tensor

from ...pipelines.couplings import LEVELS_AT_ONCE
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.noise_space import NoiseSpace, invert_into_noise
from ...pipelines.noise import Draw, seeded
from ...pipelines.trajectory import Trajectory
from .prompt import Prompt, asked_of
from .unet import DiffusersUNet


def invert_noise(
    unet: DiffusersUNet,
    space: NoiseSpace,
    x0: Tensor,
    source: Prompt,
    sigmas: Tensor,
    *,
    negative: Prompt | None = None,
    source_cfg: float = 1.0,
    draw: Draw | None = None,
    levels_at_once: int = LEVELS_AT_ONCE,
    rows: RowCount | None = None,
) -> Trajectory:
    """Invert a latent into drawn noise.

    Args:
        unet: The model.
        space: `EDIT_FRIENDLY` or `cycle_diffusion()`.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        source: Describes the picture.
        sigmas: [N+1] rising levels; those that the edit skips are left out.
        negative: The other end of the guidance; not read at guidance 1.
        source_cfg: Guidance of the source.
        draw: Noise of the chain; that of seed 0 if not given.
        levels_at_once: Levels per call of the source.
        rows: Counts the rows spent.
    """
    spent = RowCount()
    latents, guesses = invert_into_noise(
        space,
        unet.denoiser(source, negative, cfg=source_cfg, rows=spent),
        x0,
        sigmas,
        draw or seeded(0),
        levels_at_once=levels_at_once,
    )
    if rows is not None:
        rows.add(spent.rows)
    recipe = asked_of(space.recipe, source, negative, source_cfg, spent.rows)
    return Trajectory(latents, sigmas, x0, recipe, denoised=guesses)
