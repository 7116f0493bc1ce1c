"""Make the templates for own photos anew: the blueprints, each with a model and a picture.

    python tests/make_photo_templates.py [NAME,...]

Run by hand after `make_blueprints.py`, from a checkout whose .dev exists. Each is laid out here,
loaded into the real front end and saved by it.
"""

import json
import runpy
import sys
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "dev.py"))["load_package"]()

from palimpsest.tests.browser.conftest import enter
from palimpsest.tests.browser.front_end import load_workflow
from palimpsest.tests.cells import front_end, serving
from palimpsest.tests.templates import file_of

BLUEPRINTS = ROOT / "subgraphs"


@dataclass(frozen=True)
class Model:
    """A checkpoint that ComfyUI offers to download where it is missing.

    Attributes:
        name: Of its family.
        file: In the folder checkpoints.
        url: Where it is.
        megapixels: What it paints best.
        side: The same as the side of a square, for the note.
        key: How short names of workflows call it.
    """

    name: str
    file: str
    url: str
    megapixels: float
    side: int
    key: str


HUB = "https://huggingface.co"
MODELS = (
    Model(
        "SD 1.5",
        "v1-5-pruned-emaonly-fp16.safetensors",
        f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
        "v1-5-pruned-emaonly-fp16.safetensors",
        0.25,
        512,
        "sd15",
    ),
    Model(
        "SDXL",
        "sd_xl_base_1.0.safetensors",
        f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
        1.0,
        1024,
        "sdxl",
    ),
)


@dataclass(frozen=True)
class Template:
    """What is laid out around a blueprint.

    Attributes:
        blueprint: Its name.
        values: Of its widgets, by the beginning of their names.
        picture: Where the picture comes from: a node's class, and the values of its widgets.
        mask: Whether the picture's own mask is wired.
        note: What to do, in Markdown; {side} is the side of a square that the model paints best.
        compared: Whether before and after are laid over each other.
        app: The widgets that an App of it shows, (node, widget); none where it is a graph.
    """

    blueprint: str
    values: dict
    picture: tuple[str, list]
    note: str
    mask: bool = False
    compared: bool = True
    app: tuple[tuple[int, str], ...] = ()


PHOTO = ("LoadImage", ["palimpsest_example.webp", "image"])
HOLE = ("LoadImage", ["palimpsest_example_hole.webp", "image"])
STROKES = ("Painter", ["palimpsest_example_strokes.webp [input]", 768, 768, "#7ab648"])
FIRST = (
    "**1.** Choose your {model} checkpoint (*Download* brings the usual one), and your picture in "
    "place of ours.\n\n"
)

TEMPLATES = {
    "words": Template(
        "Edit Words of a Picture",
        {"what it shows": "a red heart on grass", "what it shall show": "a blue heart on grass"},
        PHOTO,
        FIRST
        + "**2.** Write *what it shows*, in words that you would paint it with, and below it *what "
        "it shall show*: the same words with one or two changed.\n\n**3.** Press *Run*.\n\n"
        "- Too little changes: lower *keep shapes*, or raise *cfg*.\n- Too much changes: lower "
        "*strength*, or wire a mask: only what is white may change.\n\nThe picture is scaled to "
        "about {side} x {side} pixels, which {model} paints best. A double click on the blue "
        "node's corner opens it.",
    ),
    "drag": Template(
        "Drag in a Picture",
        {"what it shows": "a red heart on grass"},
        PHOTO,
        FIRST
        + "**2.** Press on what shall move, in the picture of the large node, and drag it to where "
        "it shall go: one arrow or several.\n\n**3.** Write *what it shows*, and press "
        "*Run*.\n\n- It stays, or is doubled: raise *radius* or *strength*.\n- Something else "
        "changes: wire a mask that is white over the object and its way.",
        compared=False,
        app=(
            (2, "ckpt_name"),
            (3, "image"),
            (4, "points"),
            (4, "radius"),
            (4, "what it shows"),
            (4, "strength"),
        ),
    ),
    "repaint": Template(
        "Repaint an Area",
        {"what it shall show": "a blue star on grass"},
        HOLE,
        FIRST
        + "**2.** Right click on the picture, *Open in MaskEditor*, and paint over what shall be "
        "painted anew.\n\n**3.** Write what the picture shall show, all of it, and press "
        "*Run*.\n\n- Lower *strength* keeps more of what was there.\n- To have the mask found "
        "from words, see the template for DiffEdit.",
        mask=True,
    ),
    "strokes": Template(
        "From Strokes to Picture",
        {"what it shall show": "a red heart on grass"},
        STROKES,
        "**1.** Choose your {model} checkpoint (*Download* brings the usual one).\n\n**2.** Paint "
        "in *Painter*, roughly: only colours and places count. A picture wired to it is painted "
        "over.\n\n**3.** Write what it shall show, and press *Run*.\n\n- Looks painted: raise "
        "*strength* (0.3 to 0.7).\n- Strokes are forgotten: lower it.",
    ),
}

#: Where the columns begin, and the rows. The picture's wire to *Before / after* runs below the blue
#: node, so that it does not read as if it came out of it. Painter is as high as the window: it has
#: a column of its own, which moves those on its right.
LEFT, MIDDLE, RIGHT = 40, 480, 1060
TOP, CHECKPOINT, PICTURE, BELOW = 60, 370, 540, 530
PAINTER = {"pos": [MIDDLE, TOP], "size": [300, 760]}
PHOTO_BOX = {"pos": [LEFT, PICTURE], "size": [380, 340]}
ASIDE = {4: 360, 5: 300, 6: 300}  # how far, by the id


