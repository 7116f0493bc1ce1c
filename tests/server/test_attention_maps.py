"""Attention Maps in a real server, on the embedded model."""

import numpy
from palimpsest.tests.server.graphs import Editing, told

LOOK = {
    "words": "",
    "threshold": 0.4,
    "steps": 3,
    "start": 0.0,
    "end": 1.0,
    "layers": "as LocalBlend",
    "start_layer": 0.0,
    "end_layer": 1.0,
}


class Looking(Editing):
    """The demo's graph, looked into."""

    def look(self, **changes):
        wires = {
            "model": self.model[0],
            "clip": self.model[1],
            "vae": self.model[2],
            "trajectory": self.inverted[0],
            "text": self.scene[2],
        }
        return self.add("PalimpsestAttentionMaps", **{**wires, **LOOK, **changes})


def test_every_word_has_a_picture_the_mask_goes_to_any_node_and_the_sheet_is_shown(server):
    graph = Looking(steps=6)
    every = graph.look()
    some = graph.look(words="heart, red heart", layers="all")
    maps = [graph.show(node[0], f"look/{n}") for n, node in enumerate((every, some))]
    mask = graph.show(graph.add("MaskToImage", mask=graph.look(words="heart")[1])[0], "look/mask")
    edit = graph.edit(mask=some[1], control=None)
    graph.save(edit[0], "look/edit")
    entry = server.run(graph)
    assert [len(server.images(entry, node.id)) for node in maps] == [5, 2]
    assert told(entry, every).startswith("3 UNet rows, ")
    (sheet,) = server.images(entry, every.id)
    assert sheet.width > sheet.height > 128
    (white,) = server.images(entry, mask.id)
    white = numpy.array(white.convert("L")) > 127
    scene = graph.show(graph.add("MaskToImage", mask=graph.scene[1])[0], "look/scene")
    (true,) = server.images(server.run(graph), scene.id)
    true = numpy.array(true.convert("L")) > 127
    assert (white & true).sum() / (white | true).sum() > 0.5
