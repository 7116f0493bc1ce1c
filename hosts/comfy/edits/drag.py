"""SDE-Drag on ComfyUI's MODEL, CONDITIONING, VAE and LATENT."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.copy_paste import Brush, Move, Regions, copy_paste
from ....pipelines.couplings import LEVELS_AT_ONCE
from ....pipelines.cycle_sde import SourceChain
from ....pipelines.denoiser import constant, ramp
from ....pipelines.drag import DragStep, check_mask, plan
from ....pipelines.editing import Branches
from ....pipelines.errors import PalimpsestError
from ....pipelines.noise import seeded
from ....pipelines.points import DragPoints
from ..coordinates import Coordinates, coordinates_of, rising_sigmas
from ..cost import Spent
from ..guidance import BranchGuider, Conditioning
from ..latents import decode_pictures
from ..masks import check_mask_fits, latent_mask
from ..refusals import check_has_picture, check_samples
from ..session import Session, run
from .copy_paste import latent_cells, regions_of

#: Called with (steps done, steps in all, and after a drag step its pictures [B, H, W, 3]).
Tell = Callable[[int, int, Tensor | None], None]


@dataclass(frozen=True, eq=False)
class DragRequest:
    """A drag, as it comes from the wires.

    Attributes:
        model: An eps-, v-prediction or flow model.
        positive: Describes the picture as it shall be.
        negative: The other end of the guidance.
        vae: The model's own.
        image: [B, H, W, 3] the picture, in 0..1.
        points: What moves where, in its pixels.
        levels: [k+1] falling levels of one drag step, as core's SIGMAS.
        brush: How regions are copied.
        cfg: Guidance at the noisiest level; it falls to 1 at the lowest.
        stride: Cells per drag step.
        eta: 1 for the SDE, 0 for the ODE.
        early_stop: See `drag.plan`.
        seed: Of all noise.
        mask: [b, H, W] in 0..1, white where the picture may change; None everywhere.
        region: [b, H, W], white on what moves; None copies squares.
        levels_at_once: Levels of the source per model call.
    """

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    vae: comfy.sd.VAE
    image: Tensor
    points: DragPoints
    levels: Tensor
    brush: Brush
    cfg: float
    stride: int = 2
    eta: float = 1.0
    early_stop: bool = False
    seed: int = 0
    mask: Tensor | None = None
    region: Tensor | None = None
    levels_at_once: int = LEVELS_AT_ONCE


@dataclass(eq=False)
class DragPath:
    """What a drag has come to so far: it is whole, or was cancelled on the way.

    Attributes:
        steps: Drag steps that the plan has.
        pictures: [B, H, W, 3] after each finished drag step, the undragged picture first.
        latent: LATENT samples of the last.
        rows: UNet rows spent.
        seconds: Wall time so far.
    """

    steps: int
    pictures: list[Tensor] = field(default_factory=list)
    latent: Tensor | None = None
    rows: int = 0
    seconds: float = 0.0

    @property
    def spent(self) -> Spent:
        """What it cost."""
        return Spent(self.rows, self.seconds)


def start_drag(request: DragRequest) -> tuple[DragPath, Drag]:
    """Encode the picture, plan the drag and refuse what cannot be dragged.

    Raises:
        PalimpsestError: In one sentence.
    """
    coordinates = coordinates_of(request.model, "SDE-Drag")
    width, height = request.image.shape[2], request.image.shape[1]
    points = request.points.on_picture(width, height)
    samples = request.vae.encode(request.image[..., :3])
    check_samples(request.model, samples)
    check_has_picture(samples, "SDE-Drag")
    pairs = latent_cells(points, request.model, samples)
    moves = plan(pairs, request.stride, early_stop=request.early_stop)
    mask = None
    if request.mask is not None:
        check_mask_fits(request.mask, request.model, samples, len(samples))
        mask = latent_mask(request.mask, request.model, samples)
        check_mask(mask, pairs)
    regions = None
    if request.region is not None:
        regions = regions_of(request.region, pairs, request.model, samples)
    first = decode_pictures(request.vae, samples)
    if len(first) != len(request.image):
        raise PalimpsestError(
            f"The image holds {len(request.image)} pictures, of which the VAE keeps {len(first)}: "
            "it takes them for a video; connect one picture, or as many frames as it keeps."
        )
    whole = Drag(request, coordinates, samples, moves, mask, regions)
    whole.try_copy()
    return DragPath(len(moves), [first], samples), whole


@dataclass(frozen=True, eq=False)
class Drag:
    """A planned drag; `run` walks it."""

    request: DragRequest
    coordinates: Coordinates
    samples: Tensor
    moves: Sequence[Sequence[Move]]
    mask: Tensor | None
    regions: Regions | None

    def try_copy(self) -> None:
        """Raise now what copying would raise after minutes."""
        for moves in self.moves:
            areas = None if self.regions is None else self.regions.at(moves)
            zero = torch.zeros_like(self.samples, device="cpu")
            copy_paste(
                zero,
                moves,
                0.0,
                brush=self.request.brush,
                draw=torch.zeros_like,
                regions=areas,
            )

    def run(self, path: DragPath, tell: Tell) -> None:
        """Walk the plan; `path` grows with every finished drag step.

        Every drag step is a sampling session of its own, so that the VAE may have the memory
        between them.
        """
        request, draw = self.request, seeded(self.request.seed)
        guider = BranchGuider(request.model)
        guider.set_conds(request.positive, request.negative)
        guider.set_source(request.positive, request.negative)
        guider.set_cfg(request.cfg)
        sigmas = rising_sigmas(self.coordinates, request.levels)
        steps = len(sigmas) - 1
        per_drag = 2 * steps
        total = per_drag * len(self.moves)
        began, state = time.perf_counter(), _State()
        kept = comfy.model_management.intermediate_device()
        for i, moves in enumerate(self.moves):

            def algorithm(session: Session, moves: Sequence[Move] = moves) -> Tensor:
                if state.x is None:
                    state.x = state.x0 = session.x0
                state.x = self._step(session, state.x, moves, sigmas, draw, steps)
                return session.restore(state.x, state.x0, self.samples).to(kept)

            path.latent, spent = run(
                guider,
                self.samples,
                request.levels,
                algorithm,
                coordinates=self.coordinates,
                callback=lambda step, *_, done=i * per_drag: tell(done + step + 1, total, None),
            )
            path.rows += spent.rows
            path.pictures.append(decode_pictures(request.vae, path.latent))
            path.seconds = time.perf_counter() - began
            tell((i + 1) * per_drag, total, path.pictures[-1])

    def _step(
        self,
        session: Session,
        x: Tensor,
        moves: Sequence[Move],
        sigmas: Tensor,
        draw: Callable[[Tensor], Tensor],
        steps: int,
    ) -> Tensor:
        """One drag step inside a session."""
        request, cfg = self.request, self.request.cfg
        guidance = constant(1.0) if cfg == 1 else ramp(sigmas, cfg)
        denoise = session.denoiser(session.target, guidance=guidance)
        how = SourceChain(
            sigmas,
            denoise,
            invert=session.denoiser(session.target, guidance=constant(1.0)),
            scale=session.coordinates.scale,
            eta=request.eta,
            levels_at_once=session.levels_per_call(request.levels_at_once, session.target),
        )
        mask = None if self.mask is None else self.mask.to(x)
        chain = how.of(x, draw, on_levels=lambda done: session.on_step(done, x, x))
        branches = Branches(denoise, denoise)
        step = DragStep(branches, request.eta, request.brush, draw, mask, self.regions)
        return step.take(chain, moves, lambda i, x, d: session.on_step(steps + i, x, d))


@dataclass(eq=False)
class _State:
    """The latent between two drag steps, in model scale, and what it was before the first."""

    x: Tensor | None = None
    x0: Tensor | None = None
