"""The node on which a person sets what shall move where."""

from dataclasses import replace

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..hosts.comfy.graph import show_in_node
from ..pipelines.drag import nearest_cells
from ..pipelines.errors import PalimpsestError
from ..pipelines.points import DragPoints, read_points
from .border import Node
from .wires import Points

POINTS = io.String.Input(
    "points",
    default="",
    socketless=True,
    tooltip="Press on what shall move and drag it to where it shall go.",
    extra_dict={"widgetType": "PALIMPSEST_DRAG_EDITOR"},
)

#: What the radius counts. What was saved before there was a choice counts latent cells.
PIXELS, CELLS = "pixels", "latent cells"
#: Pixels of a cell of most models, and cells at most of a radius that goes on as a number.
USUAL_CELL, MOST_CELLS = 8, 128

RADIUS = io.Int.Input(
    "radius",
    default=40,
    min=1,
    max=USUAL_CELL * MOST_CELLS,
    tooltip="How much moves along with a point: pixels of the picture to each side of it. The "
    "editor shows the square.",
)
UNIT = io.Combo.Input(
    "unit",
    options=[PIXELS, CELLS],
    default=PIXELS,
    optional=True,
    tooltip="What the radius counts: pixels of the picture, whatever the model, or latent cells, "
    "8 pixels of most models and 16 of Flux.2.",
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="White where the picture may change. Without one, it may everywhere.",
)


class SetDragPoints(Node):
    """The editor of drag points; what it says is in `web/drag_points_widget.js`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestDragPoints",
            display_name="Drag Points",
            category="palimpsest/drag",
            description="Shows the picture and lets you draw arrows on it: from what shall move to "
            "where it shall go.",
            search_aliases=[
                "drag editor",
                "handle",
                "target",
                "sde-drag",
                "points editor",
                "move object",
                "liquify",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture that is edited."),
                POINTS,
                RADIUS,
                MASK,
                UNIT,
            ],
            outputs=[
                Points.Output(
                    display_name="points", tooltip="What moves where, and how much of it."
                ),
                io.Int.Output(
                    display_name="radius",
                    tooltip="The radius in latent cells of 8 pixels. The points bring it along: "
                    "leave the radius of SDE-Drag at 0 instead.",
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="The mask; all white where none is connected."
                ),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        image: Tensor,
        points: str,
        radius: int,
        mask: Tensor | None = None,
        unit: str = CELLS,
    ) -> io.NodeOutput:
        height, width = image.shape[1:3]
        shown = {"palimpsest_picture": ui.PreviewImage(image[:1]).values}
        if mask is None:
            mask = torch.ones(1, height, width)
        else:
            check_size(mask, width, height)
            shown["palimpsest_mask"] = ui.PreviewMask(mask.reshape(-1, height, width)[:1]).values
        try:
            drags = drags_on_picture(points, width, height)
        except PalimpsestError:
            # Without the picture nobody can set the points whose absence is refused.
            show_in_node(shown)
            raise
        if unit == PIXELS:
            drags = replace(drags, radius=radius)
        return io.NodeOutput(drags, cells_of_radius(radius, unit), mask, ui=shown)


def cells_of_radius(radius: int, unit: str) -> int:
    """The radius as a number of latent cells, where one is of 8 pixels."""
    if unit == PIXELS:
        return nearest_cells(radius, USUAL_CELL)
    if radius > MOST_CELLS:
        raise PalimpsestError(
            f"radius is {radius} latent cells, it may be {MOST_CELLS}: lower it, or set unit to "
            "pixels."
        )
    return radius


def drags_on_picture(text: str, width: int, height: int) -> DragPoints:
    """The points that the editor wrote, each with somewhere to go, on a picture of this size."""
    drags = read_points(text) if text.strip() else DragPoints((width, height), ())
    if not drags.pairs:
        raise PalimpsestError(
            "No points are set on Drag Points: press on what shall move in its picture, and drag "
            "it to where it shall go."
        )
    for number, (handle, target) in enumerate(drags.pairs, 1):
        if handle == target:
            raise PalimpsestError(
                f"Drag {number} ends where it begins, at ({handle[0]:g}, {handle[1]:g}): move its "
                "target away, or delete the drag."
            )
    return drags.on_picture(width, height)


def check_size(mask: Tensor, width: int, height: int) -> None:
    """Refuse a mask that does not lie on the picture."""
    if mask.shape[-2:] != (height, width):
        raise PalimpsestError(
            f"The mask is {mask.shape[-1]} x {mask.shape[-2]} pixels and the picture {width} x "
            f"{height}: connect a mask of the picture's size, or none. Load Image's own is 64 x 64 "
            "where its picture has no transparency."
        )


NODES = [SetDragPoints]
