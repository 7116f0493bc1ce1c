"""Editing real images in ComfyUI: inversion and what is built on it."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201
    """Hand ComfyUI the pack's nodes; imported late so that the rest works without ComfyUI."""
    from .nodes import PalimpsestExtension

    return PalimpsestExtension()
