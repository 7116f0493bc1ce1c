"""Model folders that anyone may have made: they load, or one sentence says why they do not."""

import json
import os
import pickle
import shutil
import time

import folder_paths
import pytest
import torch
from palimpsest.hosts.comfy.loading import clip, noise_schedule, unet, unet_shape, vae, weights
from palimpsest.hosts.comfy.loading import folder as whole_folder
from palimpsest.hosts.comfy.loading.folder import (
    diffusers_folders,
    load_folder,
    resolve_diffusers_folder,
)
from palimpsest.hosts.comfy.loading.search import DEEPEST, MOST, model_folders
from palimpsest.pipelines.errors import PalimpsestError

#: Processor seconds that no folder may take; a tiny one takes less than one to load.
PATIENCE = 5.0

WRONG = {
    "null": None,
    "true": True,
    "nothing": 0,
    "one": 1,
    "negative": -1,
    "a million": 10**6,
    "more than a word": 2**64,
    "400 digits": 10**400,
    "a fraction": 0.5,
    "a whole fraction": 4.0,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "large": 1e300,
    "no text": "",
    "a long text": "x" * 100_000,
    "no list": [],
    "a list of null": [None],
    "a list of lists": [[1], [[2]]],
    "a list of text": ["a", "b"],
    "a list of huge numbers": [10**6] * 2,
    "a list of true": [True, False],
    "a long list": [1] * 100_000,
    "an object": {},
    "a full object": {"a": {"b": 1}},
}


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture
def sd1(sd1_folder, tmp_path):
    return shutil.copytree(sd1_folder, tmp_path / "sd1")


@pytest.fixture
def sdxl(sdxl_folder, tmp_path):
    return shutil.copytree(sdxl_folder, tmp_path / "sdxl")


def refusal(folder, load=load_folder):
    """What a folder is refused with; None where it loads."""
    try:
        load(folder)
    except PalimpsestError as error:
        said = str(error).replace(str(folder), "")
        assert said.endswith("."), said
        assert len(said) < 600, said
        return said
    return None


def harmless(load, folder, name, key, value):
    """Put a value into a config, and return what went wrong beside a sentence; then put it back."""
    path = folder / name
    good = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(json.loads(good) | {key: value}), encoding="utf-8")
    began = time.process_time()
    try:
        refusal(folder, load)
        spent = time.process_time() - began
        return None if spent < PATIENCE else f"took {spent:.0f} s"
    except Exception as error:
        return repr(error)[:200]
    finally:
        path.write_text(good, encoding="utf-8")


def load_latents(folder):
    vae.latent_format(folder, xl=False)
    vae.load_vae(folder)


#: The fields of each file that are read, and what of the loading reads them.
READ = {
    "unet/config.json": (
        load_folder,
        [*unet_shape.FIELDS, "addition_embed_type", "norm_eps", "class_embed_type"],
    ),
    "vae/config.json": (load_latents, [*vae.FIELDS, "act_fn", "down_block_types"]),
    "scheduler/scheduler_config.json": (unet.load_unet, list(noise_schedule.FIELDS)),
    "text_encoder/config.json": (load_folder, list(clip.FIELDS)),
    "model_index.json": (weights.read_index, ["_class_name", "unet", "vae", "text_encoder"]),
    "tokenizer/tokenizer_config.json": (
        clip.load_clip,
        ["pad_token", "bos_token", "model_max_length"],
    ),
}


LOADERS = {"unet": "load_unet", "text_encoder": "load_clip", "vae": "load_vae"}


def load_once(path, monkeypatch, but):
    """Have `load_folder` load one part anew each time; the others do not read its files."""
    for part, name in LOADERS.items():
        if part != but:
            loaded = getattr(whole_folder, name)(path)
            monkeypatch.setattr(whole_folder, name, lambda _, loaded=loaded: loaded)


@pytest.mark.parametrize("name", READ)
def test_whatever_a_field_holds_is_loaded_or_refused(sd1, name, monkeypatch):
    load, keys = READ[name]
    if load is load_folder:
        load_once(sd1, monkeypatch, but=name.split("/")[0])
    wrong = {
        (key, what): harmless(load, sd1, name, key, value)
        for key in keys
        for what, value in WRONG.items()
    }
    assert {place: error for place, error in wrong.items() if error} == {}


