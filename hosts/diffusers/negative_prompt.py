"""Negative-prompt inversion without ComfyUI."""

from torch import Tensor

from ...pipelines.couplings import Convention
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.negative_prompt import negative_prompt
from ...pipelines.trajectory import Trajectory
from .prompt import Prompt
from .unet import DiffusersUNet


def invert_negative_prompt(
    unet: DiffusersUNet,
    x0: Tensor,
    prompt: Prompt,
    sigmas: Tensor,
    *,
    negative: Prompt | None = None,
    interpolation: float = 0.0,
    convention: Convention = "destination",
    rows: RowCount | None = None,
) -> Trajectory:
    """Negative-prompt inversion of a latent.

    Args:
        unet: The model.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        prompt: Describes the picture.
        sigmas: [N+1] rising noise levels.
        negative: Only read above interpolation 0.
        interpolation: See `negative_prompt`.
        convention: See `couplings.ddim`.
        rows: Counts the rows spent.
    """
    chain = unet.invert(x0, prompt, sigmas, convention=convention, rows=rows)
    null = None if negative is None else negative.embedding
    return negative_prompt(chain, prompt.embedding, null, interpolation)
