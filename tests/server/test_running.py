"""What happens while a node of ours runs: progress, previews, and being cancelled."""

import io

import pytest
from palimpsest.tests.server.graphs import Editing
from PIL import Image

PREVIEW = 1  # the first number of a binary message that is a latent preview
HEADER = 8  # that number, and the number of the picture format

#: Core thins out progress that comes fast, but never what has a preview.
EVERY_STEP = {"preview_method": "latent2rgb"}


def test_invert_and_edit_tell_every_step_and_show_previews(server):
    steps = 4
    graph = Editing(steps=steps, strength=0.9)
    edited = graph.edit()
    graph.save(edited[0], "previewed")
    heard = server.events(graph, extra_data=EVERY_STEP)
    for node in (graph.inverted, edited):
        assert progress(heard, node) == list(range(1, steps + 1))
    previews = [data["bytes"] for kind, data in heard if kind == "preview"]
    pictures = [b for b in previews if int.from_bytes(b[:4], "big") == PREVIEW]
    assert len(pictures) >= steps  # the server thins them out where it is busy
    for data in pictures:
        picture = Image.open(io.BytesIO(data[HEADER:]))
        assert picture.width == picture.height


def progress(heard, node):
    """The different steps that a node told of, without the 0 of its beginning."""
    told = [
        int(data["nodes"][node.id]["value"])
        for kind, data in heard
        if kind == "progress_state" and node.id in data["nodes"]
    ]
    return [step for step in dict.fromkeys(told) if step]


@pytest.mark.parametrize("name", ["inverted", "edited"])
def test_cancel_stops_within_one_step(server, name):
    graph = Editing(steps=3, width=256, height=256, batch=2)  # large: a step takes a while
    graph.edited = graph.edit()
    graph.save(graph.edited[0], f"cancelled_{name}")
    node = getattr(graph, name)
    cancelled = []

    def cancel_at_the_first_step(kind, data):
        if not cancelled and progress([(kind, data)], node):
            cancelled.extend(progress([(kind, data)], node))
            server.interrupt()

    heard = server.events(graph, cancel_at_the_first_step)
    kind, data = heard[-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", node.id)
    assert progress(heard, node)[-1] <= cancelled[0] + 1


def test_after_a_cancelled_run_the_next_one_is_whole(server):
    graph = Editing(steps=2)
    saved = graph.save(graph.edit()[0], "after")
    assert server.run(graph)["outputs"][saved.id]["latents"]


def test_changing_the_target_never_inverts_again(server):
    """Also where the source's prompt comes to Invert from the node that has the target too."""
    graph = Editing()
    graph.inverted.inputs["positive"] = graph.words[1]
    graph.save(graph.edit()[0], "again")
    graph.words.inputs["target"] = "a red star on grass"
    first = server.run(graph)
    graph.words.inputs["target"] = "a red square on grass"
    second = server.run(graph)
    inverted = graph.inverted.id
    assert first["outputs"][inverted]["rows"] == [4]
    assert second["outputs"][inverted]["rows"] == [0]
    assert "kept from the last run" in second["outputs"][inverted]["palimpsest_text"][0]
    graph.words.inputs["source"] = "a green heart on grass"
    third = server.run(graph)
    assert third["outputs"][inverted]["rows"] == [4]
