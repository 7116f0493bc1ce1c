"""The node of StyleDiffusion."""

from typing import Any

from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from torch import Tensor

from ...hosts.comfy.inversions.style_diffusion import encoded_tokens, invert_style_diffusion
from ...pipelines.errors import PalimpsestError
from ...pipelines.inversion.style_diffusion import Fitting
from ..inputs import cfg_input, seed_input, taken
from .shared import SIGMAS_IN, UNET_MODEL, Asked, InvertNode, inversion, picture_inputs

FEATURE = "Invert (StyleDiffusion)"


NEGATIVE = io.Conditioning.Input(
    "negative", tooltip="The one that Edit is going to have; usually empty."
)
ROUNDS = io.Int.Input(
    "rounds",
    default=1071,
    min=1,
    max=100000,
    tooltip="Rounds of learning in all, most of them at the noisiest stages; at "
    "least one for each step. Each costs about four model calls. 1071 at 50 steps "
    "is published, 300 is often enough.",
)
VALUE_WINDOW = io.Float.Input(
    "value_window",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="Part of the edit in which its own prompt is painted with the learned "
    "looks. More keeps more of the picture, less follows the prompt more.",
)
MAP_WEIGHT = io.Float.Input(
    "map_weight",
    default=1.0,
    min=0.0,
    max=1000.0,
    step=0.1,
    tooltip="How much the learning holds on to where each word looks. 0 is faster "
    "and needs less memory.",
    advanced=True,
)
EARLY_STOP = io.Float.Input(
    "early_stop",
    display_name="stop_below",
    default=1e-5,
    min=0.0,
    max=1.0,
    step=1e-6,
    tooltip="A step is done when its loss falls below this; later steps allow "
    "more. 0.00001 is published.",
    advanced=True,
)
CLIP_VISION = io.ClipVision.Input(
    "clip_vision",
    optional=True,
    tooltip="Sees the picture; ViT-B/16 is published for SD 1.x. Needs the image. "
    "Without it the latent itself is looked at.",
)
IMAGE = io.Image.Input(
    "image",
    optional=True,
    tooltip="The picture as it was before VAE Encode, for clip_vision.",
)


class InvertStyleDiffusion(InvertNode):
    """StyleDiffusion: a learned mapping of cross-attention's values."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertStyleDiffusion",
            display_name=FEATURE,
            description="Traces a picture back to noise and learns its looks on the way: what "
            "every word of the description brings into this picture. Edit then paints with "
            "that, while the words themselves still say where things are. It takes a while.",
            search_aliases=[
                "stylediffusion",
                "style diffusion",
                "prompt-embedding inversion",
                "value mapping",
                "real image editing",
                "invert image",
            ],
            inputs=[
                *picture_inputs(model=UNET_MODEL),
                NEGATIVE,
                cfg_input(7.5, "The guidance that is learned for: give Edit the same."),
                ROUNDS,
                VALUE_WINDOW,
                seed_input(),
                MAP_WEIGHT,
                EARLY_STOP,
                SIGMAS_IN,
                CLIP_VISION,
                IMAGE,
            ],
        )

    @classmethod
    def invert(
        cls,
        value_window: float,
        clip_vision: ClipVisionModel | None = None,
        image: Tensor | None = None,
        **wires: Any,
    ) -> io.NodeOutput:
        _check_pair(clip_vision, image)
        fitting, asked = taken(Fitting, wires), Asked(**wires)
        tokens = None if clip_vision is None else encoded_tokens(clip_vision, image)
        trajectory, fitted, spent = invert_style_diffusion(
            asked.picture(FEATURE), fitting, tokens=tokens, value_window=value_window
        )
        loss = sum(fitted.losses) / len(fitted.losses)
        more = f"{fitted.rounds} of {fitting.rounds} rounds, mean loss {loss:.2g}"
        return asked.inverted(trajectory, spent, more)


def _check_pair(clip_vision: ClipVisionModel | None, image: Tensor | None) -> None:
    """Refuse one of the two without the other."""
    if (clip_vision is None) == (image is None):
        return
    given, missing = "clip_vision", "image"
    if clip_vision is None:
        given, missing = missing, given
    raise PalimpsestError(
        f"The {given} is connected and the {missing} is not: connect both, or neither to "
        "learn from the latent itself."
    )


NODES = [InvertStyleDiffusion]
