"""Editing without inversion (FlowEdit and its kin) on ComfyUI's MODEL, CONDITIONING, LATENT."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.aligned import FLOW_EDIT, Manner
from ....pipelines.correction import DIRECT_INVERSION
from ....pipelines.couplings import LEVELS_AT_ONCE
from ....pipelines.errors import PalimpsestError
from ....pipelines.inversion.fresh_noise import FreshNoise, fresh_noise
from ....pipelines.inversion.method import Inverted
from ....pipelines.noise import seeded
from ....pipelines.trajectory import Trajectory
from ..coordinates import coordinates_of
from ..cost import Spent
from ..fingerprint import guided_key
from ..guidance import Conditioning
from ..inversions.memory import LARGEST_KEPT, remembered
from ..inversions.picture import Picture
from ..masks import check_mask_fits
from ..schedules import part_of_schedule
from ..session import Session
from .bound import BoundControl
from .edit import EditRequest, edit

NAME = "Edit (no inversion)"


@dataclass(frozen=True)
class Numbers:
    """What an edit without inversion is made of, but for its picture and prompts.

    Attributes:
        steps: Of the whole way from pure noise.
        strength: Part of them that is walked, the last ones.
        source_cfg: Guidance of the source.
        cfg: Guidance of the target.
        draws: Noises at every level that are averaged.
        manner: How the distance from the picture is walked.
        against_source: Whether the target is guided away from the source's prompt, at the very
            point that it is asked, and not from the negative (FlowAlign).
    """

    steps: int
    strength: float
    source_cfg: float
    cfg: float
    draws: int = 1
    manner: Manner = FLOW_EDIT
    against_source: bool = False


#: Published numbers, by the words of the node. FlowEdit's are those of its code; DVRF's schedule is
#: FlowEdit's for SD 3, walked whole, since only its guidance is published with it; those for UNets
#: are this pack's, of its own embedded model.
PRESETS = {
    "FlowEdit (Flux)": Numbers(28, 24 / 28, 1.5, 5.5),
    "FlowEdit (SD 3)": Numbers(50, 33 / 50, 3.5, 13.5),
    "FlowEdit (UNet)": Numbers(50, 0.5, 3.0, 5.0),
    "FlowAlign": Numbers(33, 1.0, 1.0, 13.5, manner=Manner(zeta=0.01), against_source=True),
    "DVRF": Numbers(50, 1.0, 6.0, 16.5, manner=Manner(lag="fading")),
    "DDCM (few steps)": Numbers(12, 1.0, 1.0, 2.3, manner=Manner(renoise=True)),
}

#: The preset that is one of the others, chosen by the model.
BY_MODEL = "by the model"


def preset_of(model: ModelPatcher) -> str:
    """The preset for a model: Flux's where guidance is embedded, SD 3's for all other flows."""
    if coordinates_of(model, NAME).noise_scale is None:
        return "FlowEdit (UNet)"
    return "FlowEdit (Flux)" if embeds_guidance(model) else "FlowEdit (SD 3)"


def embeds_guidance(model: ModelPatcher) -> bool:
    """Whether a model is told its guidance with the prompt, and runs one row for it (Flux)."""
    return bool(model.model.model_config.unet_config.get("guidance_embed"))


@dataclass(frozen=True, eq=False)
class NoInversion:
    """An edit without inversion, as it comes from the wires.

    Attributes:
        model: An eps-, v-prediction or flow model.
        source: Describes the picture.
        target: Describes the edit.
        negative: The other end of the guidance; None where none is connected.
        samples: [B, C, h, w] or [B, C, frames, h, w] the LATENT.
        numbers: How.
        scheduler: A name of core's.
        seed: Of all noise.
        mask: [b, H, W] in 0..1, white where the edit may be; None edits everywhere.
        control: Attention control, or None.
        batch_index: Numbers of the pictures that the noise is drawn by, if they have any.
        levels_at_once: Noised pictures of the source per model call.
    """

    model: ModelPatcher
    source: Conditioning
    target: Conditioning
    negative: Conditioning | None
    samples: Tensor
    numbers: Numbers
    scheduler: str
    seed: int = 0
    mask: Tensor | None = None
    control: BoundControl | None = None
    batch_index: tuple[int, ...] | None = None
    levels_at_once: int = LEVELS_AT_ONCE

    @property
    def distilled(self) -> bool:
        """Whether both guidances go into the prompts, where the model reads them."""
        return embeds_guidance(self.model) and not self.numbers.against_source

    def scales(self) -> tuple[float, float]:
        """Classifier-free guidance of source and target."""
        return (1.0, 1.0) if self.distilled else (self.numbers.source_cfg, self.numbers.cfg)

    def prompts(self) -> tuple[Conditioning, Conditioning]:
        """Source and target as the model is shown them."""
        if not self.distilled:
            return self.source, self.target
        return (
            told_guidance(self.source, self.numbers.source_cfg),
            told_guidance(self.target, self.numbers.cfg),
        )

    def negatives(self) -> tuple[Conditioning, Conditioning]:
        """The other end of the guidance of source and target.

        Raises:
            PalimpsestError: If there is none, and one is needed.
        """
        source, target = self.prompts()
        if self.numbers.against_source:
            return source, source
        if self.negative is None and self.scales() != (1.0, 1.0):
            raise PalimpsestError(
                f"negative is not connected, which guidance {self.numbers.source_cfg:g} of the "
                f"source and {self.numbers.cfg:g} of the target needs: connect a CLIP Text Encode "
                "with an empty text."
            )
        return self.negative or source, self.negative or target


def told_guidance(prompt: Conditioning, scale: float) -> Conditioning:
    """A prompt that tells a distilled model its guidance, unless it does by itself already."""
    return [[embedding, {"guidance": scale, **more}] for embedding, more in prompt]


class Made(NamedTuple):
    """An edit without inversion.

    Attributes:
        latent: [B, C, h, w] the edited LATENT samples.
        trajectory: The picture under noise, and what the source made of it, for another edit.
        spent: The cost of both.
        known: Whether the source was asked in an earlier run.
        bounds: See `edit.Outcome`.
    """

    latent: Tensor
    trajectory: Trajectory
    spent: Spent
    known: bool
    bounds: Tensor | None


def edit_without_inversion(request: NoInversion) -> Made:
    """Edit a picture; what the source makes of it is kept for the next edit of the picture."""
    levels = part_of_schedule(
        request.model, request.scheduler, request.numbers.steps, request.numbers.strength
    )
    picture = _picture(request, levels)
    (trajectory, asked), known = remembered(
        NAME, _question(request, levels), lambda: _ask(request, picture), _is_small
    )
    trajectory = _walked(trajectory, request.numbers.manner)
    made = edit(
        EditRequest(
            request.model,
            trajectory,
            *request.prompts(),
            request.negatives()[1],
            request.scales()[1],
            request.control,
            request.mask,
            DIRECT_INVERSION,
        )
    )
    rows, seconds = (0, 0.0) if known else (asked.rows, asked.seconds)
    spent = Spent(rows + made.spent.rows, seconds + made.spent.seconds)
    return Made(made.latent, trajectory, spent, known, made.bounds)


def _picture(request: NoInversion, levels: Tensor) -> Picture:
    """The picture; what does not belong to it is refused before the source is asked."""
    if request.control is not None:
        request.control.check_edit(request.model, *request.prompts(), request.negatives()[1])
    if request.mask is not None:
        prompts = max(len(entry[0]) for entry in request.target)
        pictures = max(prompts, len(request.samples))
        check_mask_fits(request.mask, request.model, request.samples, pictures)
    source, negative = request.prompts()[0], request.negatives()[0]
    cfg = request.scales()[0]
    return Picture(request.model, source, negative, request.samples, levels, cfg, NAME)


def _question(request: NoInversion, levels: Tensor) -> dict[str, Any]:
    """All that the source's guesses depend on."""
    numbers = request.numbers
    return {
        "model": request.model,
        "prompts": [request.prompts()[0], request.negatives()[0], request.scales()[0]],
        "picture": [request.samples, levels, list(request.batch_index or ())],
        "noise": [request.seed, numbers.draws, numbers.steps, numbers.manner.plain_steps],
    }


