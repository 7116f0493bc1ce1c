"""The border in a real server: what comes by wire, and what JSON lets through the widgets."""

import math

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, Painting, put_latent

INVERT = "PalimpsestInvertDDIM"


def refused(server, graph, latent):
    """What the server says of a graph that must fail; core's own nodes take none of the blame."""
    graph.save(latent, "never")
    with pytest.raises(Failed) as caught:
        server.run(graph)
    return caught.value.node_type, caught.value.message


@pytest.mark.parametrize(
    ("kind", "name", "value"), [("Int", "refinement", -1), ("Int", "steps", 0)]
)
def test_a_number_by_wire_is_held_to_the_widgets_range(server, kind, name, value):
    graph = Editing(steps=2)
    graph.inverted.inputs[name] = graph.add("PrimitiveInt", value=value)[0]
    node, message = refused(server, graph, graph.inverted[1])
    assert node == INVERT
    assert message.startswith(f"{name} is {value}, it must be a whole number from ")


@pytest.mark.parametrize(("cfg", "by_wire"), [(math.nan, False), (math.nan, True), (1e18, True)])
def test_a_cfg_that_is_none_is_refused(server, cfg, by_wire):
    """NaN passes core's widgets too: it is neither below a minimum nor above a maximum."""
    graph = Painting()
    wired = graph.add("PrimitiveFloat", value=cfg)[0] if by_wire else cfg
    node, message = refused(server, graph, graph.sdedit(cfg=wired)[0])
    assert node == "PalimpsestSDEdit"
    assert message.startswith(f"cfg is {cfg}, it must be a number from 0 to 100: ")


def test_a_latent_without_pictures_is_refused(server):
    graph = Editing(steps=2)
    name = put_latent(server, torch.zeros(0, 4, 16, 16), "nobody")
    graph.inverted.inputs["latent"] = graph.add("LoadLatent", latent=name)[0]
    node, message = refused(server, graph, graph.inverted[1])
    assert node == INVERT
    assert message.startswith("The latent is empty, of shape (0, 4, 16, 16), it must be a LATENT")


def test_a_prompt_weight_that_is_infinite_is_named_as_the_cause(server):
    graph = Editing(steps=2)
    red = graph.add("CLIPTextEncode", clip=graph.model[1], text="a (red:inf) heart")
    graph.inverted.inputs["positive"] = red[0]
    node, message = refused(server, graph, graph.inverted[1])
    assert node == INVERT
    assert message.startswith("The positive holds NaN or infinity: a weight in its prompt")


def test_good_wires_pass(server):
    graph = Editing(steps=2)
    graph.inverted.inputs["refinement"] = graph.add("PrimitiveInt", value=1)[0]
    graph.save(graph.inverted[1], "wired")
    assert server.rows(server.run(graph)) > 0
