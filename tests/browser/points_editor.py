"""The drag-point editor as a person meets it: graphs with it, and what hands do on it.

The picture says by its colour which pixel one looks at: red is x, green is y. So a screenshot tells
what was pressed, whatever the editor and the graph do with it.
"""

import io
import json

import numpy as np
from hypothesis import HealthCheck, settings
from palimpsest.pipelines.points import read_points
from palimpsest.tests.browser.front_end import load_workflow, widget_values
from PIL import Image

#: Examples go to a page and back, each of them.
steadily = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

WIDTH, HEIGHT = 250, 200
PAIRS = [[[60, 60], [110, 60]], [[60, 120], [110, 160]], [[180, 60], [180, 120]]]
EDITOR, WANTS_POINTS = "2", "3"


def put_pictures(server):
    """Pictures, two sizes of them, into the server's input folder."""
    for name, width, height in (("where.png", WIDTH, HEIGHT), ("smaller.png", 125, 100)):
        y, x = np.mgrid[:height, :width]
        colors = np.stack([x, y, 0 * x], -1).astype(np.uint8)
        Image.fromarray(colors).save(server.base / "input" / name)


def text_of(pairs, size=(WIDTH, HEIGHT)):
    return json.dumps({"version": 1, "size": size, "pairs": pairs})


def workflow(points="", scale=1.0, size=(560, 620)):
    """Load Image, Drag Points, and a node that wants the points."""
    load = {
        "id": 1,
        "type": "LoadImage",
        "pos": [-350, 40],
        "size": [300, 360],
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
        "widgets_values": ["where.png", "image"],
    }
    return {
        "nodes": [load, *editor_nodes(points, size)],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "*"]],
        "extra": {"ds": {"scale": scale, "offset": [400 / scale, 60 / scale]}},
        "version": 0.4,
    }


def editor_nodes(points="", size=(560, 620)):
    return [
        {
            "id": 2,
            "type": "PalimpsestDragPoints",
            "pos": [0, 40],
            "size": list(size),
            "inputs": [
                {"name": "image", "type": "IMAGE", "link": 1},
                {"name": "mask", "type": "MASK", "link": None},
            ],
            "outputs": [{"name": "points", "type": "PALIMPSEST_POINTS", "links": [2]}],
            "widgets_values": [points, 2],
        },
        {
            "id": 3,
            "type": "PreviewAny",
            "pos": [size[0] + 60, 60],
            "inputs": [{"name": "source", "type": "*", "link": 2}],
        },
    ]


def from_demo_scene():
    """The same with a picture, and a mask, that the server draws for the page."""
    scene = {
        "id": 1,
        "type": "PalimpsestDemoScene",
        "pos": [-350, 40],
        "outputs": [
            {"name": "image", "type": "IMAGE", "links": [1]},
            {"name": "mask", "type": "MASK", "links": [3]},
        ],
    }
    editor, wants = editor_nodes()
    editor["inputs"][1]["link"] = 3
    return {
        **workflow(),
        "nodes": [scene, editor, wants],
        "links": [*workflow()["links"], [3, 1, 1, 2, 1, "MASK"]],
    }


def after_a_run():
    """The same with a picture, and a mask, that are there after a run only."""
    graph = from_demo_scene()
    between = [
        between_node(4, "RepeatImageBatch", "IMAGE", "image", 1, fed=1, feeds=4),
        between_node(5, "ThresholdMask", "MASK", "mask", 0.5, fed=3, feeds=5),
    ]
    editor = next(node for node in graph["nodes"] if node["id"] == 2)
    editor["inputs"][0]["link"], editor["inputs"][1]["link"] = 4, 5
    links = [
        [1, 1, 0, 4, 0, "IMAGE"],
        [2, 2, 0, 3, 0, "*"],
        [3, 1, 1, 5, 0, "MASK"],
        [4, 4, 0, 2, 0, "IMAGE"],
        [5, 5, 0, 2, 1, "MASK"],
    ]
    return {**graph, "nodes": [*graph["nodes"], *between], "links": links}