def laid_out(template: Template, model: Model, stored: dict) -> dict:
    """A workflow: model, picture and note beside the blueprint, its result on the right."""
    (host,), (inside,) = deepcopy(stored["nodes"]), deepcopy(stored["definitions"]["subgraphs"])
    names = [entry["name"] for entry in host["inputs"]]
    values = {
        name: value for name, value in zip(_widgets(host), host["widgets_values"], strict=True)
    }
    for key, value in (template.values | {"megapixels": model.megapixels}).items():
        (name,) = (name for name in values if name.startswith(key))
        values[name] = value
    host |= {"id": 4, "pos": [MIDDLE, TOP], "widgets_values": list(values.values())}
    links, wires = [], [(2, 0, "model"), (2, 1, "clip"), (2, 2, "vae"), (3, 0, "image")]
    if template.mask:
        wires.append((3, 1, "mask"))
    kinds = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "image": "IMAGE", "mask": "MASK"}
    for number, (source, slot, name) in enumerate(wires, start=1):
        links.append([number, source, slot, 4, names.index(name), kinds[name]])
    saved = len(links) + 1
    links.append([saved, 4, 0, 5, 0, "IMAGE"])
    if template.compared:
        links += [[saved + 1, 3, 0, 6, 0, "IMAGE"], [saved + 2, 4, 0, 6, 1, "IMAGE"]]
    kind, own = template.picture
    picture = {"id": 3, "type": kind, **(PAINTER if kind == "Painter" else PHOTO_BOX)}
    picture["widgets_values"] = own
    nodes = [_note(template, model), _checkpoint(model), picture, host, _save(template)]
    if template.compared:
        nodes.append({"id": 6, "type": "ImageCompare", "pos": [RIGHT, BELOW], "size": [400, 380]})
        nodes[-1]["title"] = "Before / after"
        nodes.sort(key=lambda node: node["id"])
    for node in nodes:
        _wire(node, links)
        if kind == "Painter":
            node["pos"] = [node["pos"][0] + ASIDE.get(node["id"], 0), node["pos"][1]]
    return {
        "last_node_id": 6,
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "definitions": {"subgraphs": [inside]},
        "extra": {},
        "version": 0.4,
    }


def _widgets(host):
    return [entry["name"] for entry in host["inputs"] if entry.get("widget")]


def _note(template, model):
    text = template.note.format(model=model.name, side=model.side)
    return {
        "id": 1,
        "type": "MarkdownNote",
        "pos": [LEFT, TOP],
        "size": [380, 250],
        "title": template.blueprint,
        "widgets_values": [text],
    }


def _checkpoint(model):
    about = {"name": model.file, "url": model.url, "directory": "checkpoints"}
    return {
        "id": 2,
        "type": "CheckpointLoaderSimple",
        "pos": [LEFT, CHECKPOINT],
        "size": [380, 98],
        "properties": {"models": [about]},
        "widgets_values": [model.file],
    }


def _save(template):
    name = template.blueprint.split()[0].lower()
    return {
        "id": 5,
        "type": "SaveImage",
        "pos": [RIGHT, TOP],
        "size": [400, 420],
        "title": "Result",
        "widgets_values": [f"palimpsest/{name}"],
    }


INPUTS = {
    "SaveImage": [("images", "IMAGE")],
    "ImageCompare": [("image_a", "IMAGE"), ("image_b", "IMAGE")],
}
OUTPUTS = {
    "CheckpointLoaderSimple": [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")],
    "LoadImage": [("IMAGE", "IMAGE"), ("MASK", "MASK")],
    "Painter": [("IMAGE", "IMAGE"), ("MASK", "MASK")],
}


def _wire(node, links):
    """Say in a node which links end and begin there."""
    made = [{"name": n, "type": t} for n, t in INPUTS.get(node["type"], [])]
    node["inputs"] = node.get("inputs") or made
    made = [{"name": n, "type": t, "links": []} for n, t in OUTPUTS.get(node["type"], [])]
    node["outputs"] = node.get("outputs") or made
    for slot, entry in enumerate(node["inputs"]):
        entry["link"] = next(
            (i for i, *_, to, at, _ in links if (to, at) == (node["id"], slot)), None
        )
    for slot, entry in enumerate(node["outputs"]):
        entry["links"] = [i for i, of, at, *_ in links if (of, at) == (node["id"], slot)]


def main(arguments) -> int:
    """Make the named templates, or all."""
    names = arguments[0].split(",") if arguments else list(TEMPLATES)
    with serving() as server, front_end(server) as page:
        for name, model in product(names, MODELS):
            file = BLUEPRINTS / f"{TEMPLATES[name].blueprint}.json"
            stored = json.loads(file.read_text(encoding="utf-8"))
            enter(page, server, "canvas")
            load_workflow(page, laid_out(TEMPLATES[name], model, stored), "photo")
            page.wait_for_timeout(1000)
            made = page.evaluate("app.graph.serialize()")
            del made["extra"]["ds"]  # it opens as large as the window lets it
            if TEMPLATES[name].app:
                shown = {"inputs": TEMPLATES[name].app, "outputs": [5]}
                made["extra"] |= {"linearMode": True, "linearData": shown}
                # An App has no canvas to be fitted into.
                made["extra"]["ds"] = {"scale": 0.8, "offset": [60, 60]}
            text = json.dumps(made, indent=1)
            file_of(f"photo_{name}_{model.key}").write_text(text + "\n", encoding="utf-8")
            sys.stdout.write(f"{name} {model.name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
