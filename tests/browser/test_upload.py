"""Bringing a trajectory from one's own computer, in both renderers."""

import re

import pytest
from palimpsest.tests.browser.front_end import click_button, load_workflow, run, widget_values
from palimpsest.tests.server.graphs import Editing, told

GRAPH = {
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
    load_workflow(page, GRAPH)
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
    load_workflow(page, GRAPH)
    upload(page, picture)
    toast = page.get_by_text("holiday.png is no .safetensors file: choose one that")
    toast.wait_for()
    assert toast.count() == 1
    screenshot("refused")
    assert widget_values(page)["2"] == ["none yet"]
    assert not (server.base / "input" / "holiday.png").exists()