def between_node(number, kind, wire, name, value, *, fed, feeds):
    """A node of core's that hands on what it is given."""
    return {
        "id": number,
        "type": kind,
        "pos": [-350, 300 + 60 * number],
        "inputs": [{"name": name, "type": wire, "link": fed}],
        "outputs": [{"name": wire, "type": wire, "links": [feeds]}],
        "widgets_values": [value],
    }


def opened(page, graph):
    """Load a graph and wait until the editor shows its picture."""
    load_workflow(page, graph)
    picture_is_there(page)


def picture_is_there(page):
    page.locator(".palimpsest-points:visible .empty:empty").wait_for(
        state="attached", timeout=10_000
    )
    page.wait_for_timeout(300)  # it is painted


def says(page, words):
    """Wait until the editor says something."""
    page.locator(".palimpsest-points:visible").get_by_text(words).wait_for(timeout=10_000)


def press_tool(page, name):
    page.locator(f".palimpsest-points:visible .tools input[value='{name}']").click()


def spot(page, fx, fy):
    """The middle of a pixel of the screen, by fractions of the editor's stage."""
    box = page.locator(".palimpsest-points:visible canvas").bounding_box()
    return int(box["x"] + box["width"] * fx) + 0.5, int(box["y"] + box["height"] * fy) + 0.5


def spot_of(page, point):
    """Where a pixel of the picture is on the screen while the whole picture is shown."""
    box = page.locator(".palimpsest-points:visible canvas").bounding_box()
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    return tuple(
        box[start] + box[length] / 2 + (at + 0.5 - whole / 2) * scale
        for start, length, at, whole in [
            ("x", "width", point[0], WIDTH),
            ("y", "height", point[1], HEIGHT),
        ]
    )


def color_at(page, x, y):
    return tuple(colors_at(page, x, y, beside=0)[0, 0].tolist())


def colors_at(page, x, y, beside=2):
    """[H, W, 3] of what a screenshot shows there, with so many pixels on every side."""
    side = 2 * beside + 1
    clip = {"x": int(x) - beside, "y": int(y) - beside, "width": side, "height": side}
    shown = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    return np.asarray(shown).astype(int)


def seen_at(page, x, y):
    """The pixel of the picture that a screenshot shows there."""
    red, green, blue = color_at(page, x, y)
    assert blue < 4, "this is no part of the picture"
    return [red, green]


def drag(page, start, end, button="left"):
    page.mouse.move(*start)
    page.mouse.down(button=button)
    page.mouse.move(*((a + b) / 2 for a, b in zip(start, end, strict=True)))
    page.mouse.move(*end)
    page.mouse.up(button=button)


def draw_arrow(page, start, end):
    """Draw an arrow between two spots; the pair that it should be."""
    start, end = spot(page, *start), spot(page, *end)
    pair = [seen_at(page, *start), seen_at(page, *end)]
    drag(page, start, end)
    return pair


def text(page, node=EDITOR):
    """What a saved workflow keeps of the points."""
    return widget_values(page)[node][0]


def pairs(page):
    return json.loads(text(page))["pairs"] if text(page) else []


def assert_near(found, expected):
    assert np.shape(found) == np.shape(expected)
    assert np.abs(np.subtract(found, expected)).max() <= 1


def arrived(server, ended):
    """The pairs that the server was sent, and that the node behind Drag Points got."""
    assert ended["kind"] == "execution_success", ended
    entry = server.wait(ended["prompt_id"])
    sent = read_points(entry["prompt"][2][EDITOR]["inputs"]["points"])
    assert entry["outputs"][WANTS_POINTS]["text"] == [str(sent)]
    assert sent.size == (WIDTH, HEIGHT)
    return sent.pairs


def graph_place(page):
    """How large the graph is shown, and where."""
    return page.evaluate("[app.canvas.ds.scale, ...app.canvas.ds.offset]")


def graph_steps(page):
    """How far ComfyUI's own undo and redo could go."""
    return page.evaluate(
        """() => { const t = app.extensionManager.workflow.activeWorkflow.changeTracker
            return [t.undoQueue.length, t.redoQueue.length] }"""
    )


def press_on_the_empty_graph(page):
    page.mouse.click(1200, 800)
