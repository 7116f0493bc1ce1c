"""What an Invert node remembers, and what makes it invert anew: every method."""

import gc
import weakref

import pytest
import torch
from palimpsest.hosts.comfy.inversions.memory import remembered
from palimpsest.nodes.inversions import shared
from palimpsest.tests.host.inversions.test_laws import INVERSIONS, prompt, settings_of

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")
every = pytest.mark.parametrize("node", INVERSIONS, ids=lambda node: node.SCHEMA.node_id[10:])


@pytest.fixture(autouse=True)
def everything_is_remembered(nothing_is_remembered, monkeypatch):
    monkeypatch.setattr(shared, "remembered", remembered)


def asked(node, sd1, **changes):
    """Inputs of an inversion of two steps."""
    quick = {"steps": 2, "scheduler": "simple", "inner_steps": 1, "rounds": 6, "skip": 0}
    wires = {"model": sd1.model, "positive": prompt(sd1, "a cat"), "negative": prompt(sd1, "")}
    wires |= {"latent": {"samples": torch.randn(1, 4, 8, 8)}}
    takes = {wanted.id for wanted in node.GET_SCHEMA().inputs}
    return {k: v for k, v in (settings_of(node) | quick | wires | changes).items() if k in takes}


@every
def test_the_same_question_is_answered_once(sd1, node):
    wires = asked(node, sd1)
    first = node.execute(**wires)
    # Made anew, and the same.
    anew = {"latent": {"samples": wires["latent"]["samples"].clone()}}
    again = node.execute(**(wires | anew | {"positive": prompt(sd1, "a cat")}))
    assert again.args[0] is first.args[0]
    assert again.ui["rows"] == [0] and first.ui["rows"] != [0]
    assert shared.KNOWN in again.ui["palimpsest_text"][0]
    assert shared.KNOWN not in first.ui["palimpsest_text"][0]
    third = node.execute(**wires)
    assert third.ui["palimpsest_text"][0].count(shared.KNOWN) == 1


@every
def test_whatever_changes_is_inverted_anew(sd1, node):
    wires = asked(node, sd1)
    first = node.execute(**wires)
    others = {
        "positive": prompt(sd1, "a dog"),
        "steps": 3,
        "strength": 0.7,
        "model": sd1.model.clone(),
        "sigmas": torch.tensor([5.0, 1.0, 0.0]),
        "latent": {"samples": wires["latent"]["samples"] + 1e-3},
    }
    for name, value in others.items():
        changed = node.execute(**(wires | {name: value}))
        assert changed.args[0] is not first.args[0], name
        assert shared.KNOWN not in changed.ui["palimpsest_text"][0], name


def test_a_latent_that_carries_more_is_another_question(sd1):
    (node,) = (node for node in INVERSIONS if node.SCHEMA.node_id.endswith("EditFriendly"))
    wires = asked(node, sd1)
    first = node.execute(**wires)
    numbered = {"latent": wires["latent"] | {"batch_index": [3]}}
    assert node.execute(**(wires | numbered)).args[0] is not first.args[0]
    assert node.execute(**(wires | numbered)).ui["rows"] == [0]


def test_a_prompt_with_live_objects_is_never_remembered(sd1):
    (node,) = (node for node in INVERSIONS if node.SCHEMA.node_id.endswith("DDIM"))
    wires = asked(node, sd1)
    (embedding, about), *_ = wires["positive"]
    live = {"positive": [[embedding, about | {"somebody": object()}]]}
    one, other = (node.execute(**(wires | live)) for _ in range(2))
    assert one.args[0] is not other.args[0]


@every
def test_it_goes_with_the_model(sd1, node):
    wires = asked(node, sd1, model=sd1.model.clone())
    kept = weakref.ref(node.execute(**wires).args[0])
    gc.collect()
    assert kept() is not None
    del wires
    gc.collect()
    assert kept() is None


def test_a_trajectory_that_is_too_large_is_not_kept(sd1, monkeypatch):
    (node,) = (node for node in INVERSIONS if node.SCHEMA.node_id.endswith("DDIM"))
    wires = asked(node, sd1)
    size = node.execute(**wires).args[0].latents.nbytes
    for limit, kept in ((size, True), (size - 1, False)):
        monkeypatch.setattr(shared, "LARGEST_KEPT", limit)
        other = wires | {"strength": 0.9 if kept else 0.8}
        first, again = node.execute(**other), node.execute(**other)
        assert (again.args[0] is first.args[0]) == kept
