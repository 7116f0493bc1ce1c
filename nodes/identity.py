"""The node that lets a model learn a picture before it is dragged."""

from typing import Any

from comfy_api.latest import io, ui

from ..hosts.comfy.cost import Spent
from ..hosts.comfy.files.identity_loras import lora_place, save_lora
from ..hosts.comfy.learning.identity import IdentityRequest, train_identity
from ..hosts.comfy.learning.identity_strength import check_min_strength, with_identity
from ..hosts.drawing.loss_curve import draw_loss
from .border import Node
from .wires import report

CATEGORY = "palimpsest/drag"

#: What core's Train LoRA gives, and Save LoRA and Load LoRA Model take.
LoraModel = io.Custom("LORA_MODEL")


RANK = io.Int.Input(
    "rank",
    default=16,
    min=1,
    max=128,
    tooltip="How much the LoRA can hold; 4 is the benchmark's, 16 the published tool's.",
)
STEPS = io.Int.Input(
    "steps",
    default=100,
    min=1,
    max=10000,
    tooltip="How long it learns; more keeps more of the picture.",
)
LEARNING_RATE = io.Float.Input(
    "learning_rate",
    default=0.0002,
    min=0.000001,
    max=1.0,
    step=0.000001,
    round=0.000001,
    tooltip="How fast it learns.",
)
MIN_STRENGTH = io.Float.Input(
    "min_strength",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="Strength of the LoRA at the noisiest level of a run; it rises to 1 "
    "at the clean end, and 1 here keeps it there throughout.",
)
SEED = io.Int.Input(
    "seed",
    default=0,
    min=0,
    max=2**64 - 1,
    control_after_generate=io.ControlAfterGenerate.fixed,
    tooltip="Draws the first weights and the noise it learns with.",
)
SAVE_AS = io.String.Input(
    "save_as",
    default="",
    optional=True,
    advanced=True,
    tooltip="A file name for Load LoRA, inside output/loras; empty writes no file.",
    extra_dict={"palimpsest_file_name": True},
)


class IdentityLoraNode(Node):
    """A LoRA of one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestIdentityLora",
            display_name="Identity LoRA",
            category=CATEGORY,
            description="Lets the model learn one picture for a minute, so that a drag keeps who "
            "or what is in it.",
            search_aliases=[
                "train lora",
                "lora from one image",
                "drag identity",
                "fine-tune",
                "sde-drag",
                "subject",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that will drag."),
                io.Conditioning.Input("positive", tooltip="The prompt of the drag."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                RANK,
                STEPS,
                LEARNING_RATE,
                MIN_STRENGTH,
                SEED,
                SAVE_AS,
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the LoRA, for the drag."
                ),
                LoraModel.Output(
                    display_name="lora", tooltip="The LoRA alone, for Load LoRA Model."
                ),
                io.Image.Output(display_name="loss", tooltip="How the learning went."),
            ],
            is_output_node=True,
        )

    @classmethod
    def run(cls, min_strength: float, save_as: str = "", **asked: Any) -> io.NodeOutput:
        place = lora_place(save_as) if save_as.strip() else None
        check_min_strength(min_strength)
        request = IdentityRequest(**asked)
        lora = train_identity(request)
        text = f"rank {request.rank}, {request.steps} steps, {lora.seconds:.1f} s"
        text += f"\nmean loss {lora.before:.4f} before, {lora.after:.4f} after"
        if place is not None:
            text += f"\nsaved as {save_lora(lora, place).name}"
        curve = draw_loss(lora.losses)
        shown = report(Spent(request.steps, lora.seconds), text)
        shown |= ui.PreviewImage(curve, cls=cls).as_dict()
        patched = with_identity(request.model, lora.weights, min_strength)
        return io.NodeOutput(patched, lora.weights, curve, ui=shown)


NODES = [IdentityLoraNode]
