"""The pack's nodes, one module per menu group."""

from comfy_api.latest import ComfyExtension, io

from . import (
    control,
    drag,
    drag_points,
    edit,
    identity,
    inpaint,
    invert,
    load,
    sde,
    sdedit,
    trajectory,
)


class PalimpsestExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in menu order."""
        return [
            *load.NODES,
            *invert.NODES,
            *control.NODES,
            *edit.NODES,
            *sdedit.NODES,
            *sde.NODES,
            *inpaint.NODES,
            *drag_points.NODES,
            *drag.NODES,
            *identity.NODES,
            *trajectory.NODES,
        ]