def test_whatever_a_field_of_an_sdxl_unet_holds_is_loaded_or_refused(sdxl, monkeypatch):
    load_once(sdxl, monkeypatch, but="unet")
    keys = [
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "attention_head_dim",
    ]
    wrong = {
        (key, what): harmless(load_folder, sdxl, "unet/config.json", key, value)
        for key in keys
        for what, value in WRONG.items()
    }
    assert {place: error for place, error in wrong.items() if error} == {}


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_refusal_names_file_field_value_and_what_it_must_be(sd1):
    change(sd1, "unet/config.json", cross_attention_dim="32")
    assert refusal(sd1) == (
        "The file /unet/config.json has cross_attention_dim = '32': it must be a whole number of 1 "
        "to 65536, or a list of 1 to 16, each a whole number of 1 to 65536; download it again or "
        "choose another model."
    )


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("unet/config.json", {"layers_per_block": 10**6}, "layers_per_block = 1000000: it must be"),
        ("unet/config.json", {"transformer_layers_per_block": 64}, None),
        (
            "unet/config.json",
            {"layers_per_block": 32, "transformer_layers_per_block": 64},
            "ComfyUI's own has 1000 blocks in all only",
        ),
        ("unet/config.json", {"block_out_channels": [16384, 16384]}, "weights of unet do not fit"),
        ("unet/config.json", {"attention_head_dim": [3, 4]}, "that divide the widths [32, 64]"),
        ("unet/config.json", {"attention_head_dim": [4]}, "a list of 2, one for each level"),
        (
            "unet/config.json",
            {"transformer_layers_per_block": [[1, 1], 1]},
            "ComfyUI's own has 1 a level of down_block_types only",
        ),
        ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "it must be a whole number"),
        ("text_encoder/config.json", {"vocab_size": 2**21}, "weights of text_encoder do not fit"),
        ("text_encoder/config.json", {"num_attention_heads": 5}, "divides the hidden_size 32"),
        ("vae/config.json", {"layers_per_block": 10**6}, "layers_per_block = 1000000: it must be"),
        ("vae/config.json", {"block_out_channels": [8192] * 16}, "vae"),
        ("vae/config.json", {"latents_mean": [0.0]}, "a list of one number a latent channel"),
        ("vae/config.json", {"latents_std": [1.0, 1.0, 0.0, 1.0]}, "each a number of 1e-06 to"),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 10**12},
            "num_train_timesteps = 1000000000000: it must be a whole number of 2 to 100000",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": 1.0}, "it must be a number of 1e-09 to"),
    ],
)
def test_a_network_beyond_all_bounds_is_refused_before_it_is_built(sd1, name, values, words):
    change(sd1, name, **values)
    began = time.process_time()
    said = refusal(sd1)
    assert time.process_time() - began < PATIENCE
    assert words is None or words in said, said


FILES = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a long integer": '{"a": ' + "9" * 5000 + "}",
    "a list": "[]",
    "empty": "",
    "null": "null",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
@pytest.mark.parametrize("name", [*READ, "tokenizer/vocab.json", "tokenizer/merges.txt"])
def test_a_file_that_is_no_object_is_refused(sd1, name, text):
    (sd1 / name).write_text(text)
    refusal(sd1)  # transformers takes an empty merges.txt
    if not name.startswith("tokenizer"):
        assert "damaged" in refusal(sd1) or "must hold a JSON object" in refusal(sd1)


def test_a_file_that_is_no_text_is_refused(sd1):
    (sd1 / "unet" / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    assert "is damaged (it is no text)" in refusal(sd1)


def test_a_file_of_gigabytes_is_not_read(sd1):
    with (sd1 / "unet" / "config.json").open("r+b") as file:
        file.truncate(2**40)
    assert "it is larger than" in refusal(sd1)

    # --- weights


def index_of(folder, weight_map):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "shard", ["weights.bin", "weights.ckpt", "weights.pt", "weights", "..", ""]
)
def test_a_shard_that_is_no_safetensors_file_is_never_opened(sd1, monkeypatch, shard):
    """What core reads by name alone: all else than safetensors goes to torch.load."""
    opened = []
    monkeypatch.setattr(torch, "load", lambda *a, **k: opened.append(a) or {})
    (sd1 / "unet" / "weights.bin").write_bytes(pickle.dumps({"a": 1}))
    shutil.copy(sd1 / "unet" / "weights.bin", sd1 / "unet" / "weights.ckpt")
    index_of(sd1, {"conv_in.bias": shard})
    assert "a .safetensors file: other weights can run code when they are read" in refusal(sd1)
    assert opened == []


