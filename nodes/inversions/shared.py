"""Inputs and outputs that all inversions have in common, so that one can stand for another."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...hosts.comfy.cost import Spent
from ...hosts.comfy.guidance import Conditioning
from ...hosts.comfy.inversions.memory import LARGEST_KEPT, remembered
from ...hosts.comfy.inversions.noise import noise_of_trajectory
from ...hosts.comfy.inversions.noise_space import invert_noise
from ...hosts.comfy.inversions.picture import Picture
from ...hosts.comfy.latents import batch_index_of, samples_of, with_samples
from ...hosts.comfy.refusals import refuse_noise_mask
from ...hosts.comfy.schedules import schedule
from ...pipelines.errors import PalimpsestError
from ...pipelines.inversion.noise_space import NoiseSpace
from ...pipelines.schedule import check_falling
from ...pipelines.trajectory import Trajectory as Chain
from ..border import Node
from ..inputs import cfg_input, levels_at_once_input, scheduler_input, seed_input
from ..wires import Trajectory, report

CATEGORY = "palimpsest/invert"

#: What a node says of a picture that it has inverted before, and what that cost.
KNOWN = "kept from the last run: model, picture, prompt and settings are the same"
NOTHING_SPENT = {"rows": [0], "seconds": [0.0]}

#: Which models a method takes, for the tooltip of the model input.
ANY_MODEL = "Predicts noise, v or a flow (SD 1.x, SD 2.x, SDXL, SD 3, Flux, ...), LoRA included."
UNET_MODEL = "Predicts noise or v, with a UNet (SD 1.x, SD 2.x, SDXL), LoRA included."


POSITIVE = io.Conditioning.Input(
    "positive", tooltip="Describes the picture as it is now, not as it shall be."
)
STEPS = io.Int.Input(
    "steps",
    default=50,
    min=1,
    max=1000,
    tooltip="Stages on the way up. More are more exact and cost more time.",
)


def picture_inputs(
    *,
    model: str,
    strength: float = 1.0,
) -> list[io.Input]:
    """The picture and its levels; every inversion begins with these.

    Args:
        model: Tooltip that says which models the method takes.
        strength: Default of the input of that name.
    """
    return [
        io.Model.Input("model", tooltip=model),
        POSITIVE,
        io.Latent.Input("latent", tooltip="The picture, encoded by the model's own VAE."),
        STEPS,
        scheduler_input(
            "ddim_uniform",
            "How the stages are spread: ddim_uniform is the published grid; flow models "
            "take simple. Not read if sigmas are connected.",
        ),
        io.Float.Input(
            "strength",
            default=strength,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="How far up: 1 goes to pure noise, 0.6 keeps the coarse layout safe. "
            "Not read if sigmas are connected.",
        ),
    ]


SIGMAS_IN = io.Sigmas.Input(
    "sigmas",
    optional=True,
    tooltip="Stages from a scheduler node; wins over steps, scheduler, strength.",
)


def convention_input() -> io.Input:
    """Which of the two plain steps of DDIM inversion is taken."""
    return io.Combo.Input(
        "convention",
        options=["destination", "current"],
        default="destination",
        tooltip="Which stage a step asks the model about: the one it goes to (the "
        "published choice) or the one it leaves.",
        advanced=True,
    )


def negative_input(tooltip: str) -> io.Input:
    """The other end of the guidance, where it is not always needed."""
    return io.Conditioning.Input("negative", optional=True, tooltip=tooltip)


def _is_small(made: io.NodeOutput) -> bool:
    """Whether a trajectory is small enough to be kept for a next run."""
    return made.args[0].latents.nbytes <= LARGEST_KEPT


class InvertNode(Node):
    """A node that inverts a picture, unless it did just that before."""

    @classmethod
    def run(cls, **wires: Any) -> io.NodeOutput:
        """The outputs of an inversion; what is known of the picture is not computed again."""
        made, known = remembered(cls.__name__, wires, lambda: cls.invert(**wires), _is_small)
        if not known:
            return made
        told = {"palimpsest_text": [f"{made.ui['palimpsest_text'][0]}\n{KNOWN}"]}
        return io.NodeOutput(*made.args, ui=made.ui | NOTHING_SPENT | told)

    @classmethod
    @abstractmethod
    def invert(cls, **wires: Any) -> io.NodeOutput:
        """Invert the picture."""
        raise NotImplementedError


def inversion(*, node_id: str, inputs: list[io.Input], **about: Any) -> io.Schema:
    """The schema of an inversion.

    Args:
        node_id: Of the node, as are `inputs` and what is said about it.
        inputs: Beginning with `picture_inputs`.
        about: What else core's Schema takes.
    """
    return io.Schema(
        node_id=node_id,
        category=CATEGORY,
        inputs=inputs,
        outputs=_outputs(),
        has_intermediate_output=True,
        **about,
    )


def _outputs() -> list[io.Output]:
    """What every inversion gives, in the same order."""
    return [
        Trajectory.Output(
            display_name="trajectory", tooltip="Every stage of the picture, for Edit."
        ),
        io.Latent.Output(
            display_name="latent",
            tooltip="The last stage, as KSamplerAdvanced leaves it with leftover noise: "
            "sample it with noise disabled.",
        ),
        io.Sigmas.Output(
            display_name="sigmas", tooltip="The stages in the order a sampler walks them."
        ),
        io.Noise.Output(
            display_name="noise", tooltip="Starts SamplerCustomAdvanced at the last stage."
        ),
    ]


@dataclass(frozen=True, eq=False)
class Asked:
    """What every inversion is asked, by the names of its inputs."""

    model: ModelPatcher
    positive: Conditioning
    latent: dict[str, Any]
    steps: int
    scheduler: str
    strength: float
    sigmas: Tensor | None = None
    negative: Conditioning | None = None

    def levels(self) -> Tensor:
        """[N+1] falling levels: the sigmas if they are connected, else those of the schedule.

        Raises:
            PalimpsestError: If there are no such levels.
        """
        if self.sigmas is None:
            return schedule(self.model, self.scheduler, self.steps, self.strength)
        check_falling(self.sigmas)
        return self.sigmas

    def picture(
        self, feature: str, *, cfg: float = 1.0, name: str = "cfg", levels: Tensor | None = None
    ) -> Picture:
        """The picture that shall be inverted.

        Args:
            feature: What the node is called.
            cfg: Guidance of the inversion.
            name: What the input is called that sets it.
            levels: Levels that win over its own.

        Raises:
            PalimpsestError: If it cannot be inverted so.
        """
        need_negative(cfg, self.negative, name)
        refuse_noise_mask(self.latent, "Edit")
        negative = self.positive if self.negative is None else self.negative
        levels = self.levels() if levels is None else levels
        samples = samples_of(self.model, self.latent)
        return Picture(self.model, self.positive, negative, samples, levels, cfg, feature)

    def _steps_told(self, done: int) -> str:
        """How many steps there were; why, where they are more than were asked for."""
        if self.sigmas is not None or done <= self.steps:
            return f"{done} steps"
        return f"{done} steps ({self.scheduler} makes {done} of {self.steps})"

    def inverted(self, trajectory: Chain, spent: Spent, more: str = "") -> io.NodeOutput:
        """The outputs of an inversion, and what the node shows.

        Args:
            trajectory: What it gave.
            spent: What it cost.
            more: A further line of text.
        """
        recipe = replace(trajectory.recipe, seconds=round(spent.seconds, 2))
        trajectory = replace(trajectory, recipe=recipe)
        text = (
            f"{self._steps_told(trajectory.steps)}, {spent.rows} UNet rows, {spent.seconds:.1f} s"
        )
        return io.NodeOutput(
            trajectory,
            with_samples(self.latent, trajectory.in_host_scale(trajectory.start)),
            trajectory.falling_sigmas,
            noise_of_trajectory(self.model, trajectory),
            ui=report(spent, f"{text}\n{more}" if more else text),
        )


def need_negative(cfg: float, negative: Conditioning | None, name: str) -> None:
    """Refuse guidance without its other end.

    Raises:
        PalimpsestError: Naming the input.
    """
    if cfg != 1 and negative is None:
        raise PalimpsestError(
            f"{name} is {cfg}, which needs a negative: connect one, or set {name} to 1."
        )


@dataclass(frozen=True)
class Drawing:
    """How the noise is drawn that a picture is turned into, by the names of the inputs."""

    source_cfg: float
    seed: int
    source_batch: int

    @staticmethod
    def inputs() -> list[io.Input]:
        """Its inputs, and those that end every inversion."""
        told = "Guidance of the source. 1 costs half; other values need the negative."
        return [
            cfg_input(1.0, told, name="source_cfg"),
            seed_input(),
            levels_at_once_input(),
            SIGMAS_IN,
            negative_input("Only needed where source_cfg is not 1."),
        ]

    def invert(
        self, feature: str, asked: Asked, space: NoiseSpace, levels: Tensor | None = None
    ) -> io.NodeOutput:
        """Turn a picture into drawn noise.

        Args:
            feature: What the node is called.
            asked: The picture.
            space: How the noise leads back to it.
            levels: Levels that win over the picture's own.
        """
        picture = asked.picture(feature, cfg=self.source_cfg, name="source_cfg", levels=levels)
        made = invert_noise(
            picture,
            space,
            seed=self.seed,
            batch_index=batch_index_of(asked.latent),
            levels_at_once=self.source_batch,
        )
        return asked.inverted(*made)
