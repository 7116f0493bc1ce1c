"""Draw the pictures of the workflows anew: those of the Templates dialog and of the README.

    python tests/make_cards.py [NAME,...]

Run by hand, from a checkout whose .dev exists, whenever a workflow or the embedded model has
changed. Every workflow is loaded into the real front end and run as it is shipped; a card shows
what came out. Those for photographs need models that are not here: their cards are left alone.
"""

import json
import runpy
import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = ROOT / "workflows"
NIGHT, LIGHT, PICTURE, GAP, BELOW = (24, 24, 28), (232, 232, 236), 400, 5, 30


@dataclass(frozen=True)
class Cell:
    """A picture of a card.

    Attributes:
        caption: Below it.
        node: Title of the node that shows it, or else its class; of several the first.
        output: Which of the node's outputs it is, by name, where the node does not show it.
        frame: Which picture of a batch.
        scene: Inputs of Demo Scene that it needs changed.
        arrow: Whether the arrow of Drag Points is drawn upon it.
    """

    caption: str
    node: str
    output: str = ""
    frame: int = 0
    scene: dict = field(default_factory=dict)
    arrow: bool = False


def original(caption):
    return Cell(caption, "Original")


def perfect(caption="a perfect edit, drawn", node="A perfect edit, drawn"):
    return Cell(caption, node)


MAPS = "Attention Maps of every word"

