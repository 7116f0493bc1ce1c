"""Nodes that drag what is in a picture: SDE-Drag, and its Copy-Paste alone."""

from typing import Any

import comfy.utils
import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..hosts.comfy.edits.copy_paste import paste_on_latent, radius_in_cells
from ..hosts.comfy.edits.drag import Drag, DragPath, DragRequest, start_drag
from ..hosts.comfy.files.pictures import save_picture
from ..hosts.comfy.graph import show_in_node
from ..hosts.comfy.latents import batch_index_of, samples_of, with_samples
from ..hosts.drawing.sheet import as_picture
from ..pipelines.copy_paste import Brush
from ..pipelines.couplings import LEVELS_AT_ONCE
from ..pipelines.points import DragPoints
from .border import Node
from .inputs import LATENT_OUT, Walk, seed_input, taken
from .wires import Points, report

CATEGORY = "palimpsest/drag"

#: Pixels at most of a side of the live picture in the node.
PREVIEW = 512


RADIUS = io.Int.Input(
    "radius",
    default=0,
    min=0,
    max=128,
    tooltip="0: as set on Drag Points, whose editor shows it. Otherwise latent cells to each side "
    "of a handle that are copied.",
)
ALPHA = io.Float.Input(
    "alpha",
    default=1.1,
    min=0.0,
    max=3.0,
    step=0.05,
    tooltip="Strength of the copy; a little above 1 keeps it clear.",
    advanced=True,
)
BETA = io.Float.Input(
    "beta",
    default=0.3,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="How much of the old stays where it was; the rest becomes noise.",
    advanced=True,
)


def _brush_inputs() -> list[io.Input]:
    return [
        RADIUS,
        ALPHA,
        BETA,
    ]


def _region_input() -> io.Input:
    return io.Mask.Input(
        "region",
        optional=True,
        tooltip="White on what moves, instead of a square: what hangs together under each handle.",
    )


SIGMAS = io.Sigmas.Input(
    "sigmas", tooltip="The sigmas that will finish it: the first is its level."
)


class CopyPaste(Node):
    """The copying alone, on any noisy latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestCopyPaste",
            display_name="Drag Copy-Paste",
            category=CATEGORY,
            description="Copies what is around each handle of a noisy latent to its target and "
            "puts noise where it was, ready for any sampler.",
            search_aliases=["sde-drag", "move latent", "latent copy paste", "drag", "copy paste"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose latent it is."),
                io.Latent.Input("latent", tooltip="A noisy latent, with leftover noise."),
                SIGMAS,
                Points.Input("points", tooltip="From Drag Points."),
                *_brush_inputs(),
                seed_input(),
                _region_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For a sampler with added noise disabled."
                )
            ],
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        points: DragPoints,
        sigmas: Tensor,
        radius: int,
        seed: int,
        region: Tensor | None = None,
        **brush: Any,
    ) -> io.NodeOutput:
        pasted = paste_on_latent(
            samples_of(model, latent),
            points,
            model,
            sigmas,
            brush=Brush(radius_in_cells(radius, points, model, region), **brush),
            seed=seed,
            region=region,
            batch_index=batch_index_of(latent),
        )
        return io.NodeOutput(with_samples(latent, pasted))


POSITIVE = io.Conditioning.Input(
    "positive", tooltip="Describes the picture as it shall be after the drag."
)
STRIDE = io.Int.Input(
    "stride",
    default=2,
    min=1,
    max=64,
    tooltip="Latent cells per drag step: smaller is smoother and slower.",
)
CFG = io.Float.Input(
    "cfg",
    default=3.0,
    min=1.0,
    max=30.0,
    step=0.1,
    tooltip="Guidance at the noisiest stage; it falls to 1 at the cleanest. 1 costs half.",
)
ETA = io.Float.Input(
    "eta",
    display_name="sde / ode (eta)",
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="1 is the SDE, 0 the ODE (by DDIM inversion).",
)
EARLY_STOP = io.Boolean.Input(
    "early_stop",
    display_name="stop_on_arrival",
    default=False,
    tooltip="On: every pair walks at the stride and stops where it arrives. Off: "
    "all arrive together, as published.",
)
SOURCE_BATCH = io.Int.Input(
    "source_batch",
    default=LEVELS_AT_ONCE,
    min=1,
    max=256,
    tooltip="Stages of the undragged picture per model call: more is faster and takes more memory.",
    advanced=True,
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="White where the picture may change: over handle, target and the way.",
)


class SDEDrag(Node):
    """The whole loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEDrag",
            display_name="SDE-Drag",
            category=CATEGORY,
            description="Drags what is at the handles to their targets, a little at a time, and "
            "repaints what that tears open. Shows every step while it runs.",
            search_aliases=[
                "drag",
                "draggan",
                "dragdiffusion",
                "move object",
                "liquify",
                "warp",
                "point editing",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A model, or Identity LoRA's."),
                POSITIVE,
                io.Conditioning.Input("negative", tooltip="What to avoid."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input("image", tooltip="The picture that the points were set on."),
                Points.Input("points", tooltip="From Drag Points."),
                *_brush_inputs(),
                *Walk.inputs(0.6, 20),
                STRIDE,
                CFG,
                ETA,
                EARLY_STOP,
                seed_input(),
                SOURCE_BATCH,
                MASK,
                _region_input(),
            ],
            outputs=[
                LATENT_OUT,
                io.Image.Output(
                    display_name="path",
                    tooltip="The picture after every drag step, the undragged one first: an "
                    "animation.",
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def run(cls, model: ModelPatcher, source_batch: int, **asked: Any) -> io.NodeOutput:
        height, width = asked["image"].shape[1:3]
        asked["points"] = asked["points"].scaled_to(width, height)
        radius, region = asked["radius"], asked.get("region")
        asked["radius"] = radius_in_cells(radius, asked["points"], model, region)
        brush, levels = taken(Brush, asked), taken(Walk, asked).levels(model)
        request = DragRequest(
            model, **asked, levels=levels, brush=brush, levels_at_once=source_batch
        )
        path, drag = start_drag(request)
        _run(drag, path)
        text = f"{path.steps} drag steps, {path.rows} UNet rows, {path.seconds:.1f} s"
        shown = ui.PreviewImage(path.pictures[-1], cls=cls).as_dict()
        frames = torch.cat(path.pictures)
        return io.NodeOutput({"samples": path.latent}, frames, ui=shown | report(path.spent, text))


def _run(drag: Drag, path: DragPath) -> None:
    """Walk a drag, show every step in the node, and keep the last one if it is cancelled."""
    progress = comfy.utils.ProgressBar(1)

    def show(done: int, total: int, pictures: Tensor | None) -> None:
        if pictures is None:
            progress.update_absolute(done, total)
            return
        picture = as_picture(pictures[0])
        # ComfyUI scales a preview to the size it is told, also upwards.
        progress.update_absolute(done, total, ("JPEG", picture, min(PREVIEW, *picture.size)))

    try:
        drag.run(path, show)
    except InterruptProcessingException:
        _keep(path)
        raise


def _keep(path: DragPath) -> None:
    """Save the last finished drag step of a cancelled run, and show it in the node."""
    done = len(path.pictures) - 1
    if not done:
        return
    saved = save_picture(path.pictures[-1][0], "palimpsest/drag_cancelled")
    text = f"cancelled after {done} of {path.steps} drag steps; kept as {saved.filename}"
    show_in_node({"images": [saved.as_dict()], "palimpsest_text": [text]})


NODES = [CopyPaste, SDEDrag]
