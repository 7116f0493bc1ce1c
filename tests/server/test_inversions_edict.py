"""EDICT in a real server, on the embedded model."""

from dataclasses import dataclass

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, read_in, relative, saved, told
from palimpsest.tests.server.test_bad_input import clear

STEPS, CFG = 4, 3.0


class Inverting(Editing):
    """The demo's graph, and EDICT beside the other inversion."""

    def __init__(self, batch=1, **wishes):
        super().__init__(steps=STEPS, batch=batch)
        wires = ("model", "positive", "latent", "steps", "scheduler")
        same = {name: self.inverted.inputs[name] for name in wires}
        own = {"strength": 0.8, "cfg": CFG, "mixing": 0.93, "negative": self.negative[0]}
        self.edict = self.add("PalimpsestInvertEDICT", **{**same, **own, **wishes})

    def along(self, **changes):
        """Add an Edit along EDICT's trajectory."""
        return self.edit(**{"trajectory": self.edict[0], "cfg": CFG, **changes})

    def unedited(self, **changes):
        """Add an Edit whose target is the source."""
        same = {"source": self.described[0], "target": self.described[0]}
        made = self.along(**same, **changes)
        del made.inputs["control"]
        return made


def run(server, graph, *edits):
    """The history entry, and the latents of some edits."""
    kept = [graph.save(edit[0], "edict") for edit in edits]
    entry = server.run(graph)
    return entry, *(saved(server, entry, node) for node in kept)


@dataclass(frozen=True)
class Edited:
    """One inversion and all that is done along it: what was told, and the latents, by name."""

    told: dict
    latents: dict


@pytest.fixture(scope="module")
def edited(server):
    graph = Inverting()
    edits = {
        "along DDIM": graph.edit(),
        "edit": graph.along(),
        "pushed": graph.along(cfg=7.5),
        "no correction": graph.along(correction="none"),
        "add source": graph.along(correction="add source"),
        "masked": graph.along(mask=graph.scene[1]),
        "unedited": graph.unedited(),
    }
    latents = {name: edit[0] for name, edit in edits.items()}
    latents |= {"source": edits["edit"][1], "origin": graph.encoded[0]}
    kept = {name: graph.save(latent, "edict") for name, latent in latents.items()}
    graph.add("PalimpsestSaveTrajectory", trajectory=graph.edict[0], filename_prefix="kept/edict")
    entry = server.run(graph)
    words = {name: told(entry, edit) for name, edit in edits.items()}
    words["inversion"] = told(entry, graph.edict)
    return Edited(words, {name: saved(server, entry, node) for name, node in kept.items()})


def test_it_stands_in_the_place_of_any_other_inversion(server, edited):
    assert edited.told["inversion"].startswith(f"{STEPS} steps, {4 * STEPS} UNet rows")
    # 4 rows a step, 2 more while a window is open.
    assert edited.told["edit"].startswith(f"{4 * STEPS + 2 * read_in(STEPS)} UNet rows")
    assert "reconstruction: exact\ncorrection is not read" in edited.told["edit"]
    assert edited.told["edit"].endswith("by themselves")
    assert edited.told["pushed"].endswith(
        "\ncfg is 7.5, that of Invert (EDICT) 3: the picture is only kept where they are equal"
    )
    assert "correction" not in edited.told["along DDIM"]
    assert torch.equal(edited.latents["source"], edited.latents["origin"])
    assert relative(edited.latents["edit"], edited.latents["along DDIM"]) > 0.01
    about = server.object_info()
    names = [about[f"PalimpsestInvert{kind}"]["output_name"] for kind in ("DDIM", "EDICT")]
    assert names[0] == names[1]


def test_an_unedited_picture_comes_back_number_for_number(edited):
    assert torch.equal(edited.latents["unedited"], edited.latents["origin"])
    assert edited.told["unedited"].startswith(f"{4 * STEPS} UNet rows")


def test_the_correction_is_not_read_and_the_mask_is(edited):
    assert torch.equal(edited.latents["edit"], edited.latents["no correction"])
    assert torch.equal(edited.latents["edit"], edited.latents["add source"])
    same = edited.latents["masked"] == edited.latents["origin"]
    assert same[..., 0, :].all()  # the scene's border is not in its mask
    assert not same.all()


def test_a_batch_of_pictures_is_inverted_together(server, edited):
    graph = Inverting(batch=2)
    _, two = run(server, graph, graph.along())
    assert two.shape[0] == 2
    assert relative(two[:1], edited.latents["edit"]) < 1e-4
    assert relative(two[1:], edited.latents["edit"]) < 1e-4


def test_a_saved_trajectory_brings_both_chains_back(server, edited):
    graph = Editing(steps=STEPS)
    loaded = graph.add("PalimpsestLoadTrajectory", file="kept/edict_00001.safetensors [output]")
    _, later = run(server, graph, graph.edit(trajectory=loaded[0], cfg=CFG))
    assert torch.equal(edited.latents["edit"], later)


def test_another_edit_needs_no_inversion(server):
    graph = Inverting(steps=1)
    run(server, graph, graph.along())
    graph.words.inputs["target"] = "a pink heart on grass"
    assert server.rows(server.run(graph)) == 4  # as many as the inversion's, so not both


# -- bad input -----------------------------------------------------------------------------------


def no_negative():
    graph = Inverting()
    del graph.edict.inputs["negative"]
    return graph, graph.edict[1]


def a_sampler():
    graph = Inverting(steps=1)
    guider = graph.add(
        "PalimpsestEditGuider", **{**graph.edit_inputs(), "trajectory": graph.edict[0]}
    )
    walked = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("DisableNoise")[0],
        guider=guider[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.edict[2],
        latent_image=graph.edict[1],
    )
    return graph, walked[0]


def proximal():
    graph = Inverting(steps=1)
    wish = {"threshold": "soft", "quantile": 0.5, "pull": 0.1, "below": 1.0, "dilate": 1}
    limited = graph.add("PalimpsestProximalGuidance", trajectory=graph.edict[0], fixed=0.0, **wish)
    return graph, graph.along(trajectory=limited[0])[0]


@pytest.mark.parametrize(
    ("make", "node", "word"),
    [
        (no_negative, "PalimpsestInvertEDICT", "cfg is 3.0, which needs a negative"),
        (a_sampler, "PalimpsestEditGuider", "two chains no sampler of core's can walk"),
        (proximal, "PalimpsestProximalGuidance", "EDICT has two that are coupled"),
    ],
)
def test_it_is_refused_in_one_clear_sentence(server, make, node, word):
    graph, latent = make()
    graph.save(latent, "never")
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_type == node
    assert word in caught.value.message
    assert clear(caught.value.message)
    good = Editing(steps=1)
    good.save(good.inverted[1], f"after {make.__name__}")
    server.run(good)
