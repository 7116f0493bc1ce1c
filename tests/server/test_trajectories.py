"""Trajectories in files, as latents, and as filmstrips."""

import shutil

import pytest
import torch
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 4


def keep(server, **invert):
    """Save a trajectory and return what the node said."""
    graph = Editing(**invert)
    wish = {"trajectory": graph.inverted[0], "filename_prefix": "kept/cat"}
    node = graph.add("PalimpsestSaveTrajectory", **wish)
    return told(server.run(graph), node)


@pytest.fixture(scope="module")
def file(server):
    """A saved trajectory, by its name below the output folder."""
    assert keep(server, steps=STEPS) == "saved as cat_00001.safetensors"
    return "kept/cat_00001.safetensors"


def edited_along(server, trajectory_of):
    """The latents of an edit along a graph's own trajectory, and along `trajectory_of(graph)`."""
    graph = Editing(steps=STEPS)
    kept = [
        graph.save(graph.edit(trajectory=wire)[0], "along")
        for wire in (graph.inverted[0], trajectory_of(graph))
    ]
    entry = server.run(graph)
    return [saved(server, entry, node) for node in kept]


def load(name):
    return lambda graph: graph.add("PalimpsestLoadTrajectory", file=name)[0]


def test_a_trajectory_from_the_output_folder_edits_as_the_one_that_was_saved(server, file):
    own, loaded = edited_along(server, load(f"{file} [output]"))
    assert torch.equal(own, loaded)


def test_a_trajectory_from_the_input_folder_does_too(server, file):
    shutil.copy(server.base / "output" / file, server.base / "input" / "brought.safetensors")
    own, loaded = edited_along(server, load("brought.safetensors"))
    assert torch.equal(own, loaded)


def test_both_folders_are_offered(server, file):
    shutil.copy(server.base / "output" / file, server.base / "input" / "offered.safetensors")
    (combo,) = server.object_info()["PalimpsestLoadTrajectory"]["input"]["required"].values()
    assert {f"{file} [output]", "offered.safetensors"} <= set(combo[1]["options"])


def test_a_changed_file_is_read_again(server, file):
    source = server.base / "output" / file
    copy = source.with_name("changing.safetensors")
    shutil.copy(source, copy)
    graph = Editing(steps=STEPS)
    wire = load("kept/changing.safetensors [output]")(graph)
    graph.save(graph.edit(trajectory=wire)[0], "changing")
    assert server.rows(server.run(graph)) > 0
    assert server.rows(server.run(graph)) == 0
    copy.touch()
    assert server.rows(server.run(graph)) > 0


def test_saving_again_overwrites_nothing(server, file):
    before = (server.base / "output" / file).read_bytes()
    assert keep(server, steps=STEPS + 1) == "saved as cat_00002.safetensors"
    assert (server.base / "output" / file).read_bytes() == before
    assert not list((server.base / "output").rglob("*.part"))


def test_latents_and_back_is_the_same_trajectory(server):
    def there_and_back(graph):
        opened = graph.add("PalimpsestTrajectoryToLatents", trajectory=graph.inverted[0])
        wires = {"latents": opened[0], "sigmas": opened[1]}
        return graph.add("PalimpsestLatentsToTrajectory", model=graph.model[0], **wires)[0]

    own, other = edited_along(server, there_and_back)
    assert relative(other, own) < 1e-5


def test_the_latents_are_the_stages_with_the_picture_first(server):
    graph = Editing(steps=STEPS, batch=2)
    opened = graph.add("PalimpsestTrajectoryToLatents", trajectory=graph.inverted[0])
    wires = [opened[0], graph.encoded[0], graph.inverted[1]]
    kept = [graph.save(wire, "stages") for wire in wires]
    entry = server.run(graph)
    stages, origin, start = (saved(server, entry, node) for node in kept)
    assert stages.shape == (2 * (STEPS + 1), 4, 16, 16)
    assert torch.equal(stages[:2], origin)
    assert torch.equal(stages[-2:], start)


@pytest.mark.parametrize(("frames", "shown"), [(3, 3), (8, STEPS + 1)])
def test_a_filmstrip_holds_the_frames_side_by_side(server, frames, shown):
    graph = Editing(steps=STEPS, width=192, height=128, batch=2)
    wires = {"trajectory": graph.inverted[0], "vae": graph.model[2]}
    strip = graph.add("PalimpsestPreviewTrajectory", frames=frames, **wires)
    entry = server.run(graph)
    sizes = [picture.size for picture in server.images(entry, strip.id)]
    assert sizes == [(shown * 192, 128)] * 2