def _walked(trajectory: Trajectory, manner: Manner) -> Trajectory:
    """A trajectory along which edits walk in a manner, whatever its source was asked for."""
    return trajectory.with_carried(replace(trajectory.find(FreshNoise), **asdict(manner)))


def _ask(request: NoInversion, picture: Picture) -> tuple[Trajectory, Spent]:
    """Noise the picture and ask the source about it."""
    numbers = request.numbers

    def algorithm(session: Session) -> Inverted:
        def told(done: int) -> None:
            session.on_step(done, session.x0, session.x0)

        return fresh_noise(
            session.denoiser(session.target),
            session.x0,
            picture.sigmas,
            seeded(request.seed, request.batch_index),
            manner=numbers.manner,
            whole=max(numbers.steps, len(picture.sigmas) - 1),
            draws=numbers.draws,
            levels_at_once=session.levels_per_call(request.levels_at_once, session.target),
            on_levels=told,
        )

    steps = len(picture.sigmas) - 1
    recorded, spent = picture.run(algorithm, total=steps * numbers.draws)
    key = guided_key(picture.model, picture.positive, picture.negative, picture.cfg)
    recipe = replace(recorded.recipe, cfg=picture.cfg, source_cfg=picture.cfg, source_key=key)
    return picture.trajectory(replace(recorded, recipe=recipe), spent), spent


def _is_small(made: tuple[Trajectory, Spent]) -> bool:
    """Whether a trajectory is small enough to be kept for a next run."""
    kept = [tensor for carried in made[0].carried for tensor in carried.tensors.values()]
    return sum(tensor.nbytes for tensor in (made[0].latents, *kept)) <= LARGEST_KEPT
