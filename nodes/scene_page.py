"""The pictures of Demo Scene for the front end, drawn before any run.

The point editor asks `GET /palimpsest/scene` for what a Demo Scene that is wired to it would draw:
a picture that comes out of a run alone would be gone after the page is loaded again.
"""

import asyncio
from collections.abc import Mapping
from io import BytesIO

from aiohttp import web
from torch import Tensor

from ..hosts.drawing.sheet import as_picture
from ..pipelines.errors import PalimpsestError, quoted
from .load import KEEP, PARTS, SEED, draw_scene

ADDRESS = "/palimpsest/scene"
SHOWN = ("image", "mask", "true_edit")


def picture_of(asked: Mapping[str, str]) -> bytes:
    """A picture of a Demo Scene as the bytes of a PNG.

    Args:
        asked: The node's inputs as texts, and `output`: which of image, mask and true_edit.

    Raises:
        PalimpsestError: If something is missing or is none of the node's choices.
    """
    choices = {name: options for name, (options, _, _) in PARTS.items()}
    choices |= {f"edit_{name}": [KEEP, *options] for name, options in choices.items()}
    for name, options in {**choices, "output": SHOWN}.items():
        if asked.get(name) not in options:
            told = quoted(asked.get(name, ""))
            raise PalimpsestError(f"The {name} is {told}, it must be {' or '.join(options)}.")
    seed = asked.get("seed", "")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 20 and int(seed) <= SEED.max):
        raise PalimpsestError(f"The seed is {quoted(seed)}, it must be 0 to {SEED.max}.")
    drawn = draw_scene(int(seed), {name: asked[name] for name in choices})
    image: Tensor = getattr(drawn, asked["output"])
    if image.ndim == 2:  # a mask, as grey
        image = image[..., None].expand(-1, -1, 3)
    file = BytesIO()
    as_picture(image).save(file, "png")
    return file.getvalue()


async def answer(request: web.Request) -> web.Response:
    """Answer the page: the picture, or one sentence as `error`."""
    try:
        picture = await asyncio.to_thread(picture_of, request.query)
    except PalimpsestError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.Response(body=picture, content_type="image/png")
