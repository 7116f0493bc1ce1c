"""Make the blueprints anew: whole edits as one node of the node library.

    python tests/make_blueprints.py [NAME,...]

Run by hand, from a checkout whose .dev exists. Each is described here, built in the real front end
as a person would build it (nodes, wires, *Convert to Subgraph*), and saved as the front end saves
one. ComfyUI offers every file of `subgraphs/` by its name.
"""

import json
import runpy
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "dev.py"))["load_package"]()

from palimpsest.tests.browser.conftest import enter
from palimpsest.tests.cells import front_end, serving

FOLDER = ROOT / "subgraphs"


@dataclass(frozen=True)
class Piece:
    """A node inside.

    Attributes:
        key: What wires call it here.
        kind: Its class.
        at: Where it stands.
        title: What it is called, where not by its class.
        values: Its widgets, where they differ from the defaults.
    """

    key: str
    kind: str
    at: tuple[int, int]
    title: str = ""
    values: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Blueprint:
    """A whole edit as one node.

    Attributes:
        description: What it does, for the library.
        aliases: What people type who want it.
        pieces: The nodes inside.
        wires: "piece.output > piece.input", all inside.
        inputs: What it is called outside, and the inputs inside that it feeds; a widget where all
            of them are. In the order in which they are shown.
        width: Of the node.
    """

    description: str
    aliases: tuple[str, ...]
    pieces: tuple[Piece, ...]
    wires: tuple[str, ...]
    inputs: dict[str, tuple[str, ...]]
    width: int = 420


SCALE = Piece(
    "scale",
    "ImageScaleToTotalPixels",
    (0, 0),
    "To the size the model paints best",
    {"upscale_method": "lanczos", "megapixels": 1.0, "resolution_steps": 8},
)
MEGAPIXELS = {"megapixels (SD 1.5: 0.25, SDXL: 1)": ("scale.megapixels",)}
MODEL = ("model", "clip", "vae", "image", "mask")
FRESH = {"seed": ("paint.seed",)}


def fed(*inputs):
    """The wires of a model and a picture, by the pieces that take them."""
    return dict(zip(MODEL, inputs, strict=True))


#: What Repaint an Area and From Strokes to Picture have in common: a picture painted by a prompt.
PROMPTED = (
    SCALE,
    Piece("encode", "VAEEncode", (380, 0)),
    Piece("prompt", "CLIPTextEncode", (380, 140), "What it shall show"),
    Piece("negative", "CLIPTextEncode", (380, 420), "What to avoid"),
)
WIRES = (
    "scale.IMAGE > encode.pixels",
    "encode.LATENT > paint.latent",
    "prompt.CONDITIONING > paint.positive",
    "negative.CONDITIONING > paint.negative",
    "paint.latent > decode.samples",
)
WIDGETS = (
    {
        "what it shall show": ("prompt.text",),
        "what to avoid": ("negative.text",),
        "strength": ("paint.strength",),
        "cfg": ("paint.cfg",),
        "steps": ("paint.steps",),
    }
    | MEGAPIXELS
    | FRESH
)


def painted(*masks):
    """The wires of a model and a picture to what paints it by a prompt."""
    clip, vae = ("prompt.clip", "negative.clip"), ("encode.vae", "decode.vae")
    return fed(("paint.model",), clip, vae, ("scale.image",), masks)