CARDS = {
    "attention_maps": [
        original("a white triangle on a wooden floor"),
        Cell('where it sees "triangle"', MAPS, "maps", 2),
        Cell('where it sees "floor"', MAPS, "maps", 5),
        Cell("a red triangle, in the mask of the word", "Edit, within the mask"),
    ],
    "compare_inversions": [Cell("", "All of them")],
    "compositing": [
        Cell("an object", "First picture"),
        Cell("a picture", "Second picture"),
        Cell("pasted", "Pasted"),
        Cell("harmonised", "Harmonised"),
    ],
    "copy_paste": [
        Cell("drag it there", "Original", arrow=True),
        Cell("noisy, and moved", "Noisy, and moved"),
        Cell("finished", "Result"),
    ],
    "core_samplers": [
        original("a red heart on grass"),
        Cell("stage 20 of its trajectory", "Stage 20, decoded"),
        Cell("a blue heart, by core's sampler", "Edit"),
        perfect(),
    ],
    "cycle_sde": [
        original("a red heart on grass"),
        Cell("a red cross, SDE", "SDE"),
        Cell("a red cross, ODE", "ODE"),
        Cell("a red circle, along the same noise", "Second edit"),
    ],
    "cyclediffusion": [
        original("a red heart on grass"),
        Cell("a red star", "First edit"),
        perfect("a perfect star, drawn", "A perfect first edit, drawn"),
        Cell("a red circle, along the same noise", "Second edit"),
    ],
    "demo": [
        original("a red heart on grass"),
        Cell("a blue heart on grass", "Edit"),
        Cell("a red cross on grass", "Edit", scene={"edit_color": "keep", "edit_shape": "cross"}),
        Cell(
            "a red heart on a wooden floor",
            "Edit",
            scene={"edit_color": "keep", "edit_background": "a wooden floor"},
        ),
    ],
    "diffedit": [
        original("a turquoise circle on sand"),
        Cell("the mask that was found", "Mask that was found"),
        Cell("a turquoise square, SDE", "SDE"),
        Cell("a turquoise square, ODE", "ODE"),
    ],
    "edict": [
        original("a red heart on grass"),
        perfect(),
        Cell("a blue heart, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with Prompt-to-Prompt", "Edit, with Prompt-to-Prompt"),
    ],
    "edit_friendly": [
        original("a red heart on grass"),
        Cell("a red star, first seed", "First seed"),
        perfect(),
        Cell("a red star, second seed", "Second seed"),
    ],
    "inpaint": [
        original("a red heart on grass"),
        Cell("painted anew", "Mask"),
        Cell("a blue star, SDE", "SDE, order 2"),
        Cell("a blue star, ODE", "ODE, order 2"),
    ],
    "local_blend": [
        original("a white triangle on a wooden floor"),
        Cell("a red triangle, by Prompt-to-Prompt", "Edit, by Prompt-to-Prompt alone"),
        Cell("with LocalBlend", "Edit, with LocalBlend"),
        Cell("where it was let change", "Edit, with LocalBlend", "mask"),
    ],
    "masactrl": [
        original("a dotted yellow circle on a wooden floor"),
        perfect(),
        Cell("a star, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with MasaCtrl", "Edit, with MasaCtrl"),
    ],
    "negative_prompt": [
        original("a red heart on grass"),
        perfect(),
        Cell("a red star", "Edit"),
        Cell("under proximal guidance", "Edit under proximal guidance"),
    ],
    "null_text": [
        original("a red heart on grass"),
        Cell("a blue heart on grass", "Edit"),
        Cell("its reconstruction", "Reconstruction"),
        perfect(),
    ],
    "pix2pix_zero": [
        original("a red heart on grass"),
        perfect(),
        Cell("a red cross, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with pix2pix-zero", "Edit, with pix2pix-zero"),
    ],
    "plug_and_play": [
        original("a red heart on grass"),
        perfect(),
        Cell("a white heart, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with Plug-and-Play", "Edit, with Plug-and-Play"),
    ],
    "sde_drag": [
        Cell("drag it there", "Original", arrow=True),
        Cell("after two steps", "The way, step by step", frame=2),
        Cell("after four", "The way, step by step", frame=4),
        Cell("done", "Dragged"),
    ],
    "stroke_edit": [
        original("a red heart"),
        Cell("painted over", "Painted over"),
        Cell("where it may change", "Mask"),
        Cell("a blue heart", "Edit"),
    ],
    "strokes_to_picture": [
        Cell("strokes", "Strokes"),
        Cell("strength 0.3", "PalimpsestSDEditSweep", "images", 1),
        Cell("strength 0.5", "PalimpsestSDEditSweep", "images", 2),
        Cell("strength 0.7", "PalimpsestSDEditSweep", "images", 3),
    ],
    "stylediffusion": [
        original("a red heart on grass"),
        Cell("a blue heart on grass", "Edit"),
        Cell("reconstructed by DDIM alone", "Reconstruction by DDIM alone"),
        Cell("reconstructed, learned", "Reconstruction, learned"),
    ],
    "uni_inv": [
        original("a red heart on grass"),
        perfect(),
        Cell("a blue heart, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with Prompt-to-Prompt", "Edit, with Prompt-to-Prompt"),
    ],
}


def pictures_of(server, prompt, cells) -> list:
    """Run a workflow once for every scene that its card needs, and fetch the pictures."""
    found = {}
    for scene in (dict(pairs) for pairs in {tuple(cell.scene.items()) for cell in cells}):
        asked = deepcopy(prompt)
        for node in asked.values():
            if node["class_type"] == "PalimpsestDemoScene":
                node["inputs"] |= scene
        own = {number: cell for number, cell in enumerate(cells) if cell.scene == scene}
        shown = {number: show(server, asked, cell) for number, cell in own.items()}
        entry = server.run(asked, timeout=1800)
        for number, cell in own.items():
            found[number] = server.images(entry, shown[number])[cell.frame].convert("RGB")
    return [found[number] for number in range(len(cells))]


def show(server, prompt, cell) -> str:
    """The id of the node that shows a cell; put into the prompt where none does."""
    known = server.object_info()
    of_name = [
        key
        for key, node in prompt.items()
        if cell.node in (node.get("_meta", {}).get("title"), node["class_type"])
    ]
    if not cell.output:
        return next(key for key in of_name if known[prompt[key]["class_type"]]["output_node"])
    for key in of_name:
        told = known[prompt[key]["class_type"]]
        if cell.output in told["output_name"]:
            break
    slot = told["output_name"].index(cell.output)
    source = [key, slot]
    if told["output"][slot] == "MASK":
        prompt["card mask"] = {"class_type": "MaskToImage", "inputs": {"mask": source}}
        source = ["card mask", 0]
    made = f"card {cell.output} {cell.frame}"
    prompt[made] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    return made


