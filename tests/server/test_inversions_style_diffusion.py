"""StyleDiffusion in the real ComfyUI, on the embedded model."""

import threading
import time

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, relative, saved, told
from palimpsest.tests.server.test_running import progress

STEPS, ROUNDS = 4, 12
SETTING = {
    "steps": STEPS,
    "scheduler": "simple",
    "strength": 1.0,
    "cfg": 5.0,
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


def test_it_takes_the_place_of_another_inversion(server):
    graph = Learning()
    edit = graph.edit(cfg=5.0)
    kept = graph.save(edit[0], "style")
    entry = server.run(graph)
    assert rows(entry, graph.inverted) == STEPS + 2 * STEPS + ROUNDS
    # Self- and cross-window close after the second of four steps.
    assert rows(entry, edit) == 2 * STEPS + 2
    text = told(entry, graph.inverted)
    assert text.startswith(f"{STEPS} steps, {3 * STEPS + ROUNDS} UNet rows, ")
    assert f"\n{ROUNDS} of {ROUNDS} rounds, mean loss " in text
    plain = Editing(steps=STEPS)
    other = plain.save(plain.edit(cfg=5.0)[0], "plain")
    edited, usual = saved(server, entry, kept), saved(server, server.run(plain), other)
    assert edited.isfinite().all()
    assert relative(edited, usual) > 0.01


def test_it_shows_its_progress_and_is_not_run_again_for_another_edit(server):
    graph = Learning(seed=2)
    edit = graph.edit(cfg=5.0)
    graph.save(edit[0], "first")
    heard = server.events(graph)
    seen = progress(heard, graph.inverted)
    assert seen[-1] == STEPS + ROUNDS
    assert seen == sorted(seen)
    (queued,) = (data for kind, data in heard if kind == "queued")
    server.wait(queued["prompt_id"])
    edit.inputs["correction"] = "none"
    assert progress(server.events(graph), graph.inverted) == []


def test_a_saved_trajectory_edits_as_the_wired_one_does(server):
    graph = Learning(seed=3)
    wire = {"trajectory": graph.inverted[0], "filename_prefix": "style/learned"}
    graph.add("PalimpsestSaveTrajectory", **wire)
    wired = graph.save(graph.edit(cfg=5.0)[0], "wired")
    expected = saved(server, server.run(graph), wired)
    again = Learning(seed=3)
    file = "style/learned_00001.safetensors [output]"
    loaded = again.add("PalimpsestLoadTrajectory", file=file)
    edited = again.save(again.edit(cfg=5.0, trajectory=loaded[0])[0], "loaded")
    assert torch.equal(saved(server, server.run(again), edited), expected)


def test_the_edit_guider_walks_the_same_edit(server):
    graph = Learning(seed=4)
    direct = graph.save(graph.edit(cfg=5.0)[0], "direct")
    inputs = {**graph.edit_inputs(), "cfg": 5.0}
    sampled = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.inverted[3],
        guider=graph.add("PalimpsestEditGuider", **inputs)[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.inverted[2],
        latent_image=graph.encoded[0],
    )
    guided = graph.save(sampled[0], "guided")
    entry = server.run(graph)
    assert relative(saved(server, entry, guided), saved(server, entry, direct)) < 1e-4


def test_a_picture_without_an_encoder_is_refused(server):
    graph = Learning(image=Learning().scene[0])
    graph.save(graph.edit()[0], "refused")
    with pytest.raises(Failed, match="The image is connected and the clip_vision is not"):
        server.run(graph)


def test_too_few_rounds_are_refused_in_one_sentence(server):
    graph = Learning(rounds=3)
    graph.save(graph.edit()[0], "refused")
    with pytest.raises(Failed, match="has 3 rounds for 4 steps: give it at least one for each"):
        server.run(graph)


def test_cancel_stops_within_a_round_and_the_next_run_is_whole(server):
    """The first step has more than 3000 rounds here, minutes of them, and none is waited for."""
    graph = Learning(rounds=5000, seed=5)
    graph.save(graph.edit(cfg=5.0)[0], "cancelled")
    cancelled = []

    def cancel():
        cancelled.append(time.monotonic())
        server.interrupt()

    def let_it_learn_a_while(kind, data):
        if not timers and progress([(kind, data)], graph.inverted):
            timers.append(threading.Timer(8, cancel))
            timers[0].start()

    timers = []
    heard = server.events(graph, let_it_learn_a_while)
    kind, data = heard[-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", graph.inverted.id)
    assert time.monotonic() - cancelled[0] < 20  # on a busy machine; a round takes 0.1 s
    assert progress(heard, graph.inverted)[-1] <= STEPS
    graph.inverted.inputs["rounds"] = STEPS
    entry = server.run(graph)
    assert rows(entry, graph.inverted) == 4 * STEPS


def test_an_edit_under_another_guidance_is_refused(server):
    graph = Learning(rounds=STEPS)
    graph.save(graph.edit(cfg=7.5)[0], "refused")
    with pytest.raises(Failed, match=r"learned at cfg 5, the edit's cfg is 7\.5"):
        server.run(graph)