BLUEPRINTS = {
    "Edit Words of a Picture": Blueprint(
        "Changes what you name in a picture and keeps the rest: say what it shows, and what it "
        "shall show. SD 1.x, 2.x and SDXL.",
        ("edit photo", "edit image", "change color", "recolor", "replace object", "p2p"),
        (
            SCALE,
            Piece("encode", "VAEEncode", (380, 0)),
            Piece("shows", "CLIPTextEncode", (380, 140), "What it shows"),
            Piece("words", "PalimpsestPromptToPrompt", (380, 420)),
            Piece("invert", "PalimpsestInvertDDIM", (860, 0)),
            Piece("paint", "PalimpsestEdit", (1280, 0)),
            Piece("decode", "VAEDecode", (1700, 0)),
        ),
        (
            "scale.IMAGE > encode.pixels",
            "encode.LATENT > invert.latent",
            "shows.CONDITIONING > invert.positive",
            "invert.trajectory > paint.trajectory",
            "words.source > paint.source",
            "words.target > paint.target",
            "words.control > paint.control",
            "paint.latent > decode.samples",
        ),
        fed(
            ("invert.model", "paint.model"),
            ("shows.clip", "words.clip"),
            ("encode.vae", "decode.vae"),
            ("scale.image",),
            ("paint.mask",),
        )
        | {
            "what it shows": ("words.source", "shows.text"),
            "what it shall show": ("words.target",),
            "strength": ("invert.strength",),
            "keep shapes": ("words.self_window",),
            "cfg": ("paint.cfg",),
            "steps": ("invert.steps",),
        }
        | MEGAPIXELS,
    ),
    "Repaint an Area": Blueprint(
        "Paints what lies under a mask anew, by a prompt, with any plain model; the rest of the "
        "picture stays.",
        ("inpaint", "remove object", "replace object", "paint over", "generative fill", "repaint"),
        (
            *PROMPTED,
            Piece("paint", "PalimpsestInpaint", (860, 0)),
            Piece("decode", "VAEDecode", (1280, 0)),
            Piece("paste", "ImageCompositeMasked", (1280, 140), "The rest as it was"),
        ),
        (
            *WIRES,
            "scale.IMAGE > paste.destination",
            "decode.IMAGE > paste.source",
        ),
        painted("paint.mask", "paste.mask") | WIDGETS,
    ),
    "From Strokes to Picture": Blueprint(
        "Turns rough strokes, or something pasted in, into a picture by a prompt; under a mask, or "
        "all over.",
        ("sketch to image", "stroke to image", "scribble", "paint over", "sdedit", "img2img"),
        (
            *PROMPTED,
            Piece("paint", "PalimpsestSDEdit", (860, 0)),
            Piece("decode", "VAEDecode", (1280, 0)),
        ),
        WIRES,
        painted("paint.mask") | WIDGETS,
    ),
    "Drag in a Picture": Blueprint(
        "Drags what you point at to where you say: draw arrows on the picture, in the node.",
        ("drag", "liquify", "move object", "draggan", "warp", "sde-drag"),
        (
            Piece("points", "PalimpsestDragPoints", (0, 200)),
            SCALE,
            Piece("prompt", "CLIPTextEncode", (460, 140), "What it shows"),
            Piece("negative", "CLIPTextEncode", (460, 420), "What to avoid"),
            Piece("paint", "PalimpsestSDEDrag", (940, 0)),
            Piece("decode", "VAEDecode", (1360, 0)),
        ),
        (
            "scale.IMAGE > paint.image",
            "points.points > paint.points",
            "points.mask > paint.mask",
            "prompt.CONDITIONING > paint.positive",
            "negative.CONDITIONING > paint.negative",
            "paint.latent > decode.samples",
        ),
        fed(
            ("paint.model",),
            ("prompt.clip", "negative.clip"),
            ("paint.vae", "decode.vae"),
            ("points.image", "scale.image"),
            ("points.mask",),
        )
        | {
            "points": ("points.points",),
            "radius": ("points.radius",),
            "what it shows": ("prompt.text",),
            "what to avoid": ("negative.text",),
            "strength": ("paint.t0",),
            "steps": ("paint.steps",),
        }
        | MEGAPIXELS
        | FRESH,
        width=520,
    ),
}

BUILD = """async ({name, pieces, wires, inputs, width}) => {
    app.graph.clear()
    for (const {key, kind, at, title, values} of pieces) {
        const node = LiteGraph.createNode(kind)
        app.graph.add(node)
        node.pos = at
        if (title) node.title = title
        node.properties.piece = key
        for (const [name, value] of Object.entries(values))
            node.widgets.find(widget => widget.name === name).value = value
    }
    const {subgraph, node: host} = app.graph.convertToSubgraph(new Set(app.graph.nodes))
    for (const input of [...subgraph.inputs]) subgraph.removeInput(input)  // the page's own guesses
    const inside = key => subgraph.nodes.find(node => node.properties.piece === key)
    const end = (path, slots) => {
        const [key, name] = path.split(".")
        const node = inside(key), slot = node[slots].find(slot => slot.name === name)
        if (!slot) throw Error(`${path} is none of ${node[slots].map(slot => slot.name)}`)
        return [node, slot]
    }
    for (const wire of wires) {
        const [from, to] = wire.split(" > ")
        const [source, output] = end(from, "outputs"), [target, input] = end(to, "inputs")
        source.connect(source.outputs.indexOf(output), target, target.inputs.indexOf(input))
    }
    for (const [label, ends] of Object.entries(inputs)) {
        const slots = ends.map(path => end(path, "inputs"))
        const input = subgraph.addInput(label, String(slots[0][1].type))
        for (const [node, slot] of slots) input.connect(slot, node)
    }
    const [last, image] = end(`${pieces.at(-1).key}.IMAGE`, "outputs")
    subgraph.addOutput("image", "IMAGE").connect(image, last)
    for (const node of subgraph.nodes) delete node.properties.piece
    host.title = subgraph.name = name
    host.setSize([width, host.computeSize()[1]])
    subgraph.inputNode.arrange?.()
    app.canvas.selectItems([host])
    await new Promise(resolve => setTimeout(resolve, 300))
    const {nodes, subgraphs} = app.canvas._serializeItems([host])
    return {nodes, subgraphs}
}"""


def built(page, name: str, blueprint: Blueprint) -> dict:
    """A blueprint as the front end saves it."""
    asked = {**asdict(blueprint), "name": name}
    made = page.evaluate(BUILD, asked)
    (node,), (inside,) = made["nodes"], made["subgraphs"]
    node |= {"pos": [0, 0], "title": name}
    inside |= {"description": blueprint.description, "category": "palimpsest"}
    about = {
        "BlueprintDescription": blueprint.description,
        "BlueprintSearchAliases": list(blueprint.aliases),
    }
    return {
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inside]},
        "extra": about,
    }


def main(arguments) -> int:
    """Make the named blueprints, or all."""
    names = arguments[0].split(",") if arguments else list(BLUEPRINTS)
    FOLDER.mkdir(exist_ok=True)
    with serving() as server, front_end(server) as page:
        for name in names:
            enter(page, server, "canvas")  # anew: a page remembers the values of old widgets
            text = json.dumps(built(page, name, BLUEPRINTS[name]), indent=1)
            (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            sys.stdout.write(f"{name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
