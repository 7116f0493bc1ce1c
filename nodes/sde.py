"""Nodes that edit along an SDE or its ODE: Cycle-SDE, DiffEdit, inpainting."""

import comfy.samplers
from comfy_api.latest import io

from ..hosts.comfy_checks import refuse_noise_mask
from ..hosts.comfy_editing import Spent
from ..hosts.comfy_sde import (
    CycleRequest,
    Draws,
    SDEditRequest,
    cycle_sde,
    diffedit,
    paint_anew,
    part_of_schedule,
)
from ..hosts.comfy_trajectory import schedule
from .wires import Trajectory, report

CATEGORY = "palimpsest/sde"
PROCESSES = {"sde": 1.0, "ode": 0.0}

#: Pixels per latent cell of every model that the pack takes; a MASK of another size is rescaled.
CELL = 8


def process_input() -> io.Input:
    """The switch between SDE and ODE."""
    return io.Combo.Input(
        "process",
        options=list(PROCESSES),
        tooltip="sde forgives an edit and paints it into place; ode follows it to the letter. "
        "The same node either way, so that one click compares them.",
    )


def schedule_inputs(t0: float, steps: int) -> list[io.Input]:
    """Which part of which schedule is walked."""
    return [
        io.Int.Input(
            "steps",
            default=steps,
            min=1,
            max=1000,
            tooltip="Steps of the whole way from pure noise; t0 of them are walked.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.SCHEDULER_NAMES,
            default="ddim_uniform",
            tooltip="How the steps are spread: ddim_uniform is the published grid; flow models "
            "take simple.",
        ),
        io.Float.Input(
            "t0",
            default=t0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How far up the noise goes: more lets more change.",
        ),
    ]


def seed_input() -> io.Input:
    """The seed of all noise."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="Of all noise: the same seed gives the same bits.",
    )


def _prompts() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="An SD 1.x, 2.x, SDXL or flow model, LoRA included."),
        io.Conditioning.Input("source", tooltip="What the picture shows now."),
        io.Conditioning.Input("target", tooltip="What it shall show."),
        io.Conditioning.Input("negative", tooltip="What to avoid; an empty prompt is usual."),
    ]


def _levels_at_once() -> io.Input:
    return io.Int.Input(
        "source_batch",
        default=8,
        min=1,
        max=256,
        tooltip="Stages of the source that go through the model in one call: more is faster and "
        "takes more memory.",
        advanced=True,
    )


LATENT_OUT = io.Latent.Output(display_name="latent", tooltip="The edited picture.")
TRAJECTORY_OUT = Trajectory.Output(
    display_name="trajectory",
    tooltip="The picture's own noise, and what the model made of it: for a further edit.",
)


class CycleSDE(io.ComfyNode):
    """Image-to-image by prompt along the picture's own noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestCycleSDE",
            display_name="Cycle-SDE",
            category=CATEGORY,
            description="Edits a picture by its prompt along noise that leads back to the picture "
            "itself: what the prompts agree about stays, bit for bit where they are the same.",
            search_aliases=["cycle sde", "cyclediffusion", "image to image", "ddpm inversion"],
            inputs=[
                *_prompts(),
                *schedule_inputs(0.6, 50),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the target prompt is followed.",
                ),
                io.Float.Input(
                    "source_cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Guidance of the source. 1 costs half.",
                ),
                process_input(),
                seed_input(),
                _levels_at_once(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The picture, from VAE Encode. Not read if a trajectory is connected.",
                ),
                Trajectory.Input(
                    "trajectory",
                    optional=True,
                    tooltip="Of an earlier Cycle-SDE or DiffEdit: edits the same noise again, "
                    "without running the source. Its own steps, t0, process and seed hold.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="White where the picture may change."),
            ],
            outputs=[LATENT_OUT, TRAJECTORY_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        source,
        target,
        negative,
        steps,
        scheduler,
        t0,
        cfg,
        source_cfg,
        process,
        seed,
        source_batch,
        latent=None,
        trajectory=None,
        mask=None,
    ) -> io.NodeOutput:
        picture = _picture(latent, trajectory)
        edited, chain, spent = cycle_sde(
            CycleRequest(
                model,
                source,
                target,
                negative,
                samples=picture,
                levels=None if picture is None else part_of_schedule(model, scheduler, steps, t0),
                cfg=cfg,
                source_cfg=source_cfg,
                eta=PROCESSES[process],
                seed=seed,
                mask=mask,
                trajectory=trajectory,
                levels_at_once=source_batch,
            )
        )
        return io.NodeOutput({"samples": edited}, chain, ui=told(spent, chain.steps))