@pytest.mark.parametrize(
    "shard", ["../../out.safetensors", "/out.safetensors", "a\\out.safetensors"]
)
def test_a_shard_is_looked_for_in_the_folder_alone(sd1, shard):
    index_of(sd1, {"conv_in.bias": shard})
    assert "The weights /unet/out.safetensors are missing" in refusal(sd1)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".safetensors", "a\0b.safetensors", "\ud800.safetensors"]
)
def test_a_shard_whose_name_is_none_is_refused(sd1, name):
    index_of(sd1, {"conv_in.bias": name})
    assert refusal(sd1)


@pytest.mark.parametrize("weight_map", WRONG.values(), ids=WRONG)
def test_an_index_that_names_no_files_is_refused(sd1, weight_map):
    index_of(sd1, weight_map)
    assert refusal(sd1)
    index_of(sd1, {"conv_in.bias": weight_map})
    assert refusal(sd1)


def test_pickled_weights_under_the_name_of_others_are_refused(sd1):
    path = sd1 / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}) + b"\0" * 100)
    assert "cannot be read" in refusal(sd1)


def test_a_sparse_file_of_weights_is_refused(sd1):
    with (sd1 / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(2**40)
    assert "cannot be read (its tensors need" in refusal(sd1)


# --- the search for folders


@pytest.fixture
def root(tmp_path, monkeypatch):
    """ComfyUI's folder of diffusers models."""
    root = tmp_path / "diffusers"
    root.mkdir()
    folders = dict(folder_paths.folder_names_and_paths, diffusers=([str(root)], ["folder"]))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    return root


def model(folder):
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_links_to_the_folder_that_they_lie_in_are_not_walked_for_ever(root):
    model(root / "people" / "cat")
    for folder in (root, root / "people"):
        for name in ("here", "there"):
            (folder / name).symlink_to(".")
    (root / "people" / "up").symlink_to(root)
    (root / "loop").symlink_to(root / "loop")
    assert diffusers_folders() == ["people/cat"]


def test_links_to_other_disks_are_followed_each_by_its_own_name(root, tmp_path):
    cat = model(tmp_path / "disk" / "cat")
    (root / "one").symlink_to(cat.parent)
    (root / "two").symlink_to(cat.parent)
    (root / "cat").symlink_to(cat)
    assert diffusers_folders() == ["cat", "one/cat", "two/cat"]
    assert resolve_diffusers_folder("two/cat").samefile(cat)


def test_folders_that_double_at_every_step_come_to_an_end(root, caplog):
    """A chain of folders with two links each to the next: 2^40 ways, none of them a loop."""
    for n in range(40):
        (root / f"{n}").mkdir()
        for name in ("a", "b"):
            (root / f"{n}" / name).symlink_to(root / f"{n + 1}")
    model(root / "40")
    assert "40" in diffusers_folders()
    assert f"looked through {MOST} folders" in caplog.text


def test_the_search_goes_as_deep_as_people_do(root):
    deep = root.joinpath(*"abcdefghij")
    model(deep)
    model(root.joinpath(*["x"] * (DEEPEST + 5)))
    assert [path.relative_to(root) for path in model_folders(root)] == [deep.relative_to(root)]


def test_a_folder_that_cannot_be_read_hides_no_other(root):
    model(root / "a")
    os.mkfifo(root / "model.json")
    (root / "nowhere").symlink_to(root / "gone")
    model(root / "z")
    assert diffusers_folders() == ["a", "z"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 10_000, "\ud800", "../a", "/"])
def test_a_name_that_is_none_is_refused_in_one_sentence(root, name):
    for n in range(200):
        model(root / f"model {n}")
    with pytest.raises(PalimpsestError, match="There is no diffusers model folder") as caught:
        resolve_diffusers_folder(name)
    assert len(str(caught.value).replace(str(root), "")) < 350
