"""StyleDiffusion in the real ComfyUI, on the embedded model."""

import time

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, read_in, relative, saved, told
from palimpsest.tests.server.test_running import EVERY_STEP, progress

STEPS, ROUNDS, CFG = 4, 6, 5.0
SETTING = {
    "steps": STEPS,
    "scheduler": "simple",
    "strength": 1.0,
    "cfg": CFG,
    "rounds": ROUNDS,
    "value_window": 0.5,
    "seed": 1,
    "map_weight": 1.0,
    "early_stop": 0.0,
}


class Learning(Editing):
    """The demo's graph with the inversion swapped, and nothing else."""

    def __init__(self, batch=1, **changes):
        super().__init__(steps=STEPS, batch=batch)
        wires = {
            "model": self.model[0],
            "positive": self.described[0],
            "latent": self.encoded[0],
            "negative": self.negative[0],
        }
        self[self.inverted.id]["class_type"] = "PalimpsestInvertStyleDiffusion"
        self.inverted.inputs.clear()
        self.inverted.inputs.update({**wires, **SETTING, **changes})


def rows(entry, node):
    return entry["outputs"][node.id]["rows"][0]


def finished(server, heard):
    """The history entry of a run that was listened to."""
    (queued,) = (data for kind, data in heard if kind == "queued")
    return server.wait(queued["prompt_id"])


def test_it_takes_the_place_of_another_inversion(server):
    """Learned once: with Edit and with its guider, from a file, and again with another edit."""
    graph = Learning()
    edit = graph.edit(cfg=CFG)
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.inverted[3],
        guider=graph.add("PalimpsestEditGuider", **{**graph.edit_inputs(), "cfg": CFG})[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.inverted[2],
        latent_image=graph.encoded[0],
    )
    kept = [graph.save(node[0], "style") for node in (edit, sampled)]
    graph.add(
        "PalimpsestSaveTrajectory", trajectory=graph.inverted[0], filename_prefix="style/learned"
    )
    heard = server.events(graph)
    entry = finished(server, heard)
    edited, guided = (saved(server, entry, node) for node in kept)
    seen = progress(heard, graph.inverted)
    assert seen[-1] == STEPS + ROUNDS
    assert seen == sorted(seen)
    assert rows(entry, graph.inverted) == STEPS + 2 * STEPS + ROUNDS
    assert rows(entry, edit) == 2 * STEPS + read_in(STEPS)
    text = told(entry, graph.inverted)
    assert text.startswith(f"{STEPS} steps, {3 * STEPS + ROUNDS} UNet rows, ")
    assert f"\n{ROUNDS} of {ROUNDS} rounds, mean loss " in text
    assert edited.isfinite().all()
    assert relative(guided, edited) < 1e-4

    edit.inputs["correction"] = "none"
    heard = server.events(graph)
    assert heard[-1][0] == "execution_success"
    assert progress(heard, graph.inverted) == []

    plain = Editing(steps=STEPS)
    other = plain.save(plain.edit(cfg=CFG)[0], "plain")
    loaded = plain.add("PalimpsestLoadTrajectory", file="style/learned_00001.safetensors [output]")
    again = plain.save(plain.edit(cfg=CFG, trajectory=loaded[0])[0], "loaded")
    entry = server.run(plain)
    assert relative(edited, saved(server, entry, other)) > 0.01
    assert torch.equal(saved(server, entry, again), edited)


def test_a_picture_without_an_encoder_is_refused(server):
    graph = Learning(image=Learning().scene[0])
    graph.save(graph.edit()[0], "refused")
    with pytest.raises(Failed, match="The image is connected and the clip_vision is not"):
        server.run(graph)


def test_too_few_rounds_are_refused_in_one_sentence(server):
    graph = Learning(rounds=STEPS - 1)
    graph.save(graph.edit()[0], "refused")
    words = f"has {STEPS - 1} rounds for {STEPS} steps: give it at least one for each"
    with pytest.raises(Failed, match=words):
        server.run(graph)


def test_cancel_stops_within_a_round_and_the_next_run_is_whole(server):
    """The first step has more than 3000 rounds here, minutes of them, and none is waited for."""
    graph = Learning(rounds=5000, seed=5)
    graph.save(graph.edit(cfg=CFG)[0], "cancelled")
    cancelled = []

    def cancel_in_the_first_step(kind, data):
        # Learning begins when the inversion's steps are over.
        if not cancelled and STEPS in progress([(kind, data)], graph.inverted):
            time.sleep(0.5)
            cancelled.append(time.monotonic())
            server.interrupt()

    heard = server.events(graph, cancel_in_the_first_step, EVERY_STEP)
    kind, data = heard[-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", graph.inverted.id)
    assert time.monotonic() - cancelled[0] < 20  # on a busy machine; a round takes 0.1 s
    assert progress(heard, graph.inverted)[-1] == STEPS
    graph.inverted.inputs["rounds"] = STEPS
    entry = server.run(graph)
    assert rows(entry, graph.inverted) == 4 * STEPS


def test_an_edit_under_another_guidance_is_refused(server):
    graph = Learning(steps=1, rounds=1)
    graph.save(graph.edit(cfg=7.5)[0], "refused")
    with pytest.raises(Failed, match=r"learned at cfg 5, the edit's cfg is 7\.5"):
        server.run(graph)
