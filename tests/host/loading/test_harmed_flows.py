"""Folders of flow transformers that anyone may have made: they load, or a sentence says why not."""

import json
import shutil

import pytest
import torch
from palimpsest.hosts.comfy.loading import transformer, weights
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.tests.host.loading.test_harmed_models import WRONG, harmless, refusal
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture
def flow(flow_folder, tmp_path):
    return shutil.copytree(flow_folder, tmp_path / "flow")


#: The fields of each file that are read, and what of the loading reads them.
READ = {
    "transformer/config.json": (
        transformer.load_transformer,
        [*transformer.FLUX, *transformer.SD3, "out_channels"],
    ),
    "scheduler/scheduler_config.json": (
        transformer.load_transformer,
        list(transformer.SCHEDULER),
    ),
    "model_index.json": (
        weights.read_index,
        ["_class_name", "transformer", "vae", "text_encoder", "text_encoder_2"],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_whatever_a_field_holds_is_loaded_or_refused(flow, name):
    load, keys = READ[name]
    wrong = {
        (key, what): harmless(load, flow, name, key, value)
        for key in keys
        for what, value in WRONG.items()
    }
    assert {place: error for place, error in wrong.items() if error} == {}


def test_every_weight_that_is_missing_or_misshapen_is_refused(flow):
    path = flow / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    for key, weight in whole.items():
        save_file({name: w for name, w in whole.items() if name != key}, path)
        assert refusal(flow, transformer.load_transformer), key
        save_file(whole | {key: weight[..., :-1].contiguous()}, path)
        assert refusal(flow, transformer.load_transformer), key
    save_file(whole | {"more": torch.zeros(1)}, path)
    assert "unknown (first: more)" in refusal(flow, transformer.load_transformer)
    save_file(whole, path)
    assert refusal(flow, load_folder) is None


def test_a_model_of_another_family_is_refused(flow):
    path = flow / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"_class_name": "SD3Transformer2DModel"}))
    assert refusal(flow, transformer.load_transformer)
