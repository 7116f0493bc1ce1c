"""What the drag-point editor shows and says before a run: squares, masks, units."""

import json

import numpy as np
import pytest
from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow, run, widget_values
from palimpsest.tests.browser.points_editor import (
    EDITOR,
    HEIGHT,
    PAIRS,
    WIDTH,
    arrived,
    color_at,
    colors_at,
    drag,
    opened,
    pairs,
    picture_is_there,
    put_pictures,
    says,
    seen_at,
    spot_of,
    text_of,
    workflow,
)
from PIL import Image

CELLS, PIXELS = "latent cells", "pixels"
#: White in the masks here: left, top, right, bottom. The squares of PAIRS[0] lie in it.
WHITE = (30, 30, 140, 90)


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    put_pictures(server)
    folder = server.base / "input"
    left, top, right, bottom = WHITE
    picture = np.asarray(Image.open(folder / "where.png"))
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[top:bottom, left:right] = 255
    # As the MaskEditor saves it: what is painted is seen through.
    (folder / "clipspace").mkdir(exist_ok=True)
    painted = np.dstack([picture, 255 - white])
    Image.fromarray(painted).save(folder / "clipspace" / "painted.png")
    channels = np.dstack([white, 0 * white, 255 - white])
    Image.fromarray(channels).save(folder / "mask.png")
    Image.fromarray(channels[:64, :64]).save(folder / "small mask.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    Image.fromarray(picture).save(folder / "turned.jpg", exif=turned, quality=95)


def with_mask(points, loader, file, *more, slot=0):
    """Load Image, a node that gives a mask, and Drag Points between them."""
    graph = workflow(points)
    given = {
        "id": 4,
        "type": loader,
        "pos": [-350, 480],
        "outputs": [{"name": "x", "type": "IMAGE"}] * slot
        + [{"name": "MASK", "type": "MASK", "links": [3]}],
        "widgets_values": [file, *more],
    }
    graph["nodes"].append(given)
    graph["nodes"][1]["inputs"][1]["link"] = 3
    graph["links"].append([3, 4, slot, 2, 1, "MASK"])
    return graph


def warned(page):
    """What the editor warns of."""
    page.wait_for_timeout(600)  # it looks at the graph, and the mask is there
    return page.locator(".palimpsest-points .warning").inner_text()


def set_widget(page, name, value, node=EDITOR):
    page.evaluate(
        """([node, name, value]) => { app.graph.getNodeById(node).widgets
            .find(w => w.name === name).value = value }""",
        [int(node), name, value],
    )


def brush(page, node=EDITOR):
    """Radius and unit, as a saved workflow keeps them."""
    return widget_values(page)[node][1:]


# --- masks, before any run


def test_a_painted_mask_is_there_before_the_run(page, screenshot):
    opened(page, with_mask(text_of(PAIRS), "LoadImage", "clipspace/painted.png", "image", slot=1))
    assert warned(page) == (
        "The handle of drag 2 lies outside the mask: move it, or paint the mask white there."
    )
    inside, outside = (color_at(page, *spot_of(page, at)) for at in ([85, 85], [220, 180]))
    assert inside[0] == pytest.approx(85, abs=2)
    assert outside[0] < 110  # of 220, under the veil
    screenshot("painted")


@pytest.mark.parametrize(("channel", "number"), [("red", 2), ("blue", 1), ("green", None)])
def test_the_channel_of_a_mask_picture_is_told_apart(page, channel, number):
    opened(page, with_mask(text_of(PAIRS), "LoadImageMask", "mask.png", channel, "image"))
    told = warned(page)
    if number is None:
        assert told.startswith("The mask keeps all of the picture: paint white what may change")
    else:
        assert told.startswith(f"The handle of drag {number} lies outside the mask")


def test_a_picture_without_transparency_is_a_mask_that_keeps_all(page):
    opened(page, with_mask(text_of(PAIRS), "LoadImage", "where.png", "image", slot=1))
    assert warned(page).startswith("The mask keeps all of the picture: paint white what may change")


def test_a_warning_goes_with_what_it_warns_of(page, server, screenshot):
    inside = [[60, 60], [110, 60]]
    opened(page, with_mask(text_of([inside]), "LoadImageMask", "mask.png", "red", "image"))
    assert warned(page) == ""
    drag(page, spot_of(page, inside[1]), spot_of(page, [138, 60]))
    assert warned(page).startswith("The square at the target of drag 1 leaves the mask")
    screenshot("half kept")
    drag(page, spot_of(page, [138, 60]), spot_of(page, [180, 60]))
    assert warned(page).startswith("The target of drag 1 lies outside the mask")
    drag(page, spot_of(page, [180, 60]), spot_of(page, inside[1]))
    assert warned(page) == ""
    set_widget(page, "radius", 5)
    assert warned(page).startswith("The square at the handle of drag 1 leaves the mask")
    assert arrived(server, run(page)) == ((*map(tuple, inside),),)  # it is no refusal


def test_a_mask_of_another_size_is_told_before_it_is_refused(page):
    opened(page, with_mask(text_of(PAIRS), "LoadImageMask", "small mask.png", "red", "image"))
    assert warned(page).startswith("The mask is 64 x 64 pixels, the picture 250 x 200")
    assert "mask is 64 x 64" in run(page)["exception_message"]
    page.keyboard.press("Escape")  # the error that ComfyUI shows


def test_what_leaves_the_picture_is_warned_of_and_runs(page, server, screenshot):
    edge = [[120, 100], [245, 100]]
    opened(page, workflow(text_of([edge])))
    assert warned(page) == (
        "The square at the target of drag 1 leaves the picture: move it, or take a smaller radius."
    )
    screenshot("edge")
    assert arrived(server, run(page)) == ((*map(tuple, edge),),)


def test_what_has_to_be_done_next_goes_before_a_warning(page):
    opened(page, workflow())
    page.mouse.click(*spot_of(page, [4, 4]))
    says(page, "Now press where it shall go")
    assert warned(page) == ""
    page.mouse.click(*spot_of(page, [60, 60]))
    assert warned(page).startswith("The square at the handle of drag 1 leaves the picture")


def test_nothing_that_is_said_lies_on_the_picture_or_moves_it(page, screenshot):
    """First hint, second hint, a warning, a complaint: all in a place of their own."""
    opened(page, workflow())
    canvas, told = (page.locator(f".palimpsest-points {part}") for part in ("canvas", ".told"))
    before = canvas.bounding_box()

    def is_below():
        box = told.bounding_box()
        assert canvas.bounding_box() == before
        assert box["y"] >= before["y"] + before["height"]
        assert told.evaluate("told => told.scrollHeight <= told.clientHeight")

    says(page, "Press on what shall move, and drag it to where it shall go")
    is_below()
    page.mouse.click(*spot_of(page, [4, 4]))
    says(page, "Now press where it shall go")
    is_below()
    page.mouse.click(*spot_of(page, [60, 60]))
    says(page, "leaves the picture")
    is_below()
    page.evaluate("text => { app.graph.getNodeById(2).widgets[0].value = text }", "{")
    says(page, "what you set replaces it")
    is_below()
    screenshot("complaint")


# --- the square


def is_drawn(page, point, color):
    """Whether a line of some colour goes through a pixel of the picture."""
    x, y = spot_of(page, point)
    seen = colors_at(page, x, y)
    return bool((np.abs(seen - color).max(-1) < 80).any())


ORANGE, BLUE = (255, 139, 61), (61, 180, 255)


def test_the_square_is_drawn_where_it_is_copied(page, screenshot):
    """250 = 31 cells and 2 pixels: (100, 100) is in the cell (12, 12), that begins at (97, 96)."""
    opened(page, workflow(text_of([[[100, 100], [170, 100]]])))
    for at in ([81, 90], [113, 90], [90, 80], [90, 112]):  # 2 cells left of 97, 2 right of it, ...
        assert is_drawn(page, at, ORANGE)
    for at in ([153, 90], [185, 90], [160, 80], [160, 112]):  # (170, 100) begins at (169, 96)
        assert is_drawn(page, at, BLUE)
    assert not is_drawn(page, [116, 90], ORANGE)
    screenshot("two cells")
    set_widget(page, "unit", PIXELS)
    set_widget(page, "radius", 40)
    page.wait_for_timeout(500)
    for at in ([57, 80], [137, 70], [80, 56], [70, 136]):
        assert is_drawn(page, at, ORANGE)
    screenshot("40 pixels")


def test_a_radius_that_comes_by_wire_is_not_guessed(page):
    graph = workflow(text_of([[[100, 100], [240, 100]]]))
    graph["nodes"].append(
        {
            "id": 4,
            "type": "PrimitiveInt",
            "pos": [-350, 480],
            "outputs": [{"name": "INT", "type": "INT", "links": [3]}],
            "widgets_values": [2, "fixed"],
        }
    )
    wired = {"name": "radius", "type": "INT", "widget": {"name": "radius"}, "link": 3}
    graph["nodes"][1]["inputs"].append(wired)
    graph["links"].append([3, 4, 0, 2, 2, "INT"])
    opened(page, graph)
    assert not is_drawn(page, [81, 90], ORANGE)
    assert warned(page) == ""


# --- units


def test_an_old_workflow_counts_cells_and_goes_on_counting_them(page):
    graph = workflow(text_of(PAIRS))
    assert graph["nodes"][1]["widgets_values"] == [text_of(PAIRS), 2]  # as it was saved
    opened(page, graph)
    assert brush(page) == [2, CELLS]
    inputs = graph_to_prompt(page)[EDITOR]["inputs"]
    assert (inputs["radius"], inputs["unit"]) == (2, CELLS)
    stored = page.evaluate("JSON.stringify(app.graph.serialize())")
    opened(page, json.loads(stored))
    assert brush(page) == [2, CELLS]


def test_a_new_node_counts_pixels_and_is_saved_so(page, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    page.evaluate(
        """() => { const node = LiteGraph.createNode('PalimpsestDragPoints')
            node.pos = [640, 240]; app.graph.add(node)
            app.graph.getNodeById(1).connect(0, node, 0) }"""
    )
    page.locator(".palimpsest-points").nth(1).wait_for()
    page.wait_for_timeout(600)
    new = page.evaluate("String(app.graph.nodes.at(-1).id)")
    assert brush(page, new) == [40, PIXELS]
    assert brush(page) == [2, CELLS]
    screenshot("new")
    stored = page.evaluate("JSON.stringify(app.graph.serialize())")
    load_workflow(page, json.loads(stored))
    page.locator(".palimpsest-points").nth(1).wait_for()
    assert (brush(page, new), brush(page)) == ([40, PIXELS], [2, CELLS])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"radius": 5}, [5, CELLS]),
        ({"radius": 40, "unit": PIXELS}, [40, PIXELS]),
        ({"unit": PIXELS, "radius": 30}, [30, PIXELS]),
        ({"radius": 3, "unit": CELLS}, [3, CELLS]),
    ],
)
def test_a_prompt_that_is_loaded_as_a_graph_means_what_it_meant(page, asked, expected):
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "where.png"}},
        EDITOR: {
            "class_type": "PalimpsestDragPoints",
            "inputs": {"image": ["1", 0], "points": text_of(PAIRS), **asked},
        },
    }
    page.evaluate("prompt => app.loadApiJson(prompt, 'asked')", prompt)
    picture_is_there(page)
    assert brush(page) == expected
    assert pairs(page) == PAIRS


# --- photos


def test_a_photo_that_lies_on_its_side_is_shown_as_it_is_loaded(page, server):
    graph = workflow()
    graph["nodes"][0]["widgets_values"][0] = "turned.jpg"
    opened(page, graph)
    box = page.locator(".palimpsest-points canvas").bounding_box()
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    drag(page, at, (at[0] + 40, at[1]))
    assert json.loads(widget_values(page)[EDITOR][0])["size"] == [HEIGHT, WIDTH]
    assert run(page)["kind"] == "execution_success"
    red, green = seen_at(page, at[0], at[1] - 60)
    assert red < WIDTH / 2 - 10  # its left side is up
    assert green == pytest.approx(HEIGHT / 2, abs=6)
