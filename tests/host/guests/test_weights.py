"""Other weights, and what does not fit into memory, beside controls of every kind."""

import comfy.cli_args
import comfy.model_management
import pytest
import torch
from comfy.model_management import LoadedModel
from comfy.model_patcher import ModelPatcher
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.nodes.load import DEMO_WEIGHTS
from palimpsest.tests.host.edits.test_branches import lora, lora_weights
from palimpsest.tests.host.edits.test_edit import relative
from palimpsest.tests.host.guests.kinds import (
    ROUNDING,
    SEEN,
    asked,
    every_kind,
    every_sort,
    inverted,
    stack,
)
from palimpsest.tests.host.guests.verdicts import Row

import nodes

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

NODES = ("LoRA", "fp8 weights", "--lowvram", "Split batches", "VAE Encode and Decode (Tiled)")
ROWS = tuple(Row(name, "works") for name in NODES)

#: What a split batch may differ by: other kernels for other sizes of batch.
SPLIT = 1e-4

STRENGTH = 0.05


@pytest.fixture(scope="module")
def own(sd1_folder):
    """A model that these tests may load, unload and write to."""
    with torch.inference_mode(False):
        return load_folder(sd1_folder)


def written(folder, change):
    """The model with other numbers in its network: what `change` makes of them, by name."""
    with torch.inference_mode(False), torch.no_grad():
        model = load_folder(folder).model
        for key, value in model.model.diffusion_model.state_dict().items():
            value.copy_(change(key, value))
    return model


@pytest.fixture(scope="module")
def merged(own, sd1_folder):
    """The LoRA of these tests written into the weights, by its definition."""
    weights = lora_weights(own.model)

    def change(key, value):
        name = key.removesuffix(".weight").replace(".", "_")
        up = weights.get(f"lora_unet_{name}.lora_up.weight")
        if up is None:
            return value
        return value + STRENGTH * up @ weights[f"lora_unet_{name}.lora_down.weight"]

    return written(sd1_folder, change)


@every_sort
def test_an_edit_under_a_lora_is_that_of_the_merged_weights(own, merged, kind):
    patched = lora(own.model, STRENGTH)
    ours, theirs = (
        edit(asked(own, inverted(own, model), kind, model=model)).latent
        for model in (patched, merged)
    )
    assert relative(ours, theirs) < ROUNDING
    assert relative(ours, edit(asked(own, inverted(own), kind)).latent) > SEEN


@every_sort
def test_weights_that_are_cast_for_every_call_are_the_same_edit(own, merged, kind, monkeypatch):
    """--lowvram: no weight stays on the device, and the LoRA is added whenever one comes."""
    load = LoadedModel.model_load

    def little(self, _memory=0, force_patch_weights=False):
        return load(self, 0.1, force_patch_weights)

    comfy.model_management.unload_all_models()
    monkeypatch.setattr(LoadedModel, "model_load", little)
    patched = lora(own.model, STRENGTH)
    ours = edit(asked(own, inverted(own, patched), kind, model=patched)).latent
    assert patched.model.model_lowvram and patched.lowvram_patch_counter() > 0
    comfy.model_management.unload_all_models()
    monkeypatch.undo()
    theirs = edit(asked(own, inverted(own, merged), kind, model=merged)).latent
    assert relative(ours, theirs) < ROUNDING


@pytest.fixture(scope="module")
def fp8(sd1_folder):
    """The model in core's --fp8_e4m3fn-unet, and one of the same numbers in float32."""
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode(False):
        patched.setattr(comfy.cli_args.args, "fp8_e4m3fn_unet", True)
        loaded = load_folder(sd1_folder)
    assert loaded.model.model.diffusion_model.dtype == torch.float8_e4m3fn
    return loaded, written(sd1_folder, lambda _, value: value.to(torch.float8_e4m3fn).float())


@every_sort
def test_weights_in_fp8_are_the_edit_of_the_numbers_that_they_hold(own, fp8, kind):
    loaded, rounded = fp8
    ours, theirs = (
        edit(asked(own, inverted(own, model), kind, model=model)).latent
        for model in (loaded.model, rounded)
    )
    assert relative(ours, theirs) < ROUNDING
    assert relative(ours, edit(asked(own, inverted(own), kind)).latent) > SEEN


# --- rows that do not fit into one call


@every_kind
@pytest.mark.parametrize("batch", [1, 2])
def test_where_memory_is_short_the_edit_is_the_same(own, kind, batch, monkeypatch):
    """Core runs prompt and negative apart then, of source and target alike."""
    chain, sizes = inverted(own, batch=batch), []
    network = own.model.model.diffusion_model
    hook = network.register_forward_pre_hook(lambda _network, args: sizes.append(len(args[0])))
    made = asked(own, chain, kind)
    whole, joined = edit(made), [*sizes]
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda *_: 0)
    sizes.clear()
    split = edit(made)
    hook.remove()
    assert set(sizes) == {batch} and sum(sizes) == sum(joined) and max(joined) == 2 * batch
    assert relative(split.latent, whole.latent) < SPLIT
    if whole.bounds is not None:
        assert torch.equal(split.bounds, whole.bounds)


# --- pictures that do not fit into one call of the VAE


@pytest.fixture(scope="module")
def demo():
    """The embedded VAE: of random weights a tile would have nothing to do with its picture."""
    with torch.inference_mode(False):
        return load_folder(DEMO_WEIGHTS)


def test_latents_of_tiles_are_inverted_and_edited_as_any(own, demo):
    coarse = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.interpolate(coarse, (96, 128), mode="bicubic").clamp(0, 1)
    tile = 64, 16
    whole = nodes.VAEEncode().encode(demo.vae, picture.movedim(1, -1))[0]["samples"]
    tiled = nodes.VAEEncodeTiled().encode(demo.vae, picture.movedim(1, -1), *tile)[0]["samples"]
    assert tiled.shape == whole.shape and 0 < relative(tiled, whole) < 0.2  # norms see a tile
    outcome = edit(asked(own, inverted(own, latent=tiled), stack))
    assert torch.equal(outcome.source, tiled)
    assert relative(outcome.latent, tiled) > SEEN
    pictures = [
        nodes.VAEDecode().decode(demo.vae, {"samples": outcome.latent})[0],
        nodes.VAEDecodeTiled().decode(demo.vae, {"samples": outcome.latent}, *tile)[0],
    ]
    assert pictures[0].shape == pictures[1].shape == (1, 96, 128, 3)
    assert 0 < relative(*pictures) < 0.2
