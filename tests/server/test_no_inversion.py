"""Edits without inversion in a real server, on the embedded model."""

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, Painting, relative, saved, told
from palimpsest.tests.server.test_bad_input import clear

#: Four of eight steps, each guided.
WALKED, ROWS = 4, 2
LEFT = dict.fromkeys(["cfg", "source_cfg", "zeta"], -1.0) | {"draws": -1, "plain_steps": -1}
WIDGETS = {"preset": "by the model", "scheduler": "simple", "seed": 3, "source_batch": 8}
SHORT = {**WIDGETS, **LEFT, "steps": 2 * WALKED, "strength": 0.5}


def walk(graph, **changes):
    """Add an Edit (no inversion)."""
    wires = {
        "model": graph.model[0],
        "source": graph.source[0],
        "target": graph.target[0],
        "negative": graph.negative[0],
        "latent": graph.encoded[0],
    }
    return graph.add("PalimpsestEditNoInversion", **{**wires, **SHORT, **changes})


def latents(server, graph, *nodes):
    kept = [graph.save(node[0], "no_inversion") for node in nodes]
    entry = server.run(graph)
    return entry, *(saved(server, entry, node) for node in kept)


def test_the_source_is_asked_once_and_kept_for_the_next_edit(server):
    graph = Painting(batch=2)
    first = walk(graph, mask=graph.scene[1])
    same = walk(graph, target=graph.source[0], cfg=3.0)
    again = graph.add("PalimpsestEdit", **along(graph, first))
    entry, edited, unedited, second, origin = latents(
        server, graph, first, same, again, graph.encoded
    )
    line = f"FlowEdit (UNet): the last {WALKED} of 8 steps, guidance 3 and 5\n"
    assert told(entry, first).startswith(line)
    # Whichever runs first asks the source; the unedited one asks nothing else.
    asked = 2 * ROWS * WALKED
    spent = [int(told(entry, n).split("\n")[1].split()[0]) for n in (first, same)]
    kept = ["the source was kept from the last run" in told(entry, n) for n in (first, same)]
    assert spent in ([2 * asked, 0], [asked, asked])
    assert kept == [spent[0] == asked, spent[1] == 0]
    assert torch.equal(unedited, origin)
    kept = (edited == origin).all(1)
    assert 0.3 < kept.float().mean() < 0.95
    assert torch.equal(second, edited)


def along(graph, walked):
    """An Edit Inverted Image along the trajectory of an edit without inversion."""
    return {
        "model": graph.model[0],
        "trajectory": walked[1],
        "source": graph.source[0],
        "target": graph.target[0],
        "negative": graph.negative[0],
        "cfg": 5.0,
        "correction": "direct inversion",
        "scale": 1.0,
        "interval": 1,
        "mask": graph.scene[1],
    }


def test_every_preset_runs_and_its_file_is_edited_again(server):
    graph = Painting()
    presets = ["FlowAlign", "DVRF", "DDCM (few steps)", "FlowEdit (SD 3)", "FlowEdit (Flux)"]
    edits = [walk(graph, preset=preset) for preset in presets]
    graph.add("PalimpsestSaveTrajectory", trajectory=edits[2][1], filename_prefix="walked/a")
    entry, *made, origin = latents(server, graph, *edits, graph.encoded)
    for preset, node, latent in zip(presets, edits, made, strict=True):
        assert told(entry, node).startswith(f"{preset}: the last {WALKED} of 8 steps")
        assert relative(latent, origin) > 0.01
    other = Painting()
    loaded = other.add("PalimpsestLoadTrajectory", file="walked/a_00001.safetensors [output]")
    wires = {**along(other, [None, loaded[0]]), "cfg": 2.3}
    del wires["mask"]
    _, second = latents(server, other, other.add("PalimpsestEdit", **wires))
    assert torch.equal(second, made[2])


def test_a_control_holds_an_edit_without_inversion(server):
    graph = Editing()
    graph.source, graph.target = (Output(graph.words, n) for n in (1, 2))
    free, held = walk(graph), walk(graph, control=graph.words[0])
    _, apart, near, origin = latents(server, graph, free, held, graph.encoded)
    assert relative(near, origin) < relative(apart, origin)


class Output:
    """One output of a node in the place of a node's first."""

    def __init__(self, node, output):
        self.wire = node[output]

    def __getitem__(self, _):
        return self.wire


def test_what_is_missing_is_one_sentence(server):
    graph = Painting()
    edit = walk(graph)
    del edit.inputs["negative"]
    graph.save(edit[0], "no_inversion")
    with pytest.raises(Failed) as failed:
        server.run(graph)
    assert clear(str(failed.value)) and "negative is not connected" in str(failed.value)
