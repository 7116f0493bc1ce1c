"""File names through a real server: filled in, refused when the graph is queued, or by wire."""

import time

import pytest
from palimpsest.tests.harness import Failed, Refused
from palimpsest.tests.server.graphs import Editing, told
from palimpsest.tests.server.test_bad_input import clear, files

SAVE = "PalimpsestSaveTrajectory"


def saving(name):
    """The demo's graph with a Save Trajectory, and that node."""
    graph = Editing(steps=2)
    return graph, graph.add(SAVE, trajectory=graph.inverted[0], filename_prefix=name)


def test_the_words_of_cores_save_image_are_filled_in(server):
    years = {time.strftime("%Y")}
    graph, node = saving("kept_%year%/%width%_cat")
    text = told(server.run(graph), node)
    years.add(time.strftime("%Y"))
    assert text == "saved as 0_cat_00001.safetensors"
    assert any((server.base / f"output/kept_{y}/0_cat_00001.safetensors").exists() for y in years)


@pytest.mark.parametrize("name", ["x" * 250, "nul", "a:b", "a\0b", "%date:yyyy%", "cats./cat"])
def test_a_name_that_cannot_be_is_refused_before_anything_runs(server, name):
    before = files(server)
    graph, node = saving(name)
    with pytest.raises(Refused, match="use a name such as trajectories/cat") as caught:
        server.queue(graph)
    assert list(caught.value.node_errors) == [node.id]
    assert files(server) == before


def test_a_name_that_comes_by_wire_is_refused_when_it_comes(server):
    graph, node = saving("")
    node.inputs["filename_prefix"] = graph.add("PrimitiveString", value="nul")[0]
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_id == node.id
    assert "'nul', which Windows keeps for a device" in caught.value.message
    assert clear(caught.value.message)


def test_a_good_name_that_comes_by_wire_is_taken(server):
    graph, node = saving("")
    node.inputs["filename_prefix"] = graph.add("PrimitiveString", value="wired/cat")[0]
    assert told(server.run(graph), node) == "saved as cat_00001.safetensors"
