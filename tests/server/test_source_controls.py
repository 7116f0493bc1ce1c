"""MasaCtrl, Plug-and-Play and pix2pix-zero in a real server, on the embedded model."""

import pytest
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 4


class Controlled(Editing):
    """The demo's graph with a prompt of its own for each input of Edit, and a control without."""

    def __init__(self, **wishes):
        super().__init__(steps=STEPS)
        self.target = self.add("CLIPTextEncode", clip=self.model[1], text=self.scene[3])
        self.masa = self.add("PalimpsestMasaCtrl", start=0.25, start_layer=0.4, **wishes)

    def along(self, **changes):
        """Add an Edit, under MasaCtrl if nothing else is said."""
        prompts = {"source": self.described[0], "target": self.target[0]}
        return self.edit(**{"control": self.masa[0], **prompts, **changes})


def test_they_need_no_words_and_run_the_source_rows_that_they_read(server):
    graph = Controlled()
    union = graph.add("PalimpsestMasaCtrl", start=0.25, start_layer=0.4, union=True)
    windows = {"attention_window": 0.5, "feature_window": 0.8}
    places = {"start_layer": 0.0, "block": 0.5}
    structure = graph.add("PalimpsestPlugAndPlay", **windows, **places)
    edits = {
        "masa": graph.along(),
        "union": graph.along(control=union[0]),
        "free": graph.along(control=None),
        "published": graph.along(source=graph.negative[0]),
        "masked": graph.along(mask=graph.scene[1]),
        "structure": graph.along(control=structure[0]),
    }
    files = {name: graph.save(node[0], f"masa/{name}") for name, node in edits.items()}
    origin = graph.save(graph.encoded[0], "masa/origin")
    entry = server.run(graph)
    latents = {name: saved(server, entry, node) for name, node in files.items()}
    rows = {name: int(told(entry, node).split()[0]) for name, node in edits.items()}
    read = STEPS - 1
    assert rows == {
        "masa": 2 * STEPS + 2 * read,
        "union": 2 * STEPS + 2 * read,
        "free": 2 * STEPS,
        "published": 2 * STEPS + read,
        "masked": 2 * STEPS + 2 * read,
        "structure": 2 * STEPS + int(0.8 * STEPS),
    }
    for name in ("masa", "structure"):
        assert relative(latents[name], latents["free"]) > 0.01
    assert relative(latents["union"], latents["masa"]) > 1e-3
    picture = saved(server, entry, origin)
    kept = latents["masked"] == picture
    assert 0.1 < float(kept.double().mean()) < 0.9


def test_features_of_the_inversion_serve_it_where_the_source_is_the_negative(server):
    graph = Controlled()
    usual = graph.inverted.inputs | {"convention": "current", "positive": graph.negative[0]}
    kept = {"control": graph.masa[0], "source_features": "memory", "feature_budget": 512}
    inversions = [graph.add("PalimpsestInvertDDIM", **usual, **more) for more in ({}, kept)]
    edits = [graph.along(source=graph.negative[0], trajectory=node[0]) for node in inversions]
    files = [graph.save(node[0], "masa/kept") for node in edits]
    entry = server.run(graph)
    latents = [saved(server, entry, node) for node in files]
    rows = [int(told(entry, node).split()[0]) for node in edits]
    assert rows == [2 * STEPS + STEPS - 1, 2 * STEPS]
    assert relative(*latents) < 1e-5


def test_pix2pix_zero_runs_the_rows_that_it_moves(server):
    graph = Controlled()
    words = {"source": graph.scene[2], "target": graph.scene[3], "xa_guidance": 2.0}
    zero = graph.add("PalimpsestPix2PixZero", clip=graph.model[1], **words)
    usual = {"source": zero[1], "target": zero[2]}
    whiter = graph.inverted.inputs | {"regularisation": 2, "regularisation_seed": 1}
    regularised = graph.add("PalimpsestInvertDDIM", **whiter)
    published = usual | {"control": zero[0], "negative": zero[1]}
    edits = {
        "free": graph.along(**usual, control=None),
        "published": graph.along(**published),
        "regularised": graph.along(**published, trajectory=regularised[0]),
        "other": graph.along(**usual, control=zero[0]),
        "masked": graph.along(**published, mask=graph.scene[1]),
    }
    files = {name: graph.save(node[0], f"zero/{name}") for name, node in edits.items()}
    origin = graph.save(graph.encoded[0], "zero/origin")
    entry = server.run(graph)
    latents = {name: saved(server, entry, node) for name, node in files.items()}
    rows = {name: int(told(entry, node).split()[0]) for name, node in edits.items()}
    moved = STEPS * (1 + 2 + 2)
    assert rows == {
        "free": 2 * STEPS,
        "published": moved,
        "regularised": moved,
        "other": moved + STEPS,
        "masked": moved,
    }
    assert relative(latents["other"], latents["free"]) > 0.01
    assert relative(latents["regularised"], latents["published"]) > 0.01
    kept = latents["masked"] == saved(server, entry, origin)
    assert 0.1 < float(kept.double().mean()) < 0.9


def test_masks_and_words_tell_a_thing_from_its_background(server):
    graph = Controlled()
    silent = graph.words.inputs | {"cross_window": 0.0, "self_window": 0.0}
    words = graph.add("PalimpsestPromptToPrompt", **silent)

    def masa(**wishes):
        return graph.add("PalimpsestMasaCtrl", start=0.25, start_layer=0.4, **wishes)

    edits = {
        "plain": graph.edit(control=masa(control=words[0])[0]),
        "words": graph.edit(control=masa(control=words[0], words="heart")[0]),
        "mask": graph.edit(control=masa(mask=graph.scene[1])[0]),
    }
    files = {name: graph.save(node[0], f"masa/{name}") for name, node in edits.items()}
    entry = server.run(graph)
    latents = {name: saved(server, entry, node) for name, node in files.items()}
    rows = {name: int(told(entry, node).split()[0]) for name, node in edits.items()}
    assert rows == dict.fromkeys(edits, 2 * STEPS + 2 * (STEPS - 1))
    for name in ("words", "mask"):
        assert relative(latents[name], latents["plain"]) > 1e-3


def test_words_without_prompts_are_refused_at_the_node(server):
    graph = Controlled(words="heart")
    graph.save(graph.along()[0], "masa/refused")
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_type == "PalimpsestMasaCtrl"
    assert "MasaCtrl looks for words, but knows no prompts" in caught.value.message
