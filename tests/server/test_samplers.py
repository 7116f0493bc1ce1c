"""What Invert gives to core's samplers, and Edit as a guider among them."""

import pytest
import torch
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 10
ADVANCED = {
    "add_noise": "disable",
    "noise_seed": 0,
    "cfg": 1.0,
    "sampler_name": "euler",
    "start_at_step": 0,
    "end_at_step": 10000,
    "return_with_leftover_noise": "disable",
}


def sampled(graph, inverted):
    """Sample an inverted latent with core's KSampler (Advanced), on the inversion's schedule."""
    wires = {
        "model": graph.model[0],
        "positive": graph.described[0],
        "negative": graph.negative[0],
        "latent_image": inverted[1],
    }
    schedule = {name: inverted.inputs[name] for name in ("steps", "scheduler")}
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


def distances(server, graph, *latents):
    """How far latents of a graph are from the one that was inverted."""
    origin, *kept = (graph.save(latent, "came_back") for latent in (graph.encoded[0], *latents))
    entry = server.run(graph)
    return [relative(saved(server, entry, node), saved(server, entry, origin)) for node in kept]


@pytest.mark.parametrize(
    ("scheduler", "convention", "steps", "most"),
    [
        ("ddim_uniform", "destination", 50, 1e-3),
        ("karras", "current", STEPS, 1e-3),
        ("karras", "destination", STEPS, 1e-3),
    ],
)
def test_refining_brings_latents_back_from_ksampler(server, scheduler, convention, steps, most):
    graph = Editing(steps, scheduler=scheduler, convention=convention, refinement=5)
    plain = graph.add("PalimpsestInvertDDIM", **graph.inverted.inputs | {"refinement": 0})
    backs = [sampled(graph, inverted)[0] for inverted in (plain, graph.inverted)]
    unrefined, refined = distances(server, graph, *backs)
    assert 2e-3 < unrefined < 1
    assert refined < unrefined / 5
    assert refined < most


@pytest.mark.parametrize(("strength", "steps"), [(1.0, STEPS), (0.6, 6)])
def test_noise_and_sigmas_come_back_from_the_custom_sampler(server, strength, steps):
    graph = Editing(steps, scheduler="karras", refinement=5, strength=strength)
    guider = graph.add("BasicGuider", model=graph.model[0], conditioning=graph.described[0])
    by_noise = custom(graph, guider[0])
    by_latent = custom(graph, guider[0], graph.add("DisableNoise")[0], graph.inverted[1])
    assert max(distances(server, graph, by_noise[0], by_latent[0])) < 1e-3


def test_sigmas_of_a_scheduler_node_win(server):
    graph = Editing(steps=3)
    scheduler = graph.add(
        "BasicScheduler", model=graph.model[0], scheduler="karras", steps=5, denoise=1.0
    )
    graph.inverted.inputs["sigmas"] = scheduler[0]
    graph.save(graph.inverted[1], "karras")
    assert told(server.run(graph), graph.inverted).startswith("5 steps, 5 UNet rows")


@pytest.fixture(scope="module")
def walked(server):
    """Edits under a mask by correction: by Edit, by its guider from either start; the origin."""
    graph = Editing(steps=4)
    mask = graph.scene[1]
    made = {"origin": graph.encoded[0]}
    for correction in ("direct inversion", "none"):
        wish = {"correction": correction, "mask": mask}
        guider = graph.add("PalimpsestEditGuider", **graph.edit_inputs() | wish)[0]
        silence = graph.add("DisableNoise")[0]
        made[correction, "edit"] = graph.edit(**wish)[0]
        made[correction, "noise"] = custom(graph, guider)[0]
        made[correction, "latent"] = custom(graph, guider, silence, graph.inverted[1])[0]
    kept = {key: graph.save(latent, "walked") for key, latent in made.items()}
    entry = server.run(graph)
    return {key: saved(server, entry, node) for key, node in kept.items()}


@pytest.mark.parametrize("start", ["noise", "latent"])
@pytest.mark.parametrize("correction", ["direct inversion", "none"])
def test_the_guider_makes_the_latent_that_edit_makes(walked, start, correction):
    by_node, by_guider = walked[correction, "edit"], walked[correction, start]
    assert relative(by_guider, by_node) < 1e-4
    assert relative(by_node, walked["origin"]) > 1e-2


def test_outside_the_mask_the_latent_stays_number_for_number(walked):
    same = (walked["direct inversion", "edit"] == walked["origin"]).all(1)
    assert 0.3 < same.float().mean() < 0.95
    assert same[0, 0].all()


def test_a_batch_of_pictures_that_are_not_square(server):
    steps = 2
    graph = Editing(steps, width=192, height=128)
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
    assert told(entry, graph.inverted).startswith(f"{steps} steps, {2 * steps} UNet rows")
