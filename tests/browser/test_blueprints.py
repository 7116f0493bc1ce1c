"""The blueprints: whole edits as one node, from the node library to its picture."""

import json
from pathlib import Path

import palimpsest
import pytest
from palimpsest.demo.judge import judge
from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow, run, run_unseen
from palimpsest.tests.browser.points_editor import (
    draw_arrow,
    picture_is_there,
    press_tool,
    put_pictures,
)
from palimpsest.tests.make_blueprints import BLUEPRINTS
from palimpsest.tests.server.pictures import as_tensor, find, psnr

FOLDER = Path(palimpsest.__file__).parent / "subgraphs"
SIDE = 128 * 128 / 1024**2  # what the demo model paints, in megapixels

SCENE = ["red", "heart", "plain", "grass", 12, "fixed"]
#: The embedded model, a picture and what shows the result: all that a person adds to a blueprint.
AROUND = {
    "nodes": [
        {"id": 1, "type": "PalimpsestLoadDemoModel", "pos": [80, 120]},
        {
            "id": 2,
            "type": "PalimpsestDemoScene",
            "pos": [80, 300],
            "widgets_values": [*SCENE, "blue", "star", "keep", "keep"],
        },
        {"id": 3, "type": "PreviewImage", "pos": [1200, 300]},
    ],
    "links": [],
    "version": 0.4,
}
#: What is set in each, what is wired to its mask, and what comes out.
ASKED = {
    "Edit Words of a Picture": (
        {
            "what it shows": "a red heart on grass",
            "what it shall show": "a blue heart on grass",
            "cfg": 5,
        },
        False,
        "a blue heart on grass",
    ),
    "Repaint an Area": (
        {"what it shall show": "a blue star on grass", "cfg": 5},
        True,
        "a blue star on grass",
    ),
    "Drag in a Picture": (
        {
            "what it shows": "a red heart on grass",
            "points": '{"version":1,"size":[128,128],"pairs":[[[50,60],[80,60]]]}',
            "radius": 36,
        },
        False,
        "a red heart on grass",
    ),
    "From Strokes to Picture": (
        {"what it shall show": "a red heart on grass"},
        False,
        "a red heart on grass",
    ),
}

WIRE = """([asked, masked]) => {
    const of = type => app.graph.nodes.find(node => node.type === type)
    const host = app.graph.nodes.find(node => node.isSubgraphNode?.())
    const into = name => host.inputs.findIndex(input => input.name === name)
    const [model, scene] = [of("PalimpsestLoadDemoModel"), of("PalimpsestDemoScene")]
    for (const [slot, name] of ["model", "clip", "vae"].entries())
        model.connect(slot, host, into(name))
    scene.connect(0, host, into("image"))
    if (masked) scene.connect(1, host, into("mask"))
    host.connect(0, of("PreviewImage"), 0)
    for (const [name, value] of Object.entries(asked)) {
        const widget = host.widgets.find(widget => widget.name.startsWith(name))
        if (!widget) throw Error(`no ${name} among ${host.widgets.map(widget => widget.name)}`)
        widget.value = value
    }
}"""


def from_library(page, name):
    """Drag a blueprint from the node library onto the graph, as a person does."""
    toggle = "Workspace.ToggleSidebarTab.node-library"
    if not page.get_by_placeholder("Search...").count():
        page.evaluate(f"() => {{ app.extensionManager.command.execute('{toggle}') }}")
    page.get_by_placeholder("Search...").first.fill(name)
    leaf = page.get_by_role("treeitem").filter(has_text=name).last
    leaf.wait_for()
    leaf.drag_to(page.locator("#graph-canvas"), target_position={"x": 620, "y": 200})
    page.wait_for_function("app.graph.nodes.some(node => node.isSubgraphNode?.())")
    page.evaluate(f"() => {{ app.extensionManager.command.execute('{toggle}') }}")


@pytest.mark.parametrize("name", ASKED)
def test_a_blueprint_is_dragged_from_the_library_and_runs(page, server, screenshot, name):
    asked, masked, caption = ASKED[name]
    load_workflow(page, AROUND, "blueprint")
    from_library(page, name)
    page.evaluate(WIRE, [asked | {"steps": 10, "megapixels": SIDE}, masked])
    page.wait_for_timeout(1000)
    screenshot("wired")
    nodes, wires = page.evaluate("[app.graph.nodes.length, app.graph.links.size]")
    assert (nodes, wires) == (4, 6 if masked else 5)
    _, entry = run_unseen(page, server)
    made = server.images(entry, "3")[0]
    assert made.size == (128, 128)
    assert judge(as_tensor(made)).caption == caption
    page.wait_for_timeout(500)
    screenshot("done")


HOST = "app.graph.nodes.find(node => node.isSubgraphNode?.())"
POINTS = f"{HOST}.widgets.find(widget => widget.name === 'points').value"


