"""Trajectories in files, as latents, and as filmstrips."""

import shutil

import pytest
import torch
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 3


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


def load(graph, name):
    return graph.add("PalimpsestLoadTrajectory", file=name)[0]


@pytest.fixture(scope="module")
def along(server, file):
    """Latents of one edit along a trajectory, and along what came of it by other ways."""
    shutil.copy(server.base / "output" / file, server.base / "input" / "brought.safetensors")
    graph = Editing(steps=STEPS)
    graph.words.inputs["self_window"] = 1.0  # the edit sees every stage
    opened = graph.add("PalimpsestTrajectoryToLatents", trajectory=graph.inverted[0])
    wires = {"latents": opened[0], "sigmas": opened[1]}
    back = graph.add("PalimpsestLatentsToTrajectory", model=graph.model[0], **wires)
    trajectories = {
        "own": graph.inverted[0],
        "output": load(graph, f"{file} [output]"),
        "input": load(graph, "brought.safetensors"),
        "latents": back[0],
    }
    kept = {
        name: graph.save(graph.edit(trajectory=wire)[0], "along")
        for name, wire in trajectories.items()
    }
    entry = server.run(graph)
    return {name: saved(server, entry, node) for name, node in kept.items()}


@pytest.mark.parametrize("folder", ["output", "input"])
def test_a_trajectory_from_a_folder_edits_as_the_one_that_was_saved(along, folder):
    assert torch.equal(along["own"], along[folder])


def test_both_folders_are_offered(server, file):
    shutil.copy(server.base / "output" / file, server.base / "input" / "offered.safetensors")
    (combo,) = server.object_info()["PalimpsestLoadTrajectory"]["input"]["required"].values()
    assert {f"{file} [output]", "offered.safetensors"} <= set(combo[1]["options"])


def test_a_changed_file_is_read_again(server, file):
    source = server.base / "output" / file
    copy = source.with_name("changing.safetensors")
    shutil.copy(source, copy)
    graph = Editing(steps=STEPS)
    wire = load(graph, "kept/changing.safetensors [output]")
    graph.save(graph.edit(trajectory=wire)[0], "changing")
    assert server.rows(server.run(graph)) > 0
    assert server.rows(server.run(graph)) == 0
    copy.touch()
    assert server.rows(server.run(graph)) > 0


def test_saving_again_overwrites_nothing(server, file):
    before = (server.base / "output" / file).read_bytes()
    assert keep(server, steps=1) == "saved as cat_00002.safetensors"
    assert (server.base / "output" / file).read_bytes() == before
    assert not list((server.base / "output").rglob("*.part"))


def test_latents_and_back_is_the_same_trajectory(along):
    assert relative(along["latents"], along["own"]) < 1e-5


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


def test_a_filmstrip_holds_the_frames_side_by_side(server):
    width, height, batch = 128, 64, 2
    graph = Editing(steps=STEPS, width=width, height=height, batch=batch)
    wires = {"trajectory": graph.inverted[0], "vae": graph.model[2]}
    asked = {frames: min(frames, STEPS + 1) for frames in (3, 8)}
    strips = [graph.add("PalimpsestPreviewTrajectory", frames=n, **wires) for n in asked]
    entry = server.run(graph)
    for strip, shown in zip(strips, asked.values(), strict=True):
        sizes = [picture.size for picture in server.images(entry, strip.id)]
        assert sizes == [(shown * width, height)] * batch
