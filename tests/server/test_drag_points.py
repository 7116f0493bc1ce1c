"""Drag Points in a real server: what it gives on, what it shows, and what it refuses."""

import json

import pytest
import torch
from palimpsest.pipelines.points import DragPoints
from palimpsest.tests.harness import Failed, Refused
from palimpsest.tests.server.graphs import SCENE, Graph
from palimpsest.tests.server.pictures import as_tensor
from palimpsest.tests.server.test_bad_input import clear

NODE = "PalimpsestDragPoints"
PAIRS = (((10, 20), (30, 20)), ((100, 127), (0, 0)))


def text_of(pairs=PAIRS, size=(128, 128), **changes):
    return json.dumps({"version": 1, "size": size, "pairs": pairs} | changes)


class Setting(Graph):
    """Demo Scene (128 x 128), Drag Points, and nodes that show what comes out of it."""

    def __init__(self, points=None, radius=5, masked=False, **more):
        super().__init__()
        self.scene = self.add("PalimpsestDemoScene", **SCENE)
        wires = {"mask": self.scene[1]} if masked else {}
        self.node = self.add(
            NODE,
            image=self.scene[0],
            points=text_of() if points is None else points,
            radius=radius,
            **wires,
            **more,
        )
        self.told = [self.add("PreviewAny", source=self.node[i]) for i in (0, 1)]
        picture = self.add("MaskToImage", mask=self.node[2])
        self.mask = self.add("SaveImage", images=picture[0], filename_prefix="drag/mask")


def shown(server, outputs):
    """The pictures that the node put up, by key."""
    return {
        key: as_tensor(server.image(file["filename"], file["subfolder"], file["type"]))
        for key, (file,) in outputs.items()
        if key.startswith("palimpsest_")
    }


def gone_on(server, **wishes):
    """Points and radius as the next nodes get them, in words."""
    graph = Setting(**wishes)
    entry = server.run(graph)
    return [entry["outputs"][node.id]["text"][0] for node in graph.told]


@pytest.mark.parametrize("unit", [{}, {"unit": "latent cells"}], ids=["none", "cells"])
def test_cells_go_on_by_the_radius_alone_as_before_there_was_a_unit(server, unit):
    assert gone_on(server, radius=7, **unit) == [str(DragPoints((128, 128), PAIRS)), "7"]


@pytest.mark.parametrize(("pixels", "cells"), [(40, 5), (1, 1), (43, 5), (44, 6), (1024, 128)])
def test_pixels_go_on_with_the_points_and_as_cells_of_8_pixels(server, pixels, cells):
    carried = str(DragPoints((128, 128), PAIRS, pixels))
    assert gone_on(server, radius=pixels, unit="pixels") == [carried, str(cells)]


def test_without_a_mask_all_may_change(server):
    graph = Setting()
    (mask,) = server.images(server.run(graph), graph.mask.id)
    assert mask.size == (128, 128)
    assert torch.equal(as_tensor(mask), torch.ones(128, 128, 3))


def test_a_mask_goes_on_as_it_came(server):
    graph = Setting(masked=True)
    picture = graph.add("MaskToImage", mask=graph.scene[1])
    came = graph.add("SaveImage", images=picture[0], filename_prefix="drag/came")
    entry = server.run(graph)
    (after,), (before,) = (server.images(entry, node.id) for node in (graph.mask, came))
    assert after.tobytes() == before.tobytes()


def test_the_editor_gets_picture_and_mask_and_core_draws_nothing_beside_it(server):
    graph = Setting(masked=True)
    picture = graph.add("SaveImage", images=graph.scene[0], filename_prefix="drag/picture")
    entry = server.run(graph)
    outputs = entry["outputs"][graph.node.id]
    assert "images" not in outputs
    pictures = shown(server, outputs)
    (expected,) = server.images(entry, picture.id)
    assert torch.equal(pictures["palimpsest_picture"], as_tensor(expected))
    (mask,) = server.images(entry, graph.mask.id)
    assert torch.equal(pictures["palimpsest_mask"], as_tensor(mask))


def test_the_picture_is_shown_although_no_points_are_set(server):
    graph = Setting(points="", masked=True)
    heard = server.events(graph)
    kinds = [kind for kind, _ in heard]
    assert "execution_error" in kinds
    (data,) = (d for kind, d in heard if kind == "executed" and d["node"] == graph.node.id)
    assert set(shown(server, data["output"])) == {"palimpsest_picture", "palimpsest_mask"}


BAD = {
    "nothing": ("", ["No points are set on Drag Points", "drag it to where"]),
    "blank": (" \n", ["No points are set on Drag Points"]),
    "no pair": (text_of([]), ["No points are set on Drag Points"]),
    "no JSON": ("{", ["cannot be read", "editor on Drag Points"]),
    "no object": ("[]", ["cannot be read"]),
    "no number": (text_of([[["x", 1], [2, 3]]]), ["cannot be read"]),
    "version": (text_of(version=9), ["version 9", "update"]),
    "outside": (text_of([[[1, 1], [5, 128]]]), ["target of drag 1", "(5, 128)", "128 x 128"]),
    "other size": (text_of(size=[256, 256]), ["256 x 256", "128 x 128", "set the points anew"]),
    "nowhere": (text_of([*PAIRS, [[4, 5], [4, 5]]]), ["Drag 3 ends where it begins", "(4, 5)"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_points_are_refused_in_one_clear_sentence(server, name):
    points, words = BAD[name]
    assert_refused(server, Setting(points), words)


def assert_refused(server, graph, words):
    with pytest.raises(Failed) as caught:
        server.run(graph)
    message = caught.value.message
    assert caught.value.node_type == NODE, message
    assert clear(message), message
    assert all(word in message for word in words), message
    server.run(Setting())  # it goes on


def test_a_mask_of_another_size_is_refused(server):
    graph = Setting()
    mask = graph.add("SolidMask", value=1.0, width=64, height=64)
    graph.node.inputs["mask"] = mask[0]
    assert_refused(server, graph, ["mask is 64 x 64", "128 x 128", "or none"])


@pytest.mark.parametrize("wishes", [{"radius": 0}, {"radius": 1025}, {"unit": "metres"}])
def test_what_is_out_of_range_is_not_queued(server, wishes):
    graph = Setting(**wishes)
    with pytest.raises(Refused) as caught:
        server.queue(graph)
    assert list(caught.value.node_errors) == [graph.node.id]
