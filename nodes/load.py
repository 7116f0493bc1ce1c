"""Nodes that bring a model or a picture into the graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..demo import scenes
from ..hosts.comfy.loading.folder import diffusers_folders, load_folder, resolve_diffusers_folder
from .border import Node

DEMO = Path(__file__).resolve().parents[1] / "demo"
DEMO_WEIGHTS = DEMO / "weights"
#: Where the embedded models lie, by what the node calls them.
DEMO_MODELS = {"UNet": DEMO_WEIGHTS, "flow transformer": DEMO / "weights_flow"}
CATEGORY = "palimpsest/load"

MODEL_OUTPUTS = [
    io.Model.Output(display_name="model", tooltip="The network, for Invert and Edit."),
    io.Clip.Output(display_name="clip", tooltip="The text encoder, for Prompt-to-Prompt."),
    io.Vae.Output(display_name="vae", tooltip="Turns pictures into latents and back."),
]


KIND = io.Combo.Input(
    "kind",
    options=list(DEMO_MODELS),
    default="UNet",
    optional=True,  # graphs from before have none
    tooltip="UNet: in the shape of SD 1.x, for every node. flow transformer: in the shape of Flux, "
    "for the nodes that take flow models.",
)


class LoadDemoModel(Node):
    """The small models that come with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestLoadDemoModel",
            display_name="Load Demo Model (Palimpsest)",
            category=CATEGORY,
            description="Loads a small diffusion model that comes with Palimpsest. It paints the "
            "pictures of Demo Scene (Palimpsest) at 128 x 128, without a graphics card too.",
            search_aliases=["embedded model", "tiny model", "checkpoint", "demo", "tiny flux"],
            inputs=[KIND],
            outputs=MODEL_OUTPUTS,
        )

    @classmethod
    def run(cls, kind: str = "UNet") -> io.NodeOutput:
        loaded = load_folder(DEMO_MODELS[kind])
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae)


class LoadDiffusersFolder(Node):
    """A diffusers folder of any size as native objects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestLoadDiffusersFolder",
            display_name="Load Diffusers Folder",
            category=CATEGORY,
            description="Loads a Stable Diffusion 1.x, 2.x or XL model that is stored as a "
            "diffusers folder, of any width, from ComfyUI's models/diffusers.",
            search_aliases=["diffusers loader", "load checkpoint", "model_index.json"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=diffusers_folders(),
                    tooltip="A folder in models/diffusers that holds model_index.json.",
                )
            ],
            outputs=MODEL_OUTPUTS,
        )

    @classmethod
    def run(cls, folder: str) -> io.NodeOutput:
        loaded = load_folder(resolve_diffusers_folder(folder))
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae)


KEEP = "keep"
#: What a scene is made of: its choices, the one before the edit and what it is.
PARTS = {
    "color": (list(scenes.COLORS), "red", "Its colour."),
    "shape": (list(scenes.SHAPES), "heart", "Its shape."),
    "texture": (list(scenes.TEXTURES), "plain", "What it is painted with."),
    "background": (list(scenes.BACKGROUNDS), "grass", "What lies behind it."),
}
SEED = io.Int.Input(
    "seed",
    default=7,
    min=0,
    max=2**31 - 1,
    control_after_generate=io.ControlAfterGenerate.fixed,
    tooltip="Draws its size and place and the details of the background.",
)


def _part_inputs() -> list[io.Input]:
    """What the scene is made of."""
    return [
        io.Combo.Input(name, options=options, default=default, tooltip=tooltip)
        for name, (options, default, tooltip) in PARTS.items()
    ]


def _edit_inputs() -> list[io.Input]:
    """What becomes of each part."""
    words = {"color": "Colour"}
    return [
        io.Combo.Input(
            f"edit_{name}",
            options=[KEEP, *options],
            default="blue" if name == "color" else KEEP,
            tooltip=f"{words.get(name, name.capitalize())} after the edit.",
        )
        for name, (options, _, _) in PARTS.items()
    ]


@dataclass(frozen=True, eq=False)
class DrawnScene:
    """What Demo Scene gives: pictures [H, W, 3] and a mask [H, W] in 0..1, and what they show."""

    image: Tensor
    mask: Tensor
    caption: str
    edit_caption: str
    true_edit: Tensor


def draw_scene(seed: int, parts: Mapping[str, str]) -> DrawnScene:
    """Draw a scene and its edit.

    Args:
        seed: 0 or more.
        parts: A choice for each of `PARTS`, and for each `edit_...` a choice or `KEEP`.
    """
    scene = scenes.Scene.random(seed).with_(**{name: parts[name] for name in PARTS})
    wanted = {name: parts[f"edit_{name}"] for name in PARTS}
    edited = scene.with_(**{name: part for name, part in wanted.items() if part != KEEP})
    image, truth = (scenes.render(s)[0] for s in (scene, edited))
    mask = scenes.changed(scene, edited)
    return DrawnScene(image, mask, scenes.caption(scene), scenes.caption(edited), truth)


class DemoScene(Node):
    """A drawn picture whose true edit is known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestDemoScene",
            display_name="Demo Scene (Palimpsest)",
            category=CATEGORY,
            description="Draws a picture that the demo model knows, says what it shows, and draws "
            "the same picture with something changed: what a perfect edit would give.",
            search_aliases=["test image", "synthetic picture", "ground truth edit", "example"],
            inputs=[*_part_inputs(), SEED, *_edit_inputs()],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture."),
                io.Mask.Output(display_name="mask", tooltip="White where the edit changes it."),
                io.String.Output(display_name="caption", tooltip="What the picture shows."),
                io.String.Output(display_name="edit_caption", tooltip="What the edit shows."),
                io.Image.Output(display_name="true_edit", tooltip="The perfect edit."),
            ],
        )

    @classmethod
    def run(cls, seed: int, **parts: str) -> io.NodeOutput:
        drawn = draw_scene(seed, parts)
        image, mask, truth = (x.unsqueeze(0) for x in (drawn.image, drawn.mask, drawn.true_edit))
        return io.NodeOutput(image, mask, drawn.caption, drawn.edit_caption, truth)


NODES = [LoadDemoModel, LoadDiffusersFolder, DemoScene]
