"""The SDE family headless: Cycle-SDE and SDE-Drag on a diffusers UNet.

sigmas = model.unet.ddim_sigmas(50)[:31]                     the lowest 30 of 50 steps: t0 0.6
drags = Drags([((18, 27), (18, 18))], Brush())               in latent cells
moved = sde_drag(model.unet, model.encode(image), prompt, empty, sigmas, drags)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...pipelines.copy_paste import Brush, Cell, Regions
from ...pipelines.correction import CYCLE
from ...pipelines.couplings import LEVELS_AT_ONCE
from ...pipelines.cycle_sde import SourceChain
from ...pipelines.denoiser import Guidance, RowCount, constant, ramp
from ...pipelines.drag import DragStep, OnDrag, drag, plan
from ...pipelines.editing import Branches, Edit
from ...pipelines.kept_region import outside
from ...pipelines.noise import seeded
from ...pipelines.schedule import vp_scale
from .prompt import Prompt
from .unet import DiffusersUNet


@dataclass(frozen=True, eq=False)
class Drags:
    """What is dragged, and how.

    Attributes:
        pairs: Handles and targets in latent cells.
        brush: How a region is copied.
        stride: Cells per drag step.
        early_stop: See `drag.plan`.
        regions: The user's own regions, or None for squares.
    """

    pairs: Sequence[tuple[Cell, Cell]]
    brush: Brush
    stride: int = 2
    early_stop: bool = False
    regions: Regions | None = None


def source_chain(
    unet: DiffusersUNet,
    prompt: Prompt,
    negative: Prompt,
    sigmas: Tensor,
    guidance: Guidance,
    *,
    eta: float = 1.0,
    levels_at_once: int = LEVELS_AT_ONCE,
    rows: RowCount | None = None,
) -> SourceChain:
    """How a latent is recorded under the prompt of its source."""
    return SourceChain(
        sigmas,
        source=unet.denoiser(prompt, negative, cfg=guidance, rows=rows),
        invert=unet.denoiser(prompt, rows=rows),
        scale=vp_scale,
        eta=eta,
        levels_at_once=levels_at_once,
    )


def cycle_sde(
    unet: DiffusersUNet,
    x0: Tensor,
    source: Prompt,
    target: Prompt,
    negative: Prompt,
    sigmas: Tensor,
    *,
    cfg: float = 7.5,
    source_cfg: float = 1.0,
    eta: float = 1.0,
    mask: Tensor | None = None,
    seed: int = 0,
    rows: RowCount | None = None,
) -> Tensor:
    """Rewrite a picture by its prompt along a Markov chain, or along DDIM inversion at eta 0.

    Args:
        unet: The model.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        source: Describes the picture.
        target: Describes the edit.
        negative: The other end of the guidance.
        sigmas: [k+1] rising levels.
        cfg: Guidance of the target.
        source_cfg: Guidance of the source.
        eta: 1 for the SDE, 0 for the ODE.
        mask: [1 or B, 1, h, w] in 0..1, 0 where the picture is kept.
        seed: Of the chain.
        rows: Counts the rows spent.
    """
    how = source_chain(unet, source, negative, sigmas, constant(source_cfg), eta=eta, rows=rows)
    target_denoiser = unet.denoiser(target, negative, cfg=cfg, rows=rows)
    branches = Branches(target_denoiser, how.source)
    trajectory = how.of(x0, seeded(seed))
    kept = outside(mask, trajectory)
    return Edit(trajectory, branches, CYCLE, eta, after=kept).run().latent


def sde_drag(
    unet: DiffusersUNet,
    x0: Tensor,
    prompt: Prompt,
    negative: Prompt,
    sigmas: Tensor,
    drags: Drags,
    *,
    cfg: float = 3.0,
    eta: float = 1.0,
    mask: Tensor | None = None,
    seed: int = 0,
    levels_at_once: int = LEVELS_AT_ONCE,
    rows: RowCount | None = None,
    on_drag: OnDrag | None = None,
) -> Tensor:
    """Drag a picture.

    Args:
        unet: The model.
        x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
        prompt: Describes the picture as it shall be.
        negative: The other end of the guidance.
        sigmas: [k+1] rising levels of one drag step; t0 is where they end.
        drags: What moves where.
        cfg: Guidance at the noisiest level; it falls to 1 at the lowest.
        eta: 1 for the SDE, 0 for the ODE.
        mask: [1 or B, 1, h, w] in 0..1, 0 where the picture is kept.
        seed: Of all noise.
        levels_at_once: Levels of the source per call.
        rows: Counts the rows spent.
        on_drag: Called after each drag step with its number and the result so far.
    """
    draw = seeded(seed)
    how = source_chain(
        unet,
        prompt,
        negative,
        sigmas,
        ramp(sigmas, cfg),
        eta=eta,
        levels_at_once=levels_at_once,
        rows=rows,
    )
    return drag(
        x0,
        plan(drags.pairs, drags.stride, early_stop=drags.early_stop),
        chain_of=lambda x: how.of(x, draw),
        step=DragStep(
            Branches(how.source, how.source), eta, drags.brush, draw, mask, drags.regions
        ),
        on_drag=on_drag,
    )
