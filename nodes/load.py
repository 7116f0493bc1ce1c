"""Nodes that bring a model or a picture into the graph."""

from pathlib import Path

from comfy_api.latest import io

from ..demo import scenes
from ..hosts.comfy.loading.folder import diffusers_folders, load_folder, resolve_diffusers_folder
from .border import Node

DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "demo" / "weights"
CATEGORY = "palimpsest/load"

MODEL_OUTPUTS = [
    io.Model.Output(display_name="model", tooltip="The UNet, for Invert and Edit."),
    io.Clip.Output(display_name="clip", tooltip="The text encoder, for Prompt-to-Prompt."),
    io.Vae.Output(display_name="vae", tooltip="Turns pictures into latents and back."),
]


class LoadDemoModel(Node):
    """The small model that comes with the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestLoadDemoModel",
            display_name="Load Demo Model",
            category=CATEGORY,
            description="Loads the small diffusion model that comes with Palimpsest. It paints the "
            "pictures of Demo Scene at 128 x 128 in seconds, also without a graphics card.",
            search_aliases=["embedded model", "tiny model", "checkpoint", "demo"],
            inputs=[],
            outputs=MODEL_OUTPUTS,
        )

    @classmethod
    def run(cls) -> io.NodeOutput:
        loaded = load_folder(DEMO_WEIGHTS)
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
    def run(cls, folder) -> io.NodeOutput:
        loaded = load_folder(resolve_diffusers_folder(folder))
        return io.NodeOutput(loaded.model, loaded.clip, loaded.vae)


COLOR = io.Combo.Input("color", options=list(scenes.COLORS), default="red", tooltip="Its colour.")
SHAPE = io.Combo.Input("shape", options=list(scenes.SHAPES), default="heart", tooltip="Its shape.")
TEXTURE = io.Combo.Input(
    "texture",
    options=list(scenes.TEXTURES),
    default="plain",
    tooltip="What it is painted with.",
)
BACKGROUND = io.Combo.Input(
    "background",
    options=list(scenes.BACKGROUNDS),
    default="grass",
    tooltip="What lies behind it.",
)
SEED = io.Int.Input(
    "seed",
    default=7,
    min=0,
    max=2**31 - 1,
    control_after_generate=io.ControlAfterGenerate.fixed,
    tooltip="Draws its size and place and the details of the background.",
)


class DemoScene(Node):
    """A drawn picture whose true edit is known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        keep = ["keep"]
        return io.Schema(
            node_id="PalimpsestDemoScene",
            display_name="Demo Scene",
            category=CATEGORY,
            description="Draws a picture that the demo model knows, says what it shows, and draws "
            "the same picture with something changed: what a perfect edit would give.",
            search_aliases=["test image", "synthetic picture", "ground truth edit", "example"],
            inputs=[
                COLOR,
                SHAPE,
                TEXTURE,
                BACKGROUND,
                SEED,
                io.Combo.Input(
                    "edit_color",
                    options=keep + list(scenes.COLORS),
                    default="blue",
                    tooltip="Colour after the edit.",
                ),
                io.Combo.Input(
                    "edit_shape",
                    options=keep + list(scenes.SHAPES),
                    default="keep",
                    tooltip="Shape after the edit.",
                ),
                io.Combo.Input(
                    "edit_texture",
                    options=keep + list(scenes.TEXTURES),
                    default="keep",
                    tooltip="Texture after the edit.",
                ),
                io.Combo.Input(
                    "edit_background",
                    options=keep + list(scenes.BACKGROUNDS),
                    default="keep",
                    tooltip="Background after the edit.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture."),
                io.Mask.Output(display_name="mask", tooltip="White where the edit changes it."),
                io.String.Output(display_name="caption", tooltip="What the picture shows."),
                io.String.Output(display_name="edit_caption", tooltip="What the edit shows."),
                io.Image.Output(display_name="true_edit", tooltip="The perfect edit."),
            ],
        )

    @classmethod
    def run(
        cls,
        color,
        shape,
        texture,
        background,
        seed,
        edit_color,
        edit_shape,
        edit_texture,
        edit_background,
    ) -> io.NodeOutput:
        chosen = {"color": color, "shape": shape, "texture": texture, "background": background}
        wanted = {
            "color": edit_color,
            "shape": edit_shape,
            "texture": edit_texture,
            "background": edit_background,
        }
        scene = scenes.Scene.random(seed).with_(**chosen)
        edited = scene.with_(**{key: v for key, v in wanted.items() if v != "keep"})
        image, truth = (scenes.render(s)[0].unsqueeze(0) for s in (scene, edited))
        mask = scenes.changed(scene, edited).unsqueeze(0)
        captions = (scenes.caption(scene), scenes.caption(edited))
        return io.NodeOutput(image, mask, *captions, truth)


NODES = [LoadDemoModel, LoadDiffusersFolder, DemoScene]
