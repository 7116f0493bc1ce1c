"""Negative-prompt inversion and proximal guidance in a real server, on the embedded model."""

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, read_in, relative, saved, told
from palimpsest.tests.server.test_bad_input import clear

STEPS = 2
SETTINGS = {
    "threshold": "soft",
    "quantile": 0.5,
    "pull": 0.1,
    "below": 1.0,
    "dilate": 1,
    "fixed": 0.0,
}


class Inverting(Editing):
    """The demo's graph, and Negative-prompt inversion beside the other."""

    def __init__(self, steps=STEPS, **wishes):
        super().__init__(steps=steps)
        wires = ("model", "positive", "latent", "steps", "scheduler", "strength", "convention")
        same = {name: self.inverted.inputs[name] for name in wires}
        self.npi = self.add(
            "PalimpsestInvertNegativePrompt", **same, **{"interpolation": 0.0, **wishes}
        )

    def limited(self, trajectory=None, **changes):
        """Add a Proximal Guidance; the trajectory that comes out of it."""
        wish = {"trajectory": trajectory or self.npi[0], **SETTINGS, **changes}
        return self.add("PalimpsestProximalGuidance", **wish)[0]


def run(server, graph, *edits):
    """The history entry, and the latents of some edits."""
    kept = [graph.save(edit[0], "npi") for edit in edits]
    entry = server.run(graph)
    return entry, *(saved(server, entry, node) for node in kept)


def test_it_stands_in_the_place_of_any_other_inversion(server):
    steps = 4  # the source is read in two, so that what it drifted by after the first is seen
    graph = Inverting(steps)
    other = graph.edit()
    direct, drifting = (
        graph.edit(trajectory=graph.npi[0], correction=name)
        for name in ("direct inversion", "none")
    )
    followed = graph.save(drifting[1], "drifted")
    ends = [graph.save(node[1], "last") for node in (graph.inverted, graph.npi)]
    entry, plain, edited, published = run(server, graph, other, direct, drifting)
    assert told(entry, graph.npi).startswith(f"{steps} steps, {steps} UNet rows")
    # Two target rows a step, and the source: while a window is open, or drifting as one row.
    assert told(entry, direct).startswith(f"{2 * steps + read_in(steps)} UNet rows")
    assert told(entry, drifting).startswith(f"{2 * steps + steps} UNet rows")
    assert "reconstruction: exact" in told(entry, direct)
    assert "dB in the latent" in told(entry, drifting)
    assert relative(edited, plain) > 0.01
    assert relative(published, edited) > 1e-3
    assert bool(torch.isfinite(saved(server, entry, followed)).all())
    assert torch.equal(*(saved(server, entry, node) for node in ends))
    about = server.object_info()
    names = [about[f"PalimpsestInvert{kind}"]["output_name"] for kind in ("DDIM", "NegativePrompt")]
    assert names[0] == names[1]
    assert {"latent", "noise"} < set(names[0])


def test_interpolation_goes_from_one_negative_to_the_other(server):
    graph = Inverting(interpolation=1.0)
    graph.npi.inputs["negative"] = graph.negative[0]
    half = graph.add("PalimpsestInvertNegativePrompt", **graph.npi.inputs | {"interpolation": 0.5})
    edits = [graph.edit(trajectory=node[0]) for node in (graph.inverted, graph.npi, half)]
    _, ddim, whole, between = run(server, graph, *edits)
    assert relative(whole, ddim) < 1e-5
    assert 1e-3 <= relative(between, ddim) < 10


def test_proximal_guidance_changes_less_of_the_picture_the_more_it_limits(server):
    graph = Inverting()
    trajectories = [graph.npi[0], *(graph.limited(quantile=q, pull=0.5) for q in (0.5, 0.9))]
    edits = [graph.edit(trajectory=wire) for wire in trajectories]
    kept = graph.save(graph.encoded[0], "origin")
    entry, *latents = run(server, graph, *edits)
    origin = saved(server, entry, kept)
    far = [relative(latent, origin) for latent in latents]
    assert far[0] > far[1] > far[2] > 0.01
    rows = {told(entry, edit).split(" UNet rows")[0] for edit in edits}
    assert rows == {str(2 * STEPS + read_in(STEPS))}  # it costs none


def test_it_works_after_another_inversion_and_another_threshold_needs_no_new_one(server):
    graph = Inverting()
    _, plain = run(server, graph, graph.edit())
    edit = graph.edit(trajectory=graph.limited(graph.inverted[0]))
    _, limited = run(server, graph, edit)
    assert relative(limited, plain) > 0.01
    graph[edit.inputs["trajectory"][0]]["inputs"]["threshold"] = "hard"
    assert server.rows(server.run(graph)) == 2 * STEPS + read_in(STEPS)


def test_a_saved_trajectory_brings_embeddings_and_settings_back(server):
    graph = Inverting()
    wire = graph.limited()
    graph.add("PalimpsestSaveTrajectory", trajectory=wire, filename_prefix="kept/npi")
    _, own = run(server, graph, graph.edit(trajectory=wire))
    graph = Editing(steps=STEPS)
    loaded = graph.add("PalimpsestLoadTrajectory", file="kept/npi_00001.safetensors [output]")
    _, later = run(server, graph, graph.edit(trajectory=loaded[0]))
    assert torch.equal(own, later)


def test_the_guider_walks_as_edit_does(server):
    """Without the pull: rounding may move a cell over the edge of its mask."""
    graph = Inverting()
    wire = graph.limited(pull=0.0)
    pairs = []
    for correction in ("direct inversion", "none"):
        edit = graph.edit(trajectory=wire, correction=correction)
        wishes = {**graph.edit_inputs(), "trajectory": wire, "correction": correction}
        walked = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("DisableNoise")[0],
            guider=graph.add("PalimpsestEditGuider", **wishes)[0],
            sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
            sigmas=graph.npi[2],
            latent_image=graph.npi[1],
        )
        pairs += [edit, walked]
    _, direct, by_guider, drifting, drifting_by_guider = run(server, graph, *pairs)
    assert relative(by_guider, direct) < 1e-4
    assert relative(drifting_by_guider, drifting) < 1e-4


# -- bad input -----------------------------------------------------------------------------------


def no_negative():
    graph = Inverting(interpolation=0.5)
    return graph, graph.npi[1]


def two_prompts():
    graph = Inverting()
    combined = graph.add(
        "ConditioningCombine", conditioning_1=graph.described[0], conditioning_2=graph.negative[0]
    )
    graph.npi.inputs["positive"] = combined[0]
    return graph, graph.npi[1]


def no_guidance():
    graph = Inverting()
    return graph, graph.edit(trajectory=graph.limited(), cfg=1.0)[0]


def replaced_guidance():
    graph = Inverting()
    rescaled = graph.add("RescaleCFG", model=graph.model[0], multiplier=0.7)
    return graph, graph.edit(trajectory=graph.limited(), model=rescaled[0])[0]


@pytest.mark.parametrize(
    ("make", "node", "word"),
    [
        (no_negative, "PalimpsestInvertNegativePrompt", "needs a negative"),
        (two_prompts, "PalimpsestInvertNegativePrompt", "The positive has 2 entries"),
        (no_guidance, "PalimpsestEdit", "set Edit's cfg above 1"),
        (replaced_guidance, "PalimpsestEdit", "RescaleCFG"),
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
