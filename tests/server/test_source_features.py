"""Kept source features and batches of prompts, in the real ComfyUI on the embedded model."""

from dataclasses import dataclass

import pytest
import torch
from palimpsest.tests.server.graphs import Editing, read_in, relative, saved, told

STEPS = 4

#: The same kernels on the same rows, over some steps of guidance 7.5.
SAME = 1e-5


@dataclass(frozen=True)
class Edited:
    """One edit: its latent, the rows it cost, and what its inversion said."""

    latent: torch.Tensor
    rows: int
    inversion: str


@pytest.fixture(scope="module")
def edits(server):
    """The edit of one inversion, whose source features are kept nowhere or somewhere."""
    graph = Editing(STEPS, convention="current")
    inversions = {"nowhere": graph.inverted}
    wish = {"control": graph.words[0], "feature_budget": 512}
    for name, changes in {
        "memory": {"source_features": "memory"},
        "disk": {"source_features": "disk"},
        "no room": {"source_features": "memory", "feature_budget": 1},
    }.items():
        inputs = {**graph.inverted.inputs, **wish, **changes}
        inversions[name] = graph.add("PalimpsestInvertDDIM", **inputs)
    nodes = {name: graph.edit(trajectory=node[0]) for name, node in inversions.items()}
    kept = {name: graph.save(node[0], "features") for name, node in nodes.items()}
    entry = server.run(graph)
    return {
        name: Edited(
            saved(server, entry, kept[name]),
            entry["outputs"][node.id]["rows"][0],
            told(entry, inversions[name]),
        )
        for name, node in nodes.items()
    }


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_an_edit_with_kept_features_is_the_same_and_cheaper(edits, place):
    usual, made = edits["nowhere"], edits[place]
    assert relative(made.latent, usual.latent) < SAME
    assert made.rows == 2 * STEPS + 1 < usual.rows
    assert f"kept in {place}" in made.inversion


def test_without_room_the_node_says_what_it_would_take(edits):
    made = edits["no room"]
    assert "source features: not kept, they take" in made.inversion
    assert "MiB and the budget is 1 MiB" in made.inversion
    assert made.rows == 2 * STEPS + read_in(STEPS)


def test_every_line_is_an_edit_of_its_own(server):
    lines = ["a blue heart on grass", "a red star on grass"]
    graph = Editing(steps=2)
    plain = graph.words.inputs

    def edited(**words):
        made = graph.add("PalimpsestPromptToPrompt", **{**plain, **words})
        wires = {"source": made[1], "target": made[2], "control": made[0]}
        return graph.save(graph.edit(**wires)[0], "lines")

    together = edited(target="\n".join(lines), one_per_line=True)
    alone = [edited(target=line) for line in lines]
    entry = server.run(graph)
    latents = saved(server, entry, together)
    assert len(latents) == 2
    for row, node in enumerate(alone):
        assert relative(latents[row : row + 1], saved(server, entry, node)) < SAME
    assert relative(latents[0], latents[1]) > 1e-2


def test_inverting_the_same_picture_twice_gives_the_same_bits(server):
    found = []
    for _ in range(2):
        graph = Editing(steps=3)
        if found:  # another wire and the same numbers: nothing comes from the cache
            again = graph.add("RepeatLatentBatch", samples=graph.encoded[0], amount=1)
            graph.inverted.inputs["latent"] = again[0]
        kept = graph.save(graph.inverted[1], "twice")
        server.post("/free", {"unload_models": True, "free_memory": True})
        entry = server.run(graph)
        assert server.rows(entry) == 3
        found.append(saved(server, entry, kept))
    assert torch.equal(*found)
