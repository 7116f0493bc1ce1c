"""The pack's nodes, one module per menu group."""

from comfy_api.latest import ComfyExtension, io

from . import (
    compare,
    control,
    drag,
    drag_points,
    edit,
    identity,
    inpaint,
    invert,
    invert_cyclediffusion,
    invert_edict,
    invert_edit_friendly,
    invert_negative_prompt,
    invert_null_text,
    invert_style_diffusion,
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
            *invert_null_text.NODES,
            *invert_edict.NODES,
            *invert_negative_prompt.NODES,
            *invert_style_diffusion.NODES,
            *invert_edit_friendly.NODES,
            *invert_cyclediffusion.NODES,
            *control.NODES,
            *edit.NODES,
            *sdedit.NODES,
            *sde.NODES,
            *inpaint.NODES,
            *drag_points.NODES,
            *drag.NODES,
            *identity.NODES,
            *trajectory.NODES,
            *compare.NODES,
        ]
