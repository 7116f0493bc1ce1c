"""Nodes that edit along a picture's own noise: Cycle-SDE and DiffEdit."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..hosts.comfy.cells import cell_size
from ..hosts.comfy.edits.cycle_sde import CycleRequest, Draws, cycle_sde, diffedit
from ..hosts.comfy.latents import batch_index_of, samples_of, with_samples
from ..hosts.comfy.refusals import refuse_noise_mask
from ..pipelines.trajectory import Trajectory as Chain
from .border import Node
from .inputs import (
    LATENT_OUT,
    PROCESSES,
    TRAJECTORY_OUT,
    Walk,
    cfg_input,
    levels_at_once_input,
    process_input,
    seed_input,
    taken,
    told,
)
from .wires import Trajectory

CATEGORY = "palimpsest/sde"


def _prompts() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="An SD 1.x, 2.x, SDXL or flow model, LoRA included."),
        io.Conditioning.Input("source", tooltip="What the picture shows now."),
        io.Conditioning.Input("target", tooltip="What it shall show."),
        io.Conditioning.Input("negative", tooltip="What to avoid; an empty prompt is usual."),
    ]


LATENT = io.Latent.Input(
    "latent",
    optional=True,
    tooltip="The picture, from VAE Encode. Not read if a trajectory is connected.",
)
TRAJECTORY = Trajectory.Input(
    "trajectory",
    optional=True,
    tooltip="Of an earlier Cycle-SDE or DiffEdit: edits the same noise again, "
    "without running the source. Its own steps, strength, sde / ode and seed hold.",
)


class CycleSDE(Node):
    """Image-to-image by prompt along the picture's own noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestCycleSDE",
            display_name="Cycle-SDE",
            category=CATEGORY,
            description="Edits a picture by its prompt along noise that leads back to the picture "
            "itself: what the prompts agree about stays, bit for bit where they are the same.",
            search_aliases=[
                "cycle sde",
                "cyclediffusion",
                "image to image",
                "ddpm inversion",
                "edit photo",
                "restyle",
                "style transfer",
                "change background",
            ],
            inputs=[
                *_prompts(),
                *Walk.inputs(0.6, 50),
                cfg_input(3.0, "How strongly the target prompt is followed."),
                cfg_input(1.0, "Guidance of the source. 1 costs half.", name="source_cfg"),
                process_input(),
                seed_input(),
                levels_at_once_input(),
                LATENT,
                TRAJECTORY,
                io.Mask.Input("mask", optional=True, tooltip="White where the picture may change."),
            ],
            outputs=[LATENT_OUT, TRAJECTORY_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        process: str,
        source_batch: int,
        latent: dict[str, Any] | None = None,
        trajectory: Chain | None = None,
        **asked: Any,
    ) -> io.NodeOutput:
        walk, picture = taken(Walk, asked), _picture(model, latent, trajectory)
        request = CycleRequest(
            model,
            **asked,
            samples=picture,
            levels=None if picture is None else walk.levels(model),
            eta=PROCESSES[process],
            trajectory=trajectory,
            levels_at_once=source_batch,
            batch_index=None if picture is None else batch_index_of(latent),
        )
        edited, chain, spent = cycle_sde(request)
        made = with_samples(None if picture is None else latent, edited)
        return io.NodeOutput(made, chain, ui=told(spent, chain.steps))


MASK_DRAWS = io.Int.Input(
    "mask_draws",
    default=10,
    min=1,
    max=100,
    tooltip="How often the prompts are compared, under other noise each time.",
    advanced=True,
)
MASK_RATIO = io.Float.Input(
    "mask_ratio",
    default=3.0,
    min=0.1,
    max=20.0,
    step=0.1,
    tooltip="How much above the average they must differ: lower makes the mask larger.",
)
MASK_STRENGTH = io.Float.Input(
    "mask_strength",
    default=0.5,
    min=0.01,
    max=1.0,
    step=0.01,
    tooltip="At which part of the noise they are compared.",
    advanced=True,
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="White where the found mask may lie; outside it nothing changes.",
)


class DiffEdit(Node):
    """An automatic mask from two prompts, and an edit under it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestDiffEdit",
            display_name="DiffEdit",
            category=CATEGORY,
            description="Finds by itself where two prompts disagree about a picture, and edits "
            "only there.",
            search_aliases=[
                "diffedit",
                "automatic mask",
                "mask from prompt",
                "mask from text",
                "image edit",
                "replace object",
                "keep background",
            ],
            inputs=[
                *_prompts(),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                *Walk.inputs(0.7, 50),
                cfg_input(
                    7.5,
                    "How strongly both prompts are followed while the mask is found, and "
                    "the target's while it is painted.",
                ),
                process_input(),
                seed_input(),
                MASK_DRAWS,
                MASK_RATIO,
                MASK_STRENGTH,
                levels_at_once_input(),
                MASK,
            ],
            outputs=[
                LATENT_OUT,
                io.Mask.Output(display_name="mask", tooltip="The mask that was found."),
                TRAJECTORY_OUT,
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        process: str,
        source_batch: int,
        **asked: Any,
    ) -> io.NodeOutput:
        names = ("mask_draws", "mask_ratio", "mask_strength")
        draws, walk = Draws(*map(asked.pop, names)), taken(Walk, asked)
        request = CycleRequest(
            model,
            **asked,
            samples=_picture(model, latent, None, "DiffEdit"),
            levels=walk.levels(model),
            eta=PROCESSES[process],
            levels_at_once=source_batch,
            feature="DiffEdit",
            batch_index=batch_index_of(latent),
        )
        edited, found, chain, spent = diffedit(request, draws)
        share = f"\nmask: {float(found.mean()):.0%} of the picture"
        cell = cell_size(model)
        pixels = found.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        made = with_samples(latent, edited)
        return io.NodeOutput(made, pixels, chain, ui=told(spent, chain.steps, share))


def _picture(
    model: ModelPatcher,
    latent: dict[str, Any] | None,
    trajectory: Chain | None,
    node: str = "Cycle-SDE",
) -> Tensor | None:
    """The samples of a LATENT, unless a trajectory stands for them."""
    if latent is None or trajectory is not None:
        return None
    refuse_noise_mask(latent, node)
    return samples_of(model, latent)


NODES = [CycleSDE, DiffEdit]
