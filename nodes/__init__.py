"""The pack's nodes, one module per menu group."""

from comfy_api.latest import ComfyExtension, io

from ..hosts.comfy import reading
from ..hosts.comfy.page import answer_page
from . import (
    attention_maps,
    compare,
    consist_edit,
    control,
    drag,
    drag_points,
    edit,
    identity,
    inpaint,
    load,
    local_blend,
    no_inversion,
    pix2pix_zero,
    scene_page,
    sde,
    sdedit,
    sdedit_sweep,
    source_controls,
    trajectory,
)
from .inversions import (
    cyclediffusion,
    ddim,
    edict,
    edit_friendly,
    negative_prompt,
    null_text,
    proximal,
    style_diffusion,
    uni_inv,
)


class PalimpsestExtension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def on_load(self) -> None:
        """Have the server tell the front end of words, and draw scenes for it."""
        answer_page("post", reading.ADDRESS, reading.answer)
        answer_page("get", scene_page.ADDRESS, scene_page.answer)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes, in menu order."""
        return [
            *load.NODES,
            *ddim.NODES,
            *null_text.NODES,
            *edict.NODES,
            *negative_prompt.NODES,
            *proximal.NODES,
            *style_diffusion.NODES,
            *edit_friendly.NODES,
            *cyclediffusion.NODES,
            *uni_inv.NODES,
            *control.NODES,
            *source_controls.NODES,
            *consist_edit.NODES,
            *local_blend.NODES,
            *attention_maps.NODES,
            *pix2pix_zero.NODES,
            *edit.NODES,
            *no_inversion.NODES,
            *sdedit.NODES,
            *sdedit_sweep.NODES,
            *sde.NODES,
            *inpaint.NODES,
            *drag_points.NODES,
            *drag.NODES,
            *identity.NODES,
            *trajectory.NODES,
            *compare.NODES,
        ]
