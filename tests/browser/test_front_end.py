"""The front end with the pack in it, in both renderers: it comes up, runs, names and uploads."""

import re
import time

import pytest
from palimpsest.tests.browser.front_end import (
    click_button,
    graph_to_prompt,
    load_workflow,
    missing_nodes,
    run,
    widget_values,
)
from palimpsest.tests.server.graphs import Editing, told

PLAIN = {
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "pos": [200, 200],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [64, 64, 1, 255],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "pos": [600, 200],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["tests/graph"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}


def test_the_default_graph_is_drawn_by_the_asked_renderer(page, request, screenshot):
    page.evaluate("app.extensionManager.command.execute('Comfy.LoadDefaultWorkflow')")
    page.wait_for_timeout(500)
    nodes = page.evaluate("app.graph.nodes.length")
    assert nodes
    drawn_as_elements = page.locator("[data-node-id]").count()
    assert drawn_as_elements == (nodes if "vue" in request.node.name else 0)
    screenshot("default")


def test_run_makes_the_picture(page, server, screenshot):
    load_workflow(page, PLAIN)
    assert missing_nodes(page) == []
    assert graph_to_prompt(page)["1"]["inputs"]["color"] == 255
    ended = run(page)
    assert ended["kind"] == "execution_success"
    (picture,) = server.images(server.wait(ended["prompt_id"]), "2")
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    page.wait_for_timeout(500)
    screenshot("done")


def test_an_unknown_node_is_told_apart(page):
    first, second = PLAIN["nodes"]
    load_workflow(page, {**PLAIN, "nodes": [{**first, "type": "NoSuchNode"}, second]})
    assert missing_nodes(page) == ["NoSuchNode"]


# --- file names that the page fills in, as it does in core's own nodes

#: The same words in core's Save Image and in our two nodes that write files.
NAME = "%date:yyyy-MM-dd%/%Steps.value% %Steps.nothing% %year% %Nobody.value%"


def named(name):
    """A number, core's Save Image, and our nodes that write files, all under one name."""
    kinds = {
        "PrimitiveInt": [17],
        "SaveImage": [name],
        "PalimpsestSaveTrajectory": [name],
        "PalimpsestIdentityLora": [16, 100, 0.0002, 0.5, 0, "fixed", name],
    }
    nodes = [
        {"id": n, "type": kind, "pos": [300 * n, 0], "widgets_values": values}
        for n, (kind, values) in enumerate(kinds.items(), start=1)
    ]
    nodes[0]["title"] = "Steps"
    return {"nodes": nodes, "links": [], "version": 0.4}


def test_the_page_fills_in_our_names_as_it_does_cores(page):
    load_workflow(page, named(NAME))
    before = time.strftime("%Y-%m-%d")
    prompt = graph_to_prompt(page)
    core = prompt["2"]["inputs"]["filename_prefix"]
    assert prompt["3"]["inputs"]["filename_prefix"] == core
    assert prompt["4"]["inputs"]["save_as"] == core
    date, _, rest = core.partition("/")
    assert date in {before, time.strftime("%Y-%m-%d")}
    assert rest == "17 %Steps.nothing% %year% %Nobody.value%"


def test_the_workflow_keeps_the_words(page):
    load_workflow(page, named(NAME))
    graph_to_prompt(page)
    kept = widget_values(page)
    assert kept["3"] == [NAME]
    assert kept["4"][-1] == NAME


def test_a_name_without_words_stays_as_it_is(page):
    load_workflow(page, named("cats/100 % cat"))
    prompt = graph_to_prompt(page)
    assert prompt["3"]["inputs"]["filename_prefix"] == "cats/100 % cat"
    assert prompt["4"]["inputs"]["save_as"] == "cats/100 % cat"


# --- a trajectory from one's own computer

BROUGHT = {
    "nodes": [
        {
            "id": 1,
            "type": "PalimpsestLoadDemoModel",
            "pos": [100, 200],
            "outputs": [{"name": n, "type": n.upper()} for n in ("model", "clip")]
            + [{"name": "vae", "type": "VAE", "links": [1]}],
        },
        {
            "id": 2,
            "type": "PalimpsestLoadTrajectory",
            "pos": [100, 450],
            "size": [360, 120],
            "outputs": [{"name": "trajectory", "type": "PALIMPSEST_TRAJECTORY", "links": [2]}],
            "widgets_values": ["none yet"],
        },
        {
            "id": 3,
            "type": "PalimpsestPreviewTrajectory",
            "pos": [600, 200],
            "size": [560, 300],
            "inputs": [
                {"name": "trajectory", "type": "PALIMPSEST_TRAJECTORY", "link": 2},
                {"name": "vae", "type": "VAE", "link": 1},
            ],
            "widgets_values": [4],
        },
    ],
    "links": [[1, 1, 2, 3, 1, "VAE"], [2, 2, 0, 3, 0, "PALIMPSEST_TRAJECTORY"]],
    "version": 0.4,
}


@pytest.fixture(scope="module")
def trajectories(server):
    """The bytes of two trajectories, as a person would have them on disk."""
    found = []
    for steps in (3, 4):
        graph = Editing(steps=steps)
        wish = {"trajectory": graph.inverted[0], "filename_prefix": "mine/mine"}
        node = graph.add("PalimpsestSaveTrajectory", **wish)
        name = told(server.run(graph), node).removeprefix("saved as ")
        found.append((server.base / "output" / "mine" / name).read_bytes())
    return found


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        click_button(page, "upload a trajectory")
    chooser.value.set_files(path)


def chosen(page, name):
    """Wait until a file is chosen in Load Trajectory."""
    page.wait_for_function(
        "name => app.graph.getNodeById(2).widgets[0].value === name", arg=name, timeout=10_000
    )


def test_an_uploaded_trajectory_is_chosen_and_runs(
    page, server, trajectories, tmp_path, screenshot, request
):
    renderer = re.search("canvas|vue", request.node.name)[0]
    load_workflow(page, BROUGHT)
    first, second = (tmp_path / name / f"{renderer}.safetensors" for name in "ab")
    for path, data in zip((first, second), trajectories, strict=True):
        path.parent.mkdir()
        path.write_bytes(data)
    upload(page, first)
    chosen(page, f"{renderer}.safetensors")
    ended = run(page)
    assert ended["kind"] == "execution_success"
    (strip,) = server.images(server.wait(ended["prompt_id"]), "3")
    assert strip.size == (4 * 128, 128)
    page.wait_for_timeout(500)
    screenshot("uploaded")
    upload(page, second)
    chosen(page, f"{renderer} (1).safetensors")
    assert widget_values(page)["2"] == [f"{renderer} (1).safetensors"]
    kept = [server.base / "input" / f"{renderer}{more}.safetensors" for more in ("", " (1)")]
    assert [path.read_bytes() for path in kept] == trajectories


def test_a_file_of_another_kind_is_refused_with_one_sentence(page, server, tmp_path, screenshot):
    picture = tmp_path / "holiday.png"
    picture.write_bytes(b"png")
    load_workflow(page, BROUGHT)
    upload(page, picture)
    toast = page.get_by_text("holiday.png is no .safetensors file: choose one that")
    toast.wait_for()
    assert toast.count() == 1
    screenshot("refused")
    assert widget_values(page)["2"] == ["none yet"]
    assert not (server.base / "input" / "holiday.png").exists()