def arrows(prompt) -> list:
    """The pairs of Drag Points, in pixels of its picture."""
    texts = [
        value
        for node in prompt.values()
        if node["class_type"] == "PalimpsestDragPoints"
        for value in node["inputs"].values()
        if isinstance(value, str) and '"pairs"' in value
    ]
    return [pair for text in texts for pair in json.loads(text)["pairs"]]


def folded(sheet):
    """A labelled sheet as a card; one that is much too tall goes on beside its first half."""
    from PIL import Image

    if sheet.height < 1.5 * sheet.width:
        return sheet
    paper = sheet.getpixel((0, 0))
    lines = (sheet.crop((0, y, sheet.width, y + 1)) for y in range(sheet.height))
    blank = [y for y, line in enumerate(lines) if line.getcolors() == [(sheet.width, paper)]]
    fold = min((y for y in blank if y > sheet.height / 2), default=sheet.height)
    page = Image.new("RGB", (2 * sheet.width, fold), paper)
    page.paste(sheet.crop((0, 0, sheet.width, fold)), (0, 0))
    page.paste(sheet.crop((0, fold, sheet.width, sheet.height)), (sheet.width, 0))
    return page


def drawn(cells, pictures, pairs):
    """A card: two rows of two, or one row of any other number; a sheet as it is."""
    from PIL import Image, ImageDraw, ImageFont

    if not cells[0].caption:
        return folded(pictures[0])
    columns = 2 if len(cells) == 4 else len(cells)
    rows, wide, high = len(cells) // columns, PICTURE + 2 * GAP, PICTURE + BELOW + 2 * GAP
    page = Image.new("RGB", (columns * wide, rows * high), NIGHT)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for number, (cell, picture) in enumerate(zip(cells, pictures, strict=True)):
        x, y = number % columns * wide + GAP, number // columns * high + GAP
        page.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.BICUBIC), (x, y))
        if cell.arrow:
            zoom = PICTURE / picture.width
            for pair in pairs:
                ends = [(x + zoom * (u + 0.5), y + zoom * (v + 0.5)) for u, v in pair]
                pen.line(ends, "white", 4)
                for end, fill in zip(ends, ((232, 144, 60), (72, 132, 240)), strict=True):
                    pen.circle(end, 9, fill, "white", 3)
        middle = (x + PICTURE // 2, y + PICTURE + BELOW // 2 + 2)
        pen.text(middle, cell.caption, LIGHT, font, anchor="mm")
    return page


def main(arguments) -> int:
    """Draw the named cards, or all."""
    from palimpsest.dev import find_chromium, serve
    from palimpsest.tests.browser.conftest import FLAGS, enter
    from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow
    from palimpsest.tests.harness import Server
    from playwright.sync_api import sync_playwright

    names = arguments[0].split(",") if arguments else list(CARDS)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        base = Path(folder)
        with serve(base, base / "server.log") as (url, _):
            server = Server(url, base, base / "server.log")
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            enter(page, server, "canvas")
            prompts = {}
            for name in names:
                load_workflow(page, WORKFLOWS / f"palimpsest_{name}.json", name)
                prompts[name] = graph_to_prompt(page)
            browser.close()
            for name in names:
                pictures = pictures_of(server, prompts[name], CARDS[name])
                card = drawn(CARDS[name], pictures, arrows(prompts[name]))
                card.save(WORKFLOWS / f"palimpsest_{name}.jpg", quality=90)
                sys.stdout.write(f"{name}\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    runpy.run_path(str(ROOT / "dev.py"))["load_package"]()
    raise SystemExit(main(sys.argv[1:]))
