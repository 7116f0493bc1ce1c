"""Kept source features and batches of prompts, in the real ComfyUI on the embedded model."""

import pytest
import torch
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 5
CURRENT = {"steps": STEPS, "convention": "current"}

#: The same kernels on the same rows, over 5 steps of guidance 7.5.
SAME = 1e-5


def rows(node, entry):
    return entry["outputs"][node.id]["rows"][0]


def keeping(place, budget=512):
    graph = Editing(**CURRENT)
    graph.inverted.inputs.update(
        source_features=place, feature_budget=budget, control=graph.words[0]
    )
    edited = graph.edit()
    kept = graph.save(edited[0], "features")
    return graph, edited, kept


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_an_edit_with_kept_features_is_the_same_and_cheaper(server, place):
    usual = Editing(**CURRENT)
    node = usual.edit()
    bare = usual.save(node[0], "usual")
    entry = server.run(usual)
    expected, cost = saved(server, entry, bare), rows(node, entry)
    graph, edited, kept = keeping(place)
    entry = server.run(graph)
    assert relative(saved(server, entry, kept), expected) < SAME
    assert rows(edited, entry) == 2 * STEPS + 1 < cost
    assert f"kept in {place}" in told(entry, graph.inverted)


def test_without_room_the_node_says_what_it_would_take(server):
    graph, edited, _ = keeping("memory", budget=1)
    entry = server.run(graph)
    text = told(entry, graph.inverted)
    assert "source features: not kept, they take" in text
    assert "MiB and the budget is 1 MiB" in text
    assert rows(edited, entry) == 2 * STEPS + 3


def test_every_line_is_an_edit_of_its_own(server):
    lines = ["a blue heart on grass", "a red star on grass"]
    graph = Editing(steps=STEPS)
    graph.words.inputs.update(target="\n".join(lines), one_per_line=True)
    together = graph.save(graph.edit()[0], "together")
    latents = saved(server, server.run(graph), together)
    assert len(latents) == 2
    for row, line in enumerate(lines):
        single = Editing(steps=STEPS)
        single.words.inputs["target"] = line
        alone = single.save(single.edit()[0], "alone")
        expected = saved(server, server.run(single), alone)
        assert relative(latents[row : row + 1], expected) < SAME
    assert relative(latents[0], latents[1]) > 1e-2


def test_inverting_the_same_picture_twice_gives_the_same_bits(server):
    found = []
    for _ in range(2):
        graph = Editing(steps=STEPS)
        kept = graph.save(graph.inverted[1], "twice")
        server.post("/free", {"unload_models": True, "free_memory": True})  # nothing is cached
        found.append(saved(server, server.run(graph), kept))
    assert torch.equal(*found)
