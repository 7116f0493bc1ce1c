"""Pictures that workflows make, cell by cell: for the cards and for the help pages.

A workflow is loaded into the real front end and run as it is shipped, with the embedded model; a
cell says which of its pictures is wanted, and what to write below it.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NIGHT, LIGHT = (24, 24, 28), (232, 232, 236)

#: The node of core that makes a picture of an output of ours, and its input.
AS_PICTURE = {"MASK": ("MaskToImage", "mask"), "LATENT": ("VAEDecode", "samples")}


@dataclass(frozen=True)
class Cell:
    """A picture of a workflow.

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


@dataclass(frozen=True)
class Look:
    """Sizes in pixels of what is drawn of cells.

    Attributes:
        picture: Side of a picture.
        gap: Around it.
        below: Height of its caption.
        font: Size of the caption.
    """

    picture: int
    gap: int
    below: int
    font: int


@contextmanager
def serving() -> Iterator:
    """A real ComfyUI over a folder of its own, while the block lasts."""
    from palimpsest.dev import serve
    from palimpsest.tests.harness import Server

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        with serve(base, base / "server.log") as (url, _):
            yield Server(url, base, base / "server.log")


@contextmanager
def front_end(server, **options) -> Iterator:
    """A page of the real front end of that server, while the block lasts."""
    from palimpsest.dev import find_chromium
    from palimpsest.tests.browser.conftest import FLAGS, enter
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(**{"viewport": {"width": 1600, "height": 1000}, **options})
        enter(page, server, "canvas")
        yield page
        browser.close()


def prompt_of(page, name, awake="") -> dict:
    """What Run would send of a shipped workflow; `awake` is a node that it ships switched off."""
    from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow
    from palimpsest.tests.templates import file_of

    load_workflow(page, file_of(name), name)
    page.evaluate(
        "kind => app.graph.nodes.forEach(n => { n.mode = n.type === kind ? 0 : n.mode })", awake
    )
    return graph_to_prompt(page)


#: The embedded model paints 128 x 128 pixels, in megapixels; a little above, or core rounds down.
EMBEDDED = 128 * 128 / 1024**2 + 1e-4

#: What is drawn into templates that leave the points to the person.
ARROW = '{"version":1,"size":[768,768],"pairs":[[[396,340],[560,340]]]}'


def embedded(prompt) -> dict:
    """A prompt for a checkpoint of one's own, with the embedded model in its place."""
    asked = deepcopy(prompt)
    for node in asked.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "CheckpointLoaderSimple":
            node |= {"class_type": "PalimpsestLoadDemoModel", "inputs": {}}
        elif kind == "ImageScaleToTotalPixels":
            inputs["megapixels"] = EMBEDDED
        elif kind == "PalimpsestDragPoints" and not inputs["points"]:
            inputs |= {"points": ARROW, "radius": 220}
    return asked


def pictures_of(server, prompt, cells) -> list:
    """Run a workflow once for every scene that its cells need, and fetch the pictures."""
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
    source, kind = [key, slot], told["output"][slot]
    if kind in AS_PICTURE:
        made, name = AS_PICTURE[kind]
        converted = f"{cell.output} of {key}, converted"
        prompt[converted] = {"class_type": made, "inputs": {name: source}}
        if kind == "LATENT":
            prompt[converted]["inputs"]["vae"] = [of_class(prompt, "PalimpsestLoadDemoModel"), 2]
        source = [converted, 0]
    shown = f"{cell.output} of {key}, shown"
    prompt[shown] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    return shown


def of_class(prompt, kind) -> str:
    """The id of the first node of a class."""
    return next(key for key, node in prompt.items() if node["class_type"] == kind)


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


def drawn(cells, pictures, pairs, look):
    """The pictures with their captions: two rows of two, or one row of any other number."""
    from PIL import Image, ImageDraw, ImageFont

    columns = 2 if len(cells) == 4 else len(cells)
    wide = look.picture + 2 * look.gap
    rows, high = len(cells) // columns, wide + look.below
    page = Image.new("RGB", (columns * wide, rows * high), NIGHT)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(look.font)
    for number, (cell, picture) in enumerate(zip(cells, pictures, strict=True)):
        x, y = number % columns * wide + look.gap, number // columns * high + look.gap
        page.paste(picture.resize((look.picture,) * 2, Image.Resampling.BICUBIC), (x, y))
        if cell.arrow:
            draw_arrows(pen, pairs, (x, y), look.picture / picture.width)
        middle = (x + look.picture // 2, y + look.picture + look.below // 2 + 2)
        caption = broken(cell.caption, font, look.picture)
        pen.multiline_text(middle, caption, LIGHT, font, anchor="mm", align="center")
    return page


def draw_arrows(pen, pairs, corner, zoom) -> None:
    """Draw the arrows of Drag Points as its editor does, upon a picture shown larger by zoom."""
    width, radius = max(2, round(1.3 * zoom)), max(4, round(2.9 * zoom))
    for pair in pairs:
        ends = [(corner[0] + zoom * (u + 0.5), corner[1] + zoom * (v + 0.5)) for u, v in pair]
        pen.line(ends, "white", width)
        for end, fill in zip(ends, ((232, 144, 60), (72, 132, 240)), strict=True):
            pen.circle(end, radius, fill, "white", width - 1)


def broken(text, font, width) -> str:
    """A caption in as many lines as it needs to be no wider than that."""
    lines = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
