"""The node that shows where a model sees each word."""

from typing import Any

from comfy.sd import VAE
from comfy_api.latest import io, ui

from ..hosts.comfy.attention_maps import (
    ViewRequest,
    attention_maps,
    found,
    heat_pictures,
    heat_sheet,
)
from ..hosts.comfy.latents import decode_pictures
from ..hosts.comfy.masks import pixel_mask
from ..pipelines.attention.word_values import named
from ..pipelines.trajectory import Trajectory as Chain
from .border import Node
from .wires import Trajectory, report

LAYERS = {"as LocalBlend": False, "all": True}

TEXT = io.String.Input(
    "text",
    multiline=True,
    default="a red heart on grass",
    tooltip="What the picture shows; the same text as for Invert.",
)
WORDS = io.String.Input(
    "words",
    default="",
    tooltip="Words of the text to look for, with commas between them. Empty: each of its words.",
)
THRESHOLD = io.Float.Input(
    "threshold",
    default=0.4,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="For the mask: how much of a word's strongest attention a place needs.",
)
STEPS = io.Int.Input(
    "steps",
    default=10,
    min=1,
    max=1000,
    tooltip="How many steps to look at, evenly spread between start and end: one UNet row each.",
)
START = io.Float.Input(
    "start",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="The part of the steps to begin at, counted from the noise.",
    advanced=True,
)
END = io.Float.Input(
    "end",
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="The part of the steps to end at: the last ones see details, the first ones places.",
    advanced=True,
)
WHICH = io.Combo.Input(
    "layers",
    options=list(LAYERS),
    tooltip="The layers to look into: those of a quarter of the latent's side, as LocalBlend does, "
    "or those of every size.",
    advanced=True,
)
FIRST = io.Float.Input(
    "start_layer",
    default=0.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="Of these, the part of the network's layers to begin at: 0.5 leaves out the encoder.",
    advanced=True,
)
LAST = io.Float.Input(
    "end_layer",
    default=1.0,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="The part of the network's layers to end at.",
    advanced=True,
)


class AttentionMaps(Node):
    """One heat map a word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestAttentionMaps",
            display_name="Attention Maps",
            category="palimpsest/control",
            description="Shows where the model sees each word of a description in the picture: one "
            "heat map a word, and a mask of the words you name. This is how words for LocalBlend, "
            "its threshold, and masks get chosen.",
            search_aliases=[
                "daam",
                "attention viewer",
                "heat map",
                "heatmap",
                "cross attention map",
                "word mask",
                "mask from text",
                "segment by words",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that inverted the picture."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                Trajectory.Input("trajectory", tooltip="From Invert: the picture at every stage."),
                TEXT,
                WORDS,
                THRESHOLD,
                STEPS,
                START,
                END,
                WHICH,
                FIRST,
                LAST,
            ],
            outputs=[
                io.Image.Output(
                    display_name="maps",
                    tooltip="One picture a word, in their order; those of one picture of a batch "
                    "follow one another.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="White where any of the words is above the threshold, one for each "
                    "picture.",
                ),
                io.Image.Output(display_name="sheet", tooltip="All of it on one labelled sheet."),
            ],
            is_output_node=True,
        )

    @classmethod
    def run(
        cls,
        vae: VAE,
        trajectory: Chain,
        words: str,
        threshold: float,
        start: float,
        end: float,
        layers: str,
        start_layer: float,
        end_layer: float,
        **asked: Any,
    ) -> io.NodeOutput:
        request = ViewRequest(
            **asked,
            trajectory=trajectory,
            words=named(words),
            window=(start, end),
            layers=(start_layer, end_layer),
            every=LAYERS[layers],
        )
        maps, spent = attention_maps(request)
        pictures = decode_pictures(vae, trajectory.origin)
        heats = heat_pictures(maps, pictures)
        sheet = heat_sheet(heats, pictures, request.names, request.text)
        mask = pixel_mask(found(maps, threshold), request.model)
        text = f"{spent.rows} UNet rows, {spent.seconds:.1f} s"
        shown = {"palimpsest_prompts": [request.text]}
        shown |= report(spent, text) | ui.PreviewImage(sheet, cls=cls).as_dict()
        return io.NodeOutput(heats, mask, sheet, ui=shown)


NODES = [AttentionMaps]
