"""What bad input gets: one clear sentence, nothing half-done, and a server that goes on."""

import re
import shutil

import pytest
import torch
from palimpsest.tests.harness import Failed, Refused
from palimpsest.tests.host.tiny import make_sd1
from palimpsest.tests.server.graphs import Editing, put_latent, told
from palimpsest.tests.server.test_samplers import custom

EDIT, GUIDER = "PalimpsestEdit", "PalimpsestEditGuider"
INVERT, CONTROL = "PalimpsestInvertDDIM", "PalimpsestPromptToPrompt"
LOAD, SAVE = "PalimpsestLoadTrajectory", "PalimpsestSaveTrajectory"
SAMPLER = "SamplerCustomAdvanced"

CASES = {}


def case(node, *words):
    """A function that makes a bad graph; the node that refuses it, and what it has to say."""

    def register(make):
        CASES[make.__name__.removeprefix("_").replace("_", " ")] = (make, node, words)
        return make

    return register


@pytest.fixture(scope="module")
def refused():
    """The nodes after whose refusal a good graph has run: one refusal of each is enough."""
    return set()


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_clear_sentence(server, refused, name):
    make, node, words = CASES[name]
    graph = finished(make(server))
    before = files(server)
    with pytest.raises(Failed) as caught:
        server.run(graph)
    message = caught.value.message
    assert caught.value.node_type == node, message
    assert clear(message), message
    assert all(word in message for word in words), message
    assert files(server) == before
    if node not in refused:
        good = Editing(steps=1)
        good.save(good.inverted[1], f"after {name}")
        server.run(good)
        refused.add(node)


def finished(made):
    """The graph with its last latent saved, so that its last node is run."""
    graph, latent = made
    graph.save(latent, "never")
    return graph


def files(server):
    folders = ("output", "input", "temp")
    found = (path for folder in folders for path in (server.base / folder).rglob("*"))
    return {path for path in found if path.is_file() and not path.name.startswith("after ")}


def clear(message):
    """Whether a message is at most two sentences for a person, without a trace of our insides."""
    sentences = re.findall(r"[.!](?:\s|$)", message)
    inside = re.search(r"Traceback|Tensor|torch|object at|\bNone\b", message)
    return len(sentences) <= 2 and message.endswith(".") and not inside and "\n" not in message


# --- Invert


def inverting(**changes):
    graph = Editing(steps=3)
    graph.inverted.inputs.update(changes)
    return graph, graph.inverted[1]


@case(INVERT, "sigmas", "fall", "Flip Sigmas")
def _flipped_sigmas(server):
    graph, latent = inverting()
    flipped = graph.add("FlipSigmas", sigmas=scheduled(graph)[0])
    graph.inverted.inputs["sigmas"] = flipped[0]
    return graph, latent


@case(INVERT, "sigmas", "fall", "to 0")
def _sigmas_cut_off_above_0(server):
    graph, latent = inverting()
    split = graph.add("SplitSigmas", sigmas=scheduled(graph)[0], step=3)
    graph.inverted.inputs["sigmas"] = split[0]
    return graph, latent


@case(INVERT, "sigmas", "fall")
def _sigmas_with_more_steps_than_the_model_has(server):
    graph, latent = inverting()
    graph.inverted.inputs["sigmas"] = scheduled(graph, steps=1500)[0]
    return graph, latent


@case(INVERT, "levels", "fewer steps")
def _more_steps_than_the_schedule_has(server):
    return inverting(steps=900, strength=0.5)


@case(INVERT, "cfg is 3", "negative")
def _guidance_without_a_negative(server):
    return inverting(cfg=3.0)


@case(INVERT, "noise mask", "Edit")
def _a_noise_mask(server):
    graph, latent = inverting()
    masked = graph.add("SetLatentNoiseMask", samples=graph.encoded[0], mask=graph.scene[1])
    graph.inverted.inputs["latent"] = masked[0]
    return graph, latent


@case(INVERT, "latent", "NaN", "VAE")
def _a_latent_that_is_not_a_number(server):
    samples = torch.zeros(1, 4, 16, 16)
    samples[0, 1, 2, 3] = float("nan")
    return with_latent(server, samples, "nan")


@case(INVERT, "latent", "NaN", "VAE")
def _a_latent_that_is_infinite(server):
    return with_latent(server, torch.full((1, 4, 16, 16), float("inf")), "inf")


@case(INVERT, "latent", "16", "VAE")
def _a_latent_with_other_channels(server):
    return with_latent(server, torch.ones(1, 16, 16, 16), "channels")