def test_the_editor_on_a_blueprint_is_drawn_on_undone_and_kept(page, server):
    put_pictures(server)
    load = {
        "id": 9,
        "type": "LoadImage",
        "pos": [80, 700],
        "widgets_values": ["where.png", "image"],
    }
    load_workflow(page, {**AROUND, "nodes": [*AROUND["nodes"], load]}, "blueprint")
    from_library(page, "Drag in a Picture")
    page.evaluate(WIRE, [{"radius": 20}, False])
    page.evaluate(
        f"""() => {{ const host = {HOST}
            const image = host.inputs.findIndex(input => input.name === "image")
            app.graph.getNodeById(9).connect(0, host, image)
        }}"""
    )
    picture_is_there(page)
    wanted = draw_arrow(page, (0.3, 0.5), (0.6, 0.5))
    draw_arrow(page, (0.3, 0.8), (0.6, 0.8))
    press_tool(page, "Undo")
    drawn = page.evaluate(POINTS)
    (pair,) = json.loads(drawn)["pairs"]
    assert [*pair[0], *pair[1]] == pytest.approx([*wanted[0], *wanted[1]], abs=3)
    sent = find(graph_to_prompt(page), "PalimpsestDragPoints")
    assert graph_to_prompt(page)[sent]["inputs"]["points"] == drawn
    stored = page.evaluate("JSON.stringify(app.graph.serialize())")
    load_workflow(page, AROUND, "another")
    load_workflow(page, json.loads(stored), "again")
    picture_is_there(page)
    assert page.evaluate(POINTS) == drawn
    draw_arrow(page, (0.3, 0.8), (0.6, 0.8))
    assert len(json.loads(page.evaluate(POINTS))["pairs"]) == 2


OPEN = """() => {
    const host = app.graph.nodes.find(node => node.isSubgraphNode?.())
    app.canvas.openSubgraph(host.subgraph, host)
}"""


def test_what_is_told_inside_is_seen_once_it_is_opened_and_a_mistake_above_at_once(
    page, server, screenshot
):
    load_workflow(page, AROUND, "blueprint")
    from_library(page, "Edit Words of a Picture")
    asked, _, _ = ASKED["Edit Words of a Picture"]
    page.evaluate(WIRE, [asked | {"steps": 2, "megapixels": SIDE}, False])
    assert run(page)["kind"] == "execution_success"
    page.wait_for_timeout(500)
    assert page.locator(".palimpsest-report").count() == 0
    page.evaluate(OPEN)
    page.wait_for_timeout(1000)
    assert page.locator(".palimpsest-report").get_by_text("2 steps").first.is_visible()
    screenshot("inside")
    weights = "n => n.widgets?.find(w => w.name === 'weights')"
    page.evaluate(f"({weights})(app.canvas.graph.nodes.find({weights})).value = 'purple: 2'")
    page.evaluate("app.canvas.setGraph(app.rootGraph)")
    assert run(page)["kind"] == "execution_error"
    page.keyboard.press("Escape")
    toast = page.locator(".p-toast-message").get_by_text("The word 'purple' is not in")
    toast.wait_for(timeout=5000)
    screenshot("mistake")
    page.evaluate(OPEN)
    page.wait_for_timeout(1000)
    sentence = page.locator(".palimpsest-mistake").get_by_text("The word 'purple' is not in")
    assert sentence.is_visible()
    screenshot("mistake inside")
    page.evaluate(f"({weights})(app.canvas.graph.nodes.find({weights})).value = ''")
    page.evaluate("app.canvas.setGraph(app.rootGraph)")
    assert run(page)["kind"] == "execution_success"
    toast.wait_for(state="detached", timeout=5000)


def test_what_lies_outside_the_mask_is_the_picture_itself(page, server):
    asked, masked, _ = ASKED["Repaint an Area"]
    load_workflow(page, AROUND, "blueprint")
    from_library(page, "Repaint an Area")
    page.evaluate(WIRE, [asked | {"steps": 3, "megapixels": SIDE}, masked])
    prompt = graph_to_prompt(page)
    (scene,) = (key for key, node in prompt.items() if node["class_type"] == "PalimpsestDemoScene")
    prompt["look"] = {"class_type": "MaskToImage", "inputs": {"mask": [scene, 1]}}
    for name, source in (("source", [scene, 0]), ("mask", ["look", 0])):
        prompt[f"shown {name}"] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    entry = server.run(prompt)
    made, source, mask = (
        server.images(entry, key)[0] for key in ("3", "shown source", "shown mask")
    )
    outside = as_tensor(mask)[..., 0] == 0
    assert (
        outside.any() and psnr(as_tensor(made), as_tensor(source), outside) > 45
    )  # bytes, and back


def test_every_blueprint_is_described_where_it_is_made():
    shipped = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")
    }
    assert shipped.keys() == BLUEPRINTS.keys() == ASKED.keys()
    for name, stored in shipped.items():
        (inside,) = stored["definitions"]["subgraphs"]
        assert inside["name"] == name and inside["description"] == BLUEPRINTS[name].description
        assert stored["extra"]["BlueprintSearchAliases"] == list(BLUEPRINTS[name].aliases)
        kinds = sorted(piece.kind for piece in BLUEPRINTS[name].pieces)
        assert sorted(node["type"] for node in inside["nodes"]) == kinds
        labels = [entry["name"] for entry in inside["inputs"]]
        assert labels == list(BLUEPRINTS[name].inputs)


README = FOLDER.parent / "README.md"


@pytest.mark.parametrize("name", ASKED)
def test_the_readme_counts_nodes_and_wires_as_they_are(name):
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    (inside,) = stored["definitions"]["subgraphs"]
    fed = [entry["name"] for entry in inside["inputs"]]
    by_hand = ["model", "clip", "vae", "image", *(["mask"] if ASKED[name][1] else [])]
    wires = [
        link
        for link in inside["links"]
        if link["origin_id"] != -10 or fed[link["origin_slot"]] in by_hand
    ]
    nodes = len(inside["nodes"]) + 3  # a checkpoint, a picture, and what saves the result
    row = next(
        line for line in README.read_text("utf-8").splitlines() if line.startswith(f"| {name} |")
    )
    assert row.endswith(f"| {nodes} nodes, {len(wires)} wires |")
