"""The shipped demo over the real API, its results read as pictures, and what it costs."""

import json
from pathlib import Path

import palimpsest
import pytest
import torch
from palimpsest.demo import scenes
from palimpsest.demo.judge import pixels_of_color
from palimpsest.tests.server.graphs import Editing, told
from torchvision.transforms.functional import pil_to_tensor

PROMPT = Path(palimpsest.__file__).parent / "demo" / "demo_api.json"


@pytest.fixture(scope="module")
def prompt():
    return json.loads(PROMPT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def entry(server, prompt):
    return server.run(prompt)


def find(prompt, kind):
    """The id of the only node of a kind."""
    (key,) = (key for key, node in prompt.items() if node["class_type"] == kind)
    return key


@pytest.fixture(scope="module")
def pictures(server, prompt, entry):
    """The three pictures, [H, W, 3] in 0..1, by the last word of their prefix."""
    found = {}
    for key, node in prompt.items():
        if node["class_type"] == "SaveImage":
            (picture,) = server.images(entry, key)
            name = node["inputs"]["filename_prefix"].rpartition("/")[2]
            found[name] = pil_to_tensor(picture.convert("RGB")).movedim(0, -1) / 255
    return found


@pytest.fixture(scope="module")
def drawn(prompt):
    """The scene before and after the edit, as the prompt asks for them."""
    wish = prompt[find(prompt, "PalimpsestDemoScene")]["inputs"]
    names = ("color", "shape", "texture", "background")
    scene = scenes.Scene.random(wish["seed"]).with_(**{name: wish[name] for name in names})
    edits = {name: wish[f"edit_{name}"] for name in names}
    return scene, scene.with_(**{k: v for k, v in edits.items() if v != "keep"})


def psnr(a, b, where):
    return float(-10 * (a - b)[where].square().mean().log10())


def test_the_original_is_the_drawn_scene(pictures, drawn):
    image, _ = scenes.render(drawn[0])
    assert (pictures["original"] - image).abs().max() <= 1 / 255


def test_the_reconstruction_is_the_round_trip_of_the_vae(server, prompt, pictures):
    key = find(prompt, "PalimpsestInvertDDIM")
    round_trip = {k: v for k, v in prompt.items() if v["class_type"] != "SaveImage"}
    latent = prompt[key]["inputs"]["latent"]
    vae = prompt[latent[0]]["inputs"]["vae"]
    round_trip["trip"] = {"class_type": "VAEDecode", "inputs": {"samples": latent, "vae": vae}}
    round_trip["keep"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["trip", 0], "filename_prefix": "tests/trip"},
    }
    (picture,) = server.images(server.run(round_trip), "keep")
    trip = pil_to_tensor(picture.convert("RGB")).movedim(0, -1) / 255
    assert torch.equal(trip, pictures["reconstruction"])


def test_outside_the_mask_the_edit_is_as_good_as_the_vae(pictures, drawn):
    outside = scenes.changed(*drawn) == 0
    original = pictures["original"]
    edit = psnr(pictures["edit"], original, outside)
    assert edit >= psnr(pictures["reconstruction"], original, outside) - 3


def test_inside_the_mask_the_edit_has_the_new_colour(pictures, drawn):
    _, inside = scenes.render(drawn[1])
    inside = inside > 0.99
    new = pixels_of_color(pictures["edit"], drawn[1].color)[inside].float().mean()
    assert new >= 0.8
    old = pixels_of_color(pictures["reconstruction"], drawn[1].color)[inside].float().mean()
    assert old <= 0.2


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
        graph = Editing(steps=6)
        graph.words.inputs["target"] = target
        graph.save(graph.edit()[0], "target")
        rows.append(server.rows(server.run(graph)))
    # 6 steps: 6 rows up, 12 of the target down, 3 of the source while a window is open.
    assert rows == [6 + 15, 15]


@pytest.mark.parametrize(("wired", "rows"), [(False, 210), (True, 250)])
def test_without_correction_the_source_costs_what_is_asked_of_it(server, wired, rows):
    graph, edited = uncorrected(wired)
    entry = server.run(graph)
    # The inversion may come from the cache: counted is what the nodes say.
    assert sum(sum(shown.get("rows", [])) for shown in entry["outputs"].values()) == rows
    assert ("drifts; connect" in told(entry, edited)) is not wired


def test_connecting_the_reconstruction_later_runs_the_edit_again(server):
    graph, _ = uncorrected(wired=False, steps=3)
    server.run(graph)
    graph, edited = uncorrected(wired=True, steps=3)
    entry = server.run(graph)
    assert server.rows(entry) == 4 * 3
    assert "dB in the latent" in told(entry, edited)
    (picture,) = server.images(entry, list(graph)[-1])
    assert picture.size == (128, 128)


def uncorrected(wired, steps=50):
    """An edit under `none`, its reconstruction decoded or not."""
    graph = Editing(steps=steps)
    edited = graph.edit(correction="none")
    graph.save(edited[0], "uncorrected")
    if wired:
        graph.decode(edited[1], "uncorrected")
    return graph, edited