@case("PalimpsestInvertNegativePrompt", "predict noise or v", "SDXL", "checkpoint")
def _a_flow_model(server):
    graph, _ = inverting()
    flow = graph.add("ModelSamplingSD3", model=graph.model[0], shift=3.0)
    negative = graph.add(
        "PalimpsestInvertNegativePrompt",
        **{
            "model": flow[0],
            "positive": graph.described[0],
            "latent": graph.encoded[0],
            "steps": 3,
            "scheduler": "simple",
            "strength": 1.0,
            "interpolation": 0.0,
            "convention": "destination",
        },
    )
    return graph, negative[1]


def with_latent(server, samples, name):
    graph, latent = inverting()
    loaded = graph.add("LoadLatent", latent=put_latent(server, samples, name))
    graph.inverted.inputs["latent"] = loaded[0]
    return graph, latent


def scheduled(graph, steps=6):
    return graph.add(
        "BasicScheduler", model=graph.model[0], scheduler="simple", steps=steps, denoise=1.0
    )


# --- Prompt-to-Prompt


def rewriting(**changes):
    graph = Editing(steps=3)
    graph.words.inputs.update(source="a red heart on grass", target="a blue heart on grass")
    graph.words.inputs.update(changes)
    return graph, graph.edit()[0]


@case(CONTROL, "'purple'", "not in the target prompt", "a blue heart on grass")
def _a_weight_for_a_word_that_is_not_there(server):
    return rewriting(weights="purple: 2")


@case(CONTROL, "'blue 2'", "`word: factor`")
def _a_malformed_weight(server):
    return rewriting(weights="heart: 1.5\nblue 2")


@case(CONTROL, "'blue: strong'", "number")
def _a_weight_that_is_no_number(server):
    return rewriting(weights="blue: strong")


@case(CONTROL, "as many words", "refine")
def _unequal_word_counts_under_replace(server):
    return rewriting(mode="replace", target="a blue striped heart on grass")


# --- Edit


@case(EDIT, "trajectory", "another model")
def _the_trajectory_of_another_model(server):
    graph = Editing(steps=3)
    other = other_model(server, graph)
    described = graph.add("CLIPTextEncode", clip=other[1], text="a red heart on grass")
    graph.inverted.inputs.update(model=other[0], positive=described[0])
    return graph, graph.edit()[0]


def other_model(server, graph):
    folder = server.base / "models" / "diffusers" / "other"
    if not folder.exists():
        folder.mkdir(parents=True)
        make_sd1(folder)
    return graph.add("PalimpsestLoadDiffusersFolder", folder="other")


@case(EDIT, "target conditioning", "control", "Prompt-to-Prompt")
def _a_conditioning_that_is_not_the_controls(server):
    graph = Editing(steps=3)
    other = graph.add("CLIPTextEncode", clip=graph.model[1], text="a green heart on grass")
    return graph, graph.edit(target=other[0])[0]


@case(EDIT, "source conditioning", "entries", "control")
def _a_combined_conditioning_under_a_control(server):
    graph = Editing(steps=3)
    wires = {"conditioning_1": graph.words[1], "conditioning_2": graph.negative[0]}
    return graph, graph.edit(source=graph.add("ConditioningCombine", **wires)[0])[0]


@case(EDIT, "mask", "3", "2")
def _a_mask_batch_that_does_not_match(server):
    graph = Editing(steps=3, batch=2)
    pictures = graph.add("RepeatImageBatch", image=graph.scene[0], amount=3)
    masks = graph.add("ImageToMask", image=pictures[0], channel="red")
    return graph, graph.edit(mask=masks[0])[0]


# --- Edit Guider


def guided(batch=1, **changes):
    graph = Editing(steps=3, batch=batch)
    guider = graph.add(GUIDER, **graph.edit_inputs())
    return graph, custom(graph, guider[0], **{k: make(graph) for k, make in changes.items()})[0]


@case(SAMPLER, "euler", "heun", "KSamplerSelect")
def _the_guider_under_another_sampler(server):
    return guided(sampler=lambda _: "heun")


@case(SAMPLER, "trajectory's own sigmas", "SIGMAS output of Invert")
def _the_guider_with_other_sigmas(server):
    return guided(sigmas=lambda graph: scheduled(graph)[0])


@case(SAMPLER, "trajectory's own sigmas", "SIGMAS output of Invert")
def _the_guider_with_part_of_the_sigmas(server):
    return guided(
        sigmas=lambda graph: graph.add("SplitSigmas", sigmas=graph.inverted[2], step=1)[1]
    )


@case(SAMPLER, "does not start where the inversion ended", "NOISE")
def _the_guider_with_random_noise(server):
    return guided(noise=lambda graph: graph.add("RandomNoise", noise_seed=1)[0])


