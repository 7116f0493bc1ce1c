"""Null-text inversion in a real server: what it says, and that it can be cancelled and can fail."""

import time

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import INVERT, Editing, read_in, relative, saved, told
from palimpsest.tests.server.test_bad_input import clear
from palimpsest.tests.server.test_running import EVERY_STEP, progress

NULL_TEXT = "PalimpsestInvertNullText"
STEPS, INNER = 2, 3
WISH = {
    "scheduler": "ddim_uniform",
    "strength": 1.0,
    "cfg": 7.5,
    "inner_steps": INNER,
    "variant": "null-text",
    "early_stop_epsilon": 0.0,
}


class Learning(Editing):
    """The demo's graph with Invert (Null-text) in the place of its inversion, and with an edit."""

    def __init__(self, steps=STEPS, **changes):
        super().__init__(steps=steps)
        del self[self.inverted.id]
        self.inverted = self.add(
            NULL_TEXT,
            model=self.model[0],
            positive=self.described[0],
            latent=self.encoded[0],
            negative=self.negative[0],
            **{**WISH, "steps": steps, **changes},
        )
        self.edited = self.edit()
        self.kept = self.save(self.edited[0], "null_text")


def test_it_learns_and_its_edit_needs_nothing_else(server):
    graph = Learning()
    first = graph.save(graph.inverted[1], "last_stage")
    wish = {"model": graph.model[0], "positive": graph.described[0], "latent": graph.encoded[0]}
    settings = {**INVERT, "scheduler": "ddim_uniform", "steps": STEPS}
    plain = graph.save(graph.add("PalimpsestInvertDDIM", **wish, **settings)[1], "plain")
    source = graph.save(graph.edited[1], "source")
    encoded = graph.save(graph.encoded[0], "picture")
    heard = server.events(graph, extra_data=EVERY_STEP)
    assert progress(heard, graph.inverted) == list(range(1, 2 * STEPS + 1))
    (queued,) = (data for kind, data in heard if kind == "queued")
    entry = server.wait(queued["prompt_id"])
    rows = STEPS * (1 + 1 + INNER + 1)
    shown = told(entry, graph.inverted)
    assert shown.startswith(f"{STEPS} steps, {rows} UNet rows, ")
    assert f"\n{STEPS * INNER} optimiser steps, loss " in shown
    assert told(entry, graph.edited).startswith(f"{2 * STEPS + read_in(STEPS)} UNet rows")
    assert torch.equal(saved(server, entry, first), saved(server, entry, plain))
    # The source as the edit saw it is the end of the path, which the loss is about.
    missed = saved(server, entry, source) - saved(server, entry, encoded)
    loss = float(shown.rpartition("loss ")[2])
    assert float(missed.square().mean()) == pytest.approx(loss, rel=0.05)
    assert "dB in the latent" in told(entry, graph.edited)


def test_more_inner_steps_come_closer_to_the_picture(server):
    def off(inner_steps):
        graph = Learning(inner_steps=inner_steps)
        return float(told(server.run(graph), graph.inverted).rpartition("loss ")[2])

    assert off(8) < 0.7 * off(0)


def test_the_variants_are_different_edits_of_one_path(server):
    def edited(variant):
        graph = Learning(variant=variant, inner_steps=1)
        graph.words.inputs["self_window"] = 1.0  # the target sees all of the source's path
        return saved(server, server.run(graph), graph.kept)

    whole, source, latents = map(edited, ("null-text", "source only", "null-latent"))
    assert torch.equal(source, latents)
    assert relative(whole, source) > 1e-3


def test_an_edit_at_another_cfg_is_refused_in_one_clear_sentence(server):
    graph = Learning(cfg=5.0, steps=1, inner_steps=1)
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_type == "PalimpsestEdit"
    assert clear(caught.value.message)
    assert "learned at cfg 5, the edit's cfg is 7.5" in caught.value.message


def test_cancel_during_the_optimisation_returns_at_once_and_the_next_run_is_whole(server):
    expected = server.run(whole := Learning(inner_steps=1))
    graph, asked = Learning(inner_steps=1000), []

    def cancel_in_the_first_level(kind, data):
        # Learning begins when the inversion's steps are over; its first level never ends.
        if not asked and STEPS in progress([(kind, data)], graph.inverted):
            time.sleep(0.5)
            asked.append(time.monotonic())
            server.interrupt()

    heard = server.events(graph, cancel_in_the_first_level, EVERY_STEP)
    assert time.monotonic() - asked[0] < 5
    kind, data = heard[-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", graph.inverted.id)
    assert progress(heard, graph.inverted)[-1] == STEPS
    assert server.is_idle()
    again = Learning(inner_steps=1)
    again.inverted.inputs["early_stop_epsilon"] = 1e-30  # or ComfyUI would keep the last result
    assert torch.equal(
        saved(server, server.run(again), again.kept), saved(server, expected, whole.kept)
    )


def test_out_of_memory_while_learning_is_one_sentence_and_the_next_run_is_whole(server):
    graph = Learning(inner_steps=2)
    # Behind the way up come a row of the source and the inner steps: it fails at the second.
    limited = graph.add("TestOutOfMemory", model=graph.model[0], at=STEPS + 3)
    graph.inverted.inputs["model"] = limited[0]
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_type == NULL_TEXT
    sentence, _, tips = caught.value.message.partition("\n")
    assert clear(sentence)
    assert "ran out of memory: use a smaller picture" in sentence
    assert "out of memory on your GPU" in tips  # core's own, which it adds when it frees its models
    again = Learning(inner_steps=2)
    assert server.run(again)["outputs"][again.kept.id]["latents"]
    assert server.is_idle()
