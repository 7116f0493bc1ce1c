"""Identity LoRA in a real server: what it shows, what it writes, and that it can be cancelled."""

import pytest
from palimpsest.tests.harness import Failed, Refused
from palimpsest.tests.server.graphs import Editing, relative, saved, told
from palimpsest.tests.server.pictures import as_tensor
from palimpsest.tests.server.test_bad_input import clear, files
from palimpsest.tests.server.test_running import progress

IDENTITY = "PalimpsestIdentityLora"
SETTING = {"rank": 4, "steps": 3, "learning_rate": 2e-3, "min_strength": 0.5, "seed": 1}


class Learning(Editing):
    """The demo's graph with an Identity LoRA on its picture; `identity` is the node."""

    def __init__(self, width=128, height=128, **changes):
        super().__init__(steps=2, width=width, height=height)
        self.identity = self.add(
            IDENTITY,
            model=self.model[0],
            positive=self.described[0],
            latent=self.encoded[0],
            **{**SETTING, **changes},
        )

    def sample(self, model, name):
        """Sample two steps with a model and save the latent."""
        sampled = self.add(
            "KSampler",
            model=model,
            positive=self.described[0],
            negative=self.negative[0],
            latent_image=self.encoded[0],
            seed=5,
            steps=2,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=0.7,
        )
        return self.save(sampled[0], name)


@pytest.fixture(scope="module")
def learned(server):
    """One training and all that is asked of it: what was told, and the latents, by name."""
    # Before the LoRA was ever there, in a run of its own.
    before = Editing(steps=2)
    kept = Learning.sample(before, before.model[0], "plain_before")
    latents = {"before": saved(server, server.run(before), kept)}
    graph = Learning(min_strength=1.0, save_as="faces/ann")
    graph.seen = graph.show(graph.identity[2], "loss")
    wired = graph.add(
        "LoraModelLoader",
        model=graph.model[0],
        lora=graph.identity[1],
        strength_model=1.0,
        bypass=False,
    )
    models = {"learned": graph.identity[0], "by wire": wired[0], "after": graph.model[0]}
    nodes = {name: graph.sample(model, "learned") for name, model in models.items()}
    heard = server.events(graph)
    (queued,) = (data for kind, data in heard if kind == "queued")
    entry = server.wait(queued["prompt_id"])
    latents |= {name: saved(server, entry, node) for name, node in nodes.items()}
    return graph, heard, entry, latents


def test_it_shows_the_loss(server, learned):
    graph, heard, entry, _ = learned
    assert progress(heard, graph.identity)[-1] == SETTING["steps"]
    text = told(entry, graph.identity)
    assert text.startswith(f"rank 4, {SETTING['steps']} steps, ")
    assert "mean loss" in text and "before" in text and "after" in text
    (shown,) = server.images(entry, graph.identity.id)
    (output,) = server.images(entry, graph.seen.id)
    assert shown.size == output.size == (768, 432)
    assert float((as_tensor(shown) - as_tensor(output)).abs().max()) == 0
    picture = as_tensor(shown)
    assert bool((picture[..., 2] - picture[..., 0] > 0.3).any())  # the line
    assert float(picture[0].mean()) == 1  # and white around it


def test_the_model_that_comes_out_is_changed_and_the_one_that_went_in_is_not(learned):
    *_, latents = learned
    assert relative(latents["after"], latents["before"]) == 0
    assert relative(latents["learned"], latents["before"]) > 1e-3


def test_a_saved_lora_is_read_back_by_cores_loader(server, learned):
    graph, _, entry, latents = learned
    assert told(entry, graph.identity).endswith("saved as ann_00001.safetensors")
    assert (server.base / "output/loras/faces/ann_00001.safetensors").is_file()
    loading = Editing(steps=2)
    lora = loading.add(
        "LoraLoaderModelOnly",
        model=loading.model[0],
        lora_name="faces/ann_00001.safetensors",
        strength_model=1.0,
    )
    read = Learning.sample(loading, lora[0], "read_back")
    found = saved(server, server.run(loading), read)
    assert relative(found, latents["learned"]) < 1e-6
    assert relative(found, latents["by wire"]) < 1e-6


def test_cancel_stops_the_training_at_once_and_the_next_run_is_whole(server):
    graph = Learning(width=192, height=192, steps=200, seed=4, save_as="never")
    cancelled = []

    def cancel_at_the_first_step(kind, data):
        if not cancelled and progress([(kind, data)], graph.identity):
            cancelled.extend(progress([(kind, data)], graph.identity))
            server.interrupt()

    heard = server.events(graph, cancel_at_the_first_step)
    kind, data = heard[-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", graph.identity.id)
    assert progress(heard, graph.identity)[-1] <= cancelled[0] + 3
    assert not list((server.base / "output").rglob("never*"))
    again = Learning(seed=5, steps=1)  # alone: nothing is connected to its outputs
    entry = server.run(again)
    assert server.images(entry, again.identity.id)


def _noise_mask(graph):
    mask = graph.add("SolidMask", value=1.0, width=128, height=128)
    masked = graph.add("SetLatentNoiseMask", samples=graph.encoded[0], mask=mask[0])
    graph.identity.inputs["latent"] = masked[0]


def _channels(graph):
    empty = graph.add("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    graph.identity.inputs["latent"] = empty[0]


def _outside(graph):
    graph.identity.inputs["save_as"] = "../../climbs"


def _two_prompts(graph):
    both = graph.add(
        "ConditioningCombine", conditioning_1=graph.described[0], conditioning_2=graph.negative[0]
    )
    graph.identity.inputs["positive"] = both[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_noise_mask, ("noise mask", "Set Latent Noise Mask")),
        (_channels, ("latent", "VAE")),
        (_outside, ("'../../climbs'", "leaves", "loras")),
        (_two_prompts, ("2 entries", "takes one")),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_it_is_refused_in_one_clear_sentence(server, spoil, words):
    graph = Learning(seed=6)
    spoil(graph)
    before = files(server)
    with pytest.raises(Failed) as caught:
        server.run(graph)
    message = caught.value.message
    assert caught.value.node_type == IDENTITY, message
    assert clear(message), message
    assert all(word in message for word in words), message
    assert files(server) == before


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("rank", 129), ("steps", 0)])
def test_a_number_out_of_range_is_refused_before_anything_runs(server, name, value):
    graph = Learning(**{name: value})
    with pytest.raises(Refused) as caught:
        server.run(graph)
    assert list(caught.value.node_errors) == [graph.identity.id]