class DiffEdit(io.ComfyNode):
    """An automatic mask from two prompts, and an edit under it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestDiffEdit",
            display_name="DiffEdit",
            category=CATEGORY,
            description="Finds by itself where two prompts disagree about a picture, and edits "
            "only there.",
            search_aliases=["diffedit", "automatic mask", "mask from prompt", "image edit"],
            inputs=[
                *_prompts(),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                *schedule_inputs(0.7, 50),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly both prompts are followed while the mask is found, and "
                    "the target's while it is painted.",
                ),
                process_input(),
                seed_input(),
                io.Int.Input(
                    "mask_draws",
                    default=10,
                    min=1,
                    max=100,
                    tooltip="How often the prompts are compared, under other noise each time.",
                    advanced=True,
                ),
                io.Float.Input(
                    "mask_ratio",
                    default=3.0,
                    min=0.1,
                    max=20.0,
                    step=0.1,
                    tooltip="How much above the average they must differ: lower makes the mask "
                    "larger.",
                ),
                io.Float.Input(
                    "mask_strength",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="At which part of the noise they are compared.",
                    advanced=True,
                ),
                _levels_at_once(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the found mask may lie; outside it nothing changes.",
                ),
            ],
            outputs=[
                LATENT_OUT,
                io.Mask.Output(display_name="mask", tooltip="The mask that was found."),
                TRAJECTORY_OUT,
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        source,
        target,
        negative,
        latent,
        steps,
        scheduler,
        t0,
        cfg,
        process,
        seed,
        mask_draws,
        mask_ratio,
        mask_strength,
        source_batch,
        mask=None,
    ) -> io.NodeOutput:
        edited, found, chain, spent = diffedit(
            CycleRequest(
                model,
                source,
                target,
                negative,
                samples=_picture(latent, None, "DiffEdit"),
                levels=part_of_schedule(model, scheduler, steps, t0),
                cfg=cfg,
                eta=PROCESSES[process],
                seed=seed,
                mask=mask,
                levels_at_once=source_batch,
                feature="DiffEdit",
            ),
            Draws(mask_draws, mask_ratio, mask_strength),
        )
        share = f"\nmask: {float(found.mean()):.0%} of the picture"
        pixels = found.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
        return io.NodeOutput({"samples": edited}, pixels, chain, ui=told(spent, chain.steps, share))


class Inpaint(io.ComfyNode):
    """Painting a masked region anew by SDE or ODE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestInpaint",
            display_name="Inpaint (SDE / ODE)",
            category=CATEGORY,
            description="Paints the white part of a mask anew and keeps the rest of the latent as "
            "it is, number for number, by the SDE or the ODE, in steps of order 1 or 2.",
            search_aliases=["inpaint", "sde inpainting", "dpm++ 2m sde", "fill mask"],
            inputs=[
                io.Model.Input("model", tooltip="A plain model; no inpainting model is needed."),
                io.Conditioning.Input("positive", tooltip="What the picture shall show."),
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Mask.Input("mask", tooltip="White where it is painted anew."),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="Steps that are walked."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.SCHEDULER_NAMES,
                    default="normal",
                    tooltip="How the steps are spread.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 begins with pure noise; less lets what is there show through.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the prompt is followed.",
                ),
                process_input(),
                io.Combo.Input(
                    "order",
                    options=["1", "2"],
                    tooltip="1: DDIM and its SDE. 2: DPM-Solver++ (2M) and its SDE, finer; as sde "
                    "it needs 25 steps or more, or karras.",
                ),
                seed_input(),
            ],
            outputs=[LATENT_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        mask,
        steps,
        scheduler,
        strength,
        cfg,
        process,
        order,
        seed,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, "Inpaint (SDE / ODE)")
        levels = schedule(model, scheduler, steps, strength)
        painted, spent = paint_anew(
            SDEditRequest(
                model,
                positive,
                negative,
                samples=latent["samples"],
                levels=levels,
                cfg=cfg,
                seed=seed,
                mask=mask,
                eta=PROCESSES[process],
                order=int(order),
                wipe=strength == 1,
                feature="Inpaint (SDE / ODE)",
            )
        )
        return io.NodeOutput({"samples": painted}, ui=told(spent, len(levels) - 1))


def _picture(latent, trajectory, node="Cycle-SDE"):
    """The samples of a LATENT, unless a trajectory stands for them."""
    if latent is None or trajectory is not None:
        return None
    refuse_noise_mask(latent, node)
    return latent["samples"]


def told(spent: Spent, steps: int, more: str = "") -> dict[str, list]:
    """What a node says of its run."""
    text = f"{steps} steps, {spent.rows} UNet rows, {spent.seconds:.1f} s{more}"
    return report(spent, text)


NODES = [CycleSDE, DiffEdit, Inpaint]
