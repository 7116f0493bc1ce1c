"""What Invert gives to core's samplers, and Edit as a guider among them."""

import pytest
import torch
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 12
ADVANCED = {
    "add_noise": "disable",
    "noise_seed": 0,
    "cfg": 1.0,
    "sampler_name": "euler",
    "start_at_step": 0,
    "end_at_step": 10000,
    "return_with_leftover_noise": "disable",
}


def sampled(graph):
    """Sample the inverted latent with core's KSampler (Advanced), on the inversion's schedule."""
    wires = {
        "model": graph.model[0],
        "positive": graph.described[0],
        "negative": graph.negative[0],
        "latent_image": graph.inverted[1],
    }
    schedule = {name: graph.inverted.inputs[name] for name in ("steps", "scheduler")}
    return graph.add("KSamplerAdvanced", **wires, **ADVANCED, **schedule)


def custom(graph, guider, noise=None, latent=None, sampler="euler", sigmas=None):
    """Sample with SamplerCustomAdvanced, by default from Invert's noise and sigmas."""
    return graph.add(
        "SamplerCustomAdvanced",
        noise=noise or graph.inverted[3],
        guider=guider,
        sampler=graph.add("KSamplerSelect", sampler_name=sampler)[0],
        sigmas=sigmas or graph.inverted[2],
        latent_image=latent or graph.encoded[0],
    )


def distance(server, graph, latent):
    """How far a latent of a graph is from the one that was inverted."""
    kept = [graph.save(graph.encoded[0], "inverted"), graph.save(latent, "came_back")]
    entry = server.run(graph)
    origin, back = (saved(server, entry, node) for node in kept)
    return relative(back, origin)


@pytest.mark.parametrize(
    ("scheduler", "steps", "refinement", "convention"),
    [("ddim_uniform", 50, 4, "destination"), ("karras", 20, 4, "current")],
)
def test_refined_latents_come_back_from_ksampler(server, convention, scheduler, steps, refinement):
    wish = {"scheduler": scheduler, "refinement": refinement, "convention": convention}
    graph = Editing(steps, **wish)
    assert distance(server, graph, sampled(graph)[0]) < 1e-3


@pytest.mark.parametrize(
    ("scheduler", "convention"), [("karras", "destination"), ("simple", "current")]
)
def test_refining_is_what_brings_them_back(server, scheduler, convention):
    wish = {"scheduler": scheduler, "convention": convention}
    plain, refined = (
        distance(server, graph, sampled(graph)[0])
        for graph in (Editing(STEPS, **wish), Editing(STEPS, refinement=6, **wish))
    )
    assert 2e-3 < plain < 1
    assert refined < plain / 5


@pytest.mark.parametrize("start", ["noise", "latent"])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_noise_and_sigmas_come_back_from_the_custom_sampler(server, start, strength):
    graph = Editing(STEPS, scheduler="karras", refinement=6, strength=strength)
    guider = graph.add("BasicGuider", model=graph.model[0], conditioning=graph.described[0])
    if start == "noise":
        back = custom(graph, guider[0])
    else:
        back = custom(graph, guider[0], graph.add("DisableNoise")[0], graph.inverted[1])
    assert distance(server, graph, back[0]) < 1e-3


def test_sigmas_of_a_scheduler_node_win(server):
    graph = Editing(steps=3)
    scheduler = graph.add(
        "BasicScheduler", model=graph.model[0], scheduler="karras", steps=5, denoise=1.0
    )
    graph.inverted.inputs["sigmas"] = scheduler[0]
    graph.save(graph.inverted[1], "karras")
    assert told(server.run(graph), graph.inverted).startswith("5 steps, 5 UNet rows")


@pytest.mark.parametrize("start", ["noise", "latent"])
@pytest.mark.parametrize("correction", ["direct inversion", "none"])
def test_the_guider_makes_the_latent_that_edit_makes(server, start, correction):
    graph = Editing(steps=6)
    mask = graph.scene[1]
    guider = graph.add(
        "PalimpsestEditGuider", **graph.edit_inputs() | {"correction": correction, "mask": mask}
    )
    if start == "noise":
        walked = custom(graph, guider[0])
    else:
        walked = custom(graph, guider[0], graph.add("DisableNoise")[0], graph.inverted[1])
    edited = graph.edit(correction=correction, mask=mask)
    kept = [graph.save(latent, "guided") for latent in (edited[0], walked[0], graph.encoded[0])]
    entry = server.run(graph)
    by_node, by_guider, origin = (saved(server, entry, node) for node in kept)
    assert relative(by_guider, by_node) < 1e-4
    assert relative(by_node, origin) > 1e-2


def test_a_batch_of_pictures_that_are_not_square(server):
    graph = Editing(steps=4, width=192, height=128)
    other = graph.add("ImageScale", **graph["6"]["inputs"] | {"image": graph.scene[4]})
    graph.encoded.inputs["pixels"] = graph.add("ImageBatch", image1=["6", 0], image2=other[0])[0]
    edited = graph.edit()
    kept = [graph.save(latent, "batch") for latent in (edited[0], edited[1], graph.encoded[0])]
    shown = graph.decode(edited[0], "batch")
    entry = server.run(graph)
    latent, reconstruction, origin = (saved(server, entry, node) for node in kept)
    assert latent.shape == (2, 4, 16, 24)
    assert torch.equal(reconstruction, origin)
    assert all(relative(a, b) > 1e-2 for a, b in zip(latent, origin, strict=True))
    assert [picture.size for picture in server.images(entry, shown.id)] == [(192, 128)] * 2
    assert told(entry, graph.inverted).startswith("4 steps, 8 UNet rows")


def test_outside_the_mask_the_latent_stays_number_for_number(server):
    graph = Editing(steps=4)
    edited = graph.edit(mask=graph.scene[1])
    kept = [graph.save(latent, "masked") for latent in (edited[0], graph.encoded[0])]
    entry = server.run(graph)
    latent, origin = (saved(server, entry, node) for node in kept)
    same = (latent == origin).all(1)
    assert 0.3 < same.float().mean() < 0.95
    assert same[0, 0].all()
