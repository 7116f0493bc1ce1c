"""Edit-Friendly DDPM and CycleDiffusion in a real server, on the embedded model."""

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, read_in, relative, saved, told
from palimpsest.tests.server.test_bad_input import clear

STEPS = 2
COMMON = {"scheduler": "simple", "source_cfg": 1.0, "seed": 1, "source_batch": 8}
METHODS = {
    "PalimpsestInvertEditFriendly": {**COMMON, "steps": STEPS + 1, "strength": 1.0, "skip": 1},
    "PalimpsestInvertCycleDiffusion": {**COMMON, "steps": STEPS, "strength": 0.6, "eta": 0.1},
}
every_method = pytest.mark.parametrize("kind", METHODS)


class Noised(Editing):
    """The demo's graph with another Invert node in the place of Invert (DDIM)."""

    def __init__(self, kind, batch=1, **changes):
        super().__init__(batch=batch)
        wires = {name: self.inverted.inputs[name] for name in ("model", "positive", "latent")}
        self.inverted = self.add(kind, **{**wires, **METHODS[kind], **changes})


def latents(server, graph, *nodes):
    kept = [graph.save(node, "noised") for node in nodes]
    entry = server.run(graph)
    return entry, *(saved(server, entry, node) for node in kept)


@every_method
def test_the_node_stands_for_any_other_and_says_what_it_cost(server, kind):
    graph = Noised(kind, batch=2)
    edit = graph.edit(mask=graph.scene[1])
    entry, latent, kept, origin = latents(server, graph, edit[0], edit[1], graph.encoded[0])
    assert told(entry, graph.inverted).startswith(f"{STEPS} steps, {2 * STEPS} UNet rows")
    # Both rows of the target for two pictures, and the source's while a window is open.
    assert told(entry, edit).startswith(f"{2 * (2 * STEPS + read_in(STEPS))} UNet rows")
    assert "reconstruction: exact" in told(entry, edit)
    assert torch.equal(kept, origin)
    same = (latent == origin).all(1)
    assert 0.3 < same.float().mean() < 0.95 and same[:, 0].all()


@every_method
def test_the_same_prompt_gives_the_picture_back_number_for_number(server, kind):
    graph = Noised(kind, source_cfg=3.0)
    graph.inverted.inputs["negative"] = graph.negative[0]
    edit = graph.edit(target=graph.described[0], cfg=3.0)
    del edit.inputs["control"]
    entry, latent, origin = latents(server, graph, edit[0], graph.encoded[0])
    assert torch.equal(latent, origin)
    assert told(entry, graph.inverted).startswith(f"{STEPS} steps, {2 * STEPS} UNet rows")
    assert told(entry, edit).startswith("0 UNet rows")


@every_method
def test_a_seed_gives_the_same_bits_in_another_run(server, kind):
    runs = []
    for seed in (1, 1, 2):
        graph = Noised(kind, seed=seed)
        if runs:  # another wire and the same numbers: nothing comes from the cache
            again = graph.add("RepeatLatentBatch", samples=graph.encoded[0], amount=1)
            graph.inverted.inputs["latent"] = again[0]
        _, latent = latents(server, graph, graph.edit()[0])
        runs.append(latent)
    assert torch.equal(runs[0], runs[1])
    assert relative(runs[2], runs[0]) > 1e-3


@every_method
def test_a_second_edit_costs_no_inversion_and_its_trajectory_is_saved_and_loaded(server, kind):
    name = kind.removeprefix("PalimpsestInvert")
    graph = Noised(kind)
    wish = {"trajectory": graph.inverted[0], "filename_prefix": f"kept/{name}"}
    graph.add("PalimpsestSaveTrajectory", **wish)
    _, own = latents(server, graph, graph.edit()[0])
    graph = Noised(kind)
    file = f"kept/{name}_00001.safetensors [output]"
    loaded = graph.add("PalimpsestLoadTrajectory", file=file)
    shown = graph.add(
        "PalimpsestPreviewTrajectory", trajectory=loaded[0], vae=graph.model[2], frames=3
    )
    strip = graph.show(shown[0], "strip")
    edits = [graph.edit(trajectory=loaded[0])[0], graph.edit(cfg=5.0)[0]]
    entry, again, _ = latents(server, graph, *edits)
    assert torch.equal(own, again)
    assert len(server.images(entry, strip.id)) >= 1
    assert server.rows(entry) == 2 * (2 * STEPS + read_in(STEPS))  # of the two edits


REFUSED = [
    ("PalimpsestInvertEditFriendly", {"skip": 3}, "skip is 3, of 3 steps"),
    ("PalimpsestInvertEditFriendly", {"source_cfg": 3.5}, "source_cfg is 3.5, which needs"),
    ("PalimpsestInvertCycleDiffusion", {"source_cfg": 2.0}, "source_cfg is 2.0, which needs"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), REFUSED, ids=str)
def test_bad_input_is_refused_in_one_clear_sentence(server, kind, changes, words):
    graph = Noised(kind, **changes)
    graph.save(graph.edit()[0], "never")
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_type == kind
    assert words in caught.value.message and clear(caught.value.message)
