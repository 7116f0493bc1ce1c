"""The node that edits a picture without inverting it."""

from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..hosts.comfy.edits.no_inversion import (
    BY_MODEL,
    NAME,
    PRESETS,
    Made,
    NoInversion,
    Numbers,
    edit_without_inversion,
    preset_of,
)
from ..hosts.comfy.latents import batch_index_of, samples_of, with_samples
from ..hosts.comfy.masks import pixel_mask
from ..hosts.comfy.refusals import refuse_noise_mask
from .border import Node
from .inputs import (
    LATENT_OUT,
    TRAJECTORY_OUT,
    levels_at_once_input,
    scheduler_input,
    seed_input,
    taken,
)
from .wires import Control, report

#: What a number says that is left to the preset.
LEFT = -1

MODEL = io.Model.Input(
    "model",
    tooltip="Predicts a flow, noise or v (Flux, SD 3, Qwen-Image, Z-Image, Wan, SDXL, SD 1.x, "
    "...), LoRA included.",
)
NEGATIVE = io.Conditioning.Input(
    "negative",
    optional=True,
    tooltip="What to avoid; an empty prompt is usual. Not read by FlowAlign, nor by models with "
    "distilled guidance (Flux).",
)
CONTROL = Control.Input(
    "control",
    optional=True,
    tooltip="From Prompt-to-Prompt or another control: keeps the layout.",
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="White where the picture may change; outside it the latent stays bit for bit.",
)
PRESET = io.Combo.Input(
    "preset",
    options=[BY_MODEL, *PRESETS],
    default=BY_MODEL,
    tooltip="Published numbers. by the model takes FlowEdit's for the model that is connected; "
    "FlowAlign keeps more of the picture, DVRF changes more, DDCM is for models of few steps (LCM, "
    "Turbo, Lightning). What was used is told below after the run.",
)


def _count(name: str, tooltip: str, most: int) -> io.Input:
    return io.Int.Input(
        name,
        default=LEFT,
        min=LEFT,
        max=most,
        tooltip=f"{tooltip} -1: as the preset has it.",
        advanced=True,
    )


def _number(name: str, tooltip: str, *, most: float, step: float, hidden: bool) -> io.Input:
    return io.Float.Input(
        name,
        default=float(LEFT),
        min=float(LEFT),
        max=most,
        step=step,
        tooltip=f"{tooltip} -1: as the preset has it.",
        advanced=hidden,
    )


@dataclass(frozen=True)
class Own:
    """Numbers of one's own, by the names of the inputs."""

    strength: float
    cfg: float
    source_cfg: float
    steps: int
    draws: int
    zeta: float
    plain_steps: int

    @staticmethod
    def inputs() -> list[io.Input]:
        """Its inputs."""
        return [
            _number(
                "strength",
                "Which part of the steps is walked (n_max of the paper): more changes more.",
                most=1.0,
                step=0.01,
                hidden=False,
            ),
            _number(
                "cfg",
                "How strongly the target prompt is followed.",
                most=100.0,
                step=0.1,
                hidden=False,
            ),
            _number(
                "source_cfg",
                "How strongly the source prompt is; 1 costs half without a distilled model.",
                most=100.0,
                step=0.1,
                hidden=True,
            ),
            _count("steps", "Steps of the whole way from pure noise.", 1000),
            _count("draws", "Noises that are averaged in every step: steadier, and dearer.", 100),
            _number(
                "zeta",
                "How much of the difference from the picture is taken back again (FlowAlign).",
                most=1.0,
                step=0.001,
                hidden=True,
            ),
            _count(
                "plain_steps",
                "Last steps that paint freely (n_min of the paper): more of the prompt, less of "
                "the picture.",
                1000,
            ),
        ]

    def over(self, numbers: Numbers) -> Numbers:
        """A preset's numbers, with what is said here in their place."""
        said = {name: value for name, value in vars(self).items() if value != LEFT}
        walked = {name: said.pop(name) for name in ("zeta", "plain_steps") if name in said}
        return replace(numbers, manner=replace(numbers.manner, **walked), **said)


class EditNoInversion(Node):
    """FlowEdit and its kin."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestEditNoInversion",
            display_name=NAME,
            category="palimpsest/edit",
            description="Edits a picture by its prompts without inverting it first, on any model: "
            "walks from the picture to the edit under noise that is drawn anew at every step.",
            search_aliases=[
                "flowedit",
                "flow edit",
                "flowalign",
                "dvrf",
                "infedit",
                "ddcm",
                "inversion free",
                "edit image",
                "edit photo",
                "flux edit",
                "sd3 edit",
                "qwen edit",
                "z-image edit",
            ],
            inputs=[
                MODEL,
                io.Conditioning.Input("source", tooltip="What the picture shows now."),
                io.Conditioning.Input("target", tooltip="What it shall show."),
                io.Latent.Input("latent", tooltip="The picture or video, from VAE Encode."),
                PRESET,
                scheduler_input("simple", "How the steps are spread."),
                seed_input(),
                *Own.inputs(),
                levels_at_once_input(),
                NEGATIVE,
                CONTROL,
                MASK,
            ],
            outputs=[LATENT_OUT, TRAJECTORY_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        preset: str,
        source_batch: int,
        **asked: Any,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, NAME)
        chosen = preset_of(model) if preset == BY_MODEL else preset
        request = NoInversion(
            model,
            numbers=taken(Own, asked).over(PRESETS[chosen]),
            samples=samples_of(model, latent),
            batch_index=batch_index_of(latent),
            levels_at_once=source_batch,
            **{"negative": None, **asked},
        )
        made = edit_without_inversion(request)
        shown = report(made.spent, _told(chosen, request, made))
        if made.bounds is not None:
            where = pixel_mask(made.bounds.float().cpu(), model)
            shown |= ui.PreviewMask(where, cls=cls).as_dict()
        return io.NodeOutput(with_samples(latent, made.latent), made.trajectory, ui=shown)


def _told(chosen: str, request: NoInversion, made: Made) -> str:
    """What the node says of its run: which numbers it took, and what they cost."""
    numbers, walked = request.numbers, made.trajectory.steps
    kind = "distilled guidance" if request.distilled else "guidance"
    parts = [
        f"{chosen}: the last {walked} of {numbers.steps} steps",
        f"{kind} {numbers.source_cfg:g} and {numbers.cfg:g}",
    ]
    if numbers.draws > 1:
        parts.append(f"{numbers.draws} noises a step")
    if numbers.manner.zeta:
        parts.append(f"zeta {numbers.manner.zeta:g}")
    if numbers.manner.plain_steps:
        parts.append(f"{numbers.manner.plain_steps} of them plain")
    cost = f"{made.spent.rows} rows of the model, {made.spent.seconds:.1f} s"
    kept = "; the source was kept from the last run" if made.known else ""
    return f"{', '.join(parts)}\n{cost}{kept}"


NODES = [EditNoInversion]