@case(SAMPLER, "noise mask", "Edit Inverted Image")
def _the_guider_with_a_noise_mask(server):
    wires = lambda graph: {"samples": graph.encoded[0], "mask": graph.scene[1]}
    return guided(latent=lambda graph: graph.add("SetLatentNoiseMask", **wires(graph))[0])


@case(SAMPLER, "latent is", "trajectory")
def _the_guider_with_a_latent_of_another_size(server):
    empty = {"width": 64, "height": 64, "batch_size": 1}
    return guided(
        noise=lambda graph: graph.add("DisableNoise")[0],
        latent=lambda graph: graph.add("EmptyLatentImage", **empty)[0],
    )


@case(SAMPLER, "inverted noise", "size")
def _inverted_noise_on_a_latent_of_another_size(server):
    graph = Editing(steps=3)
    guider = graph.add("BasicGuider", model=graph.model[0], conditioning=graph.described[0])
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    return graph, custom(graph, guider[0], latent=empty[0])[0]


# --- trajectories


@case("PalimpsestLatentsToTrajectory", "8 latents", "3 levels", "same trajectory")
def _latents_and_sigmas_of_different_trajectories(server):
    graph = Editing(steps=3, batch=2)
    opened = graph.add("PalimpsestTrajectoryToLatents", trajectory=graph.inverted[0])
    sigmas = scheduled(graph, steps=2)
    wires = {"model": graph.model[0], "latents": opened[0], "sigmas": sigmas[0]}
    made = graph.add("PalimpsestLatentsToTrajectory", **wires)
    return graph, graph.edit(trajectory=made[0])[0]


@pytest.fixture(scope="module")
def whole(server):
    """A good trajectory file in the input folder."""
    graph = Editing(steps=2)
    wish = {"trajectory": graph.inverted[0], "filename_prefix": "whole/one"}
    node = graph.add(SAVE, **wish)
    name = told(server.run(graph), node).removeprefix("saved as ")
    return server.base / "output" / "whole" / name


def damages(data):
    """Ways in which a file comes to harm."""
    flipped = bytearray(data)
    flipped[-4:] = b"\xff\xff\xff\x7f"
    return {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "no safetensors": b"not a file of tensors at all",
        "with NaN": bytes(flipped),
        "of another kind": data.replace(b"palimpsest_trajectory", b"palimpsest_trajectorx"),
        "with another recipe": data.replace(b'\\"method\\"', b'\\"mothed\\"', 1),
    }


@pytest.mark.parametrize("harm", damages(b"."))
def test_a_harmed_file_is_refused(server, whole, harm):
    path = server.base / "input" / f"{harm.replace(' ', '_')}.safetensors"
    path.write_bytes(damages(whole.read_bytes())[harm])
    graph = Editing(steps=2)
    graph.save(graph.edit(trajectory=graph.add(LOAD, file=path.name)[0])[0], "never")
    with pytest.raises(Failed) as caught:
        server.run(graph)
    message = caught.value.message
    assert caught.value.node_type == LOAD, message
    assert path.name in message, message
    assert re.search("damaged|not a trajectory", message), message
    assert clear(message), message


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "../secret.safetensors [output]",
        "/etc/secret.safetensors",
        "../../models/diffusers/other/unet/diffusion_pytorch_model.safetensors",
        "missing.safetensors",
        "picture.png",
    ],
)
def test_a_file_outside_the_folders_is_never_read(server, whole, name):
    shutil.copy(whole, server.base / "secret.safetensors")
    graph = Editing(steps=2)
    graph.save(graph.edit(trajectory=graph.add(LOAD, file=name)[0])[0], "never")
    with pytest.raises(Refused, match=r"choose one from the list, or upload it\."):
        server.queue(graph)


@pytest.mark.parametrize("prefix", ["../climbs", "a/../../climbs", "/tmp/climbs", "", ".", "  "])
def test_a_prefix_that_leaves_the_output_folder_is_refused(server, prefix):
    before = files(server)
    graph = Editing(steps=2)
    graph.add(SAVE, trajectory=graph.inverted[0], filename_prefix=prefix)
    with pytest.raises(Refused, match="leaves ComfyUI's output folder: use a name such as"):
        server.queue(graph)
    assert files(server) == before
    assert not list(server.base.glob("climbs*"))


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_no_model_has_are_refused_before_anything_runs(server, steps):
    graph = Editing(steps=steps)
    graph.save(graph.inverted[1], "never")
    with pytest.raises(Refused) as caught:
        server.queue(graph)
    assert list(caught.value.node_errors) == [graph.inverted.id]
