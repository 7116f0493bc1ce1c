"""The shipped demo over the real API, its results read as pictures, and what it costs."""

import pytest
import torch
from palimpsest.demo import scenes
from palimpsest.tests.server.graphs import Editing, read_in, told
from palimpsest.tests.server.pictures import (
    LOST,
    api_form,
    as_tensor,
    demo_pictures,
    demo_scenes,
    find,
    kept_outside,
    painted_inside,
)

#: Of the edits beside the demo.
STEPS = 3


@pytest.fixture(scope="module")
def prompt():
    return api_form()


@pytest.fixture(scope="module")
def entry(server, prompt):
    server.post("free", {"free_memory": True})  # whatever ran before, here nothing is cached
    return server.run(prompt)


@pytest.fixture(scope="module")
def pictures(server, entry):
    return demo_pictures(server, entry)


def test_the_original_is_the_drawn_scene(pictures):
    image, _ = scenes.render(demo_scenes()[0])
    assert (pictures["original"] - image).abs().max() <= 1 / 255


def test_the_reconstruction_is_the_round_trip_of_the_vae(server, prompt, pictures):
    latent = prompt[find(prompt, "PalimpsestInvertDDIM")]["inputs"]["latent"]
    vae = prompt[latent[0]]["inputs"]["vae"]
    trip = {key: node for key, node in prompt.items() if node["class_type"] != "SaveImage"}
    trip["trip"] = {"class_type": "VAEDecode", "inputs": {"samples": latent, "vae": vae}}
    kept = {"images": ["trip", 0], "filename_prefix": "tests/trip"}
    trip["kept"] = {"class_type": "SaveImage", "inputs": kept}
    (picture,) = server.images(server.run(trip), "kept")
    assert torch.equal(as_tensor(picture), pictures["reconstruction"])


def test_outside_the_mask_the_edit_is_as_good_as_the_vae(pictures):
    edit, round_trip = kept_outside(pictures)
    assert edit >= round_trip - LOST


def test_inside_the_mask_the_edit_has_the_new_colour(pictures):
    assert painted_inside(pictures["edit"]) >= 0.8
    assert painted_inside(pictures["reconstruction"]) <= 0.2


def test_fifty_steps_cost_180_rows(server, prompt, entry):
    assert prompt[find(prompt, "PalimpsestInvertDDIM")]["inputs"]["steps"] == 50
    assert server.rows(entry) == 180


def test_the_nodes_tell_what_they_did(prompt, entry):
    outputs = entry["outputs"]
    inverted = outputs[find(prompt, "PalimpsestInvertDDIM")]
    assert inverted["palimpsest_text"][0].startswith("50 steps, 50 UNet rows, ")
    edited = outputs[find(prompt, "PalimpsestEdit")]
    assert edited["palimpsest_text"][0].startswith("130 UNet rows, ")
    assert edited["palimpsest_text"][0].endswith("\nreconstruction: exact")


def test_the_filmstrip_lies_in_one_row(server, prompt, entry):
    (strip,) = server.images(entry, find(prompt, "PalimpsestPreviewTrajectory"))
    assert strip.size == (8 * 128, 128)


def test_another_target_prompt_runs_no_inversion_again(server):
    rows = []
    for target in ("a blue heart on grass", "a pink heart on grass"):
        graph = Editing(steps=STEPS)
        graph.words.inputs["target"] = target
        graph.save(graph.edit()[0], "target")
        rows.append(server.rows(server.run(graph)))
    # Up, the target down, and the source of the steps in which it is read.
    down = 2 * STEPS + read_in(STEPS)
    assert rows == [STEPS + down, down]


def test_without_correction_the_source_costs_what_is_asked_of_it(server):
    """Up, target, and two rows of the guided source while a window is open, or all the way."""
    graph, edited = uncorrected(wired=False)
    entry = server.run(graph)
    # The inversion may come from the cache: counted is what the nodes say.
    rows = sum(sum(shown.get("rows", [])) for shown in entry["outputs"].values())
    assert rows == STEPS + 2 * STEPS + 2 * read_in(STEPS)
    assert "drifts; connect" in told(entry, edited)
    # Connecting the reconstruction later runs the edit again, and the inversion not.
    graph, edited = uncorrected(wired=True)
    entry = server.run(graph)
    assert server.rows(entry) == 2 * STEPS + 2 * STEPS
    assert "dB in the latent" in told(entry, edited)
    assert "drifts; connect" not in told(entry, edited)
    (picture,) = server.images(entry, list(graph)[-1])
    assert picture.size == (128, 128)


def uncorrected(wired):
    """An edit under `none`, its reconstruction decoded or not."""
    graph = Editing(steps=STEPS)
    edited = graph.edit(correction="none")
    graph.save(edited[0], "uncorrected")
    if wired:
        graph.decode(edited[1], "uncorrected")
    return graph, edited
