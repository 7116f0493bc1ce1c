"""Which folders load, and what the others are told."""

import json
import shutil

import comfy.model_detection
import comfy.supported_models
import folder_paths
import pytest
import torch
from palimpsest.hosts.comfy.loading.folder import (
    diffusers_folders,
    load_folder,
    resolve_diffusers_folder,
)
from palimpsest.hosts.comfy.loading.unet import load_unet
from palimpsest.hosts.comfy.loading.unet_shape import read_shape
from palimpsest.pipelines.errors import PalimpsestError
from safetensors.torch import load_file, save_file

#: What the unet/config.json of the published models has beside diffusers' defaults.
PUBLISHED = {
    "SD15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD20": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "SDXL": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_shapes_are_those_core_knows(name, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(PUBLISHED[name]))
    ours = read_shape(tmp_path).unet_config
    core = comfy.model_detection.model_config_from_unet_config(dict(ours), {})
    assert type(core) is getattr(comfy.supported_models, name)
    for key in ("num_heads", "num_head_channels", "attn_precision"):
        assert ours[key] == core.unet_config.get(key)
    if name == "SDXL":
        assert ours["transformer_depth_middle"] == 10
        assert ours["transformer_depth_output"] == [0, 0, 0, 2, 2, 2, 10, 10, 10]


def test_weights_may_lie_in_shards(sd1_folder, tmp_path):
    folder = shutil.copytree(sd1_folder, tmp_path / "sharded")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    keys = sorted(weights)
    shards = {"one.safetensors": keys[::2], "two.safetensors": keys[1::2]}
    for name, own in shards.items():
        save_file({key: weights[key] for key in own}, path.with_name(name))
    path.with_name(f"{path.name}.index.json").write_text(
        json.dumps({"weight_map": {key: name for name, own in shards.items() for key in own}})
    )
    path.unlink()
    whole, sharded = (load_unet(f).model.state_dict() for f in (sd1_folder, folder))
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(weight, sharded[key]) for key, weight in whole.items())


def test_half_precision_variants_are_found(sd1_folder, tmp_path):
    folder = shutil.copytree(sd1_folder, tmp_path / "half")
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = folder / part / f"{stem}.safetensors"
        save_file(
            {key: weight.half() for key, weight in load_file(path).items()},
            path.with_name(f"{stem}.fp16.safetensors"),
        )
        path.unlink()
    whole, half = (load_folder(f).model.model.state_dict() for f in (sd1_folder, folder))
    assert all(torch.equal(weight, half[key]) for key, weight in whole.items())


def drop_key(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["mid_block.resnets.0.conv1.bias"]
    weights["mid_block.resnets.7.conv1.bias"] = torch.zeros(1)
    save_file(weights, path)


def other_shape(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(path) | {"encoder.conv_in.bias": torch.zeros(5)}, path)


def other_text_shape(folder):
    path = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"final_layer_norm.bias": torch.zeros(5)}, path)


def pickled(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))


def truncated(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lost_shard(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    index = {"weight_map": {"conv_in.bias": "../../lost.safetensors"}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))


def changed(name, **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


DAMAGES = {
    "gone": (shutil.rmtree, r"does not exist: choose the folder of a diffusers pipeline"),
    "no index": (lambda f: (f / "model_index.json").unlink(), r"has no model_index\.json in"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), r"damaged .*JSON"),
    "flux": (
        changed("model_index.json", _class_name="FluxPipeline", unet=[None, None]),
        r"is a FluxPipeline whose unet is missing: it must be UNet2DConditionModel",
    ),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        r"holds no weights: it must hold diffusion_pytorch_model\.safetensors",
    ),
    "pickled": (pickled, r"only pickled weights \(diffusion_pytorch_model\.bin\)"),
    "lost shard": (lost_shard, r"weights .*/unet/lost\.safetensors are missing"),
    "truncated": (truncated, r"cannot be read .* must be a whole safetensors file"),
    "other keys": (
        drop_key,
        r"weights of unet .* 1 missing \(first: mid_block\.resnets\.0\.conv1\.bias\) "
        r"and 1 unknown \(first: mid_block\.resnets\.7\.conv1\.bias\)",
    ),
    "other shape": (other_shape, r"weights of vae .* 1 of another shape \(first: encoder\.conv_in"),
    "other text": (other_text_shape, r"weights of text_encoder .* 1 of another shape"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"holds no tokenizer"),
    "groups": (
        changed("unet/config.json", norm_num_groups=16),
        r"unet of this folder has norm_num_groups = 16, ComfyUI's own computes 32 only",
    ),
    "blocks": (
        changed("unet/config.json", up_block_types=["UpBlock2D", "AttnUpBlock2D"]),
        r"up_block_types = .*AttnUpBlock2D.* UpBlock2D or CrossAttnUpBlock2D only",
    ),
    "width": (
        changed("unet/config.json", cross_attention_dim=768),
        r"text encoders give 32 numbers a token, the unet reads 768",
    ),
    "channels": (
        changed("unet/config.json", in_channels=8),
        r"takes 8 channels: it must be 4, or 9 for an inpainting model",
    ),
    "flow": (
        changed("scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        r"prediction_type = 'flow_prediction': it must be epsilon or v_prediction",
    ),
    "no betas": (
        changed("scheduler/scheduler_config.json", beta_start=None, trained_betas=None),
        r"without betas: it must be one of DDIM's kind",
    ),
    "tiny": (
        changed(
            "vae/config.json",
            _class_name="AutoencoderTiny",
            act_fn="relu",
            num_encoder_blocks=[1, 1],
        ),
        r"vae of this folder has num_encoder_blocks = \[1, 1\]",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES)
def test_a_folder_that_cannot_be_loaded_says_why(sd1_folder, tmp_path, damage, sentence):
    folder = shutil.copytree(sd1_folder, tmp_path / "model")
    damage(folder)
    with pytest.raises(PalimpsestError, match=sentence):
        load_folder(folder)


def test_an_sdxl_folder_needs_both_encoders(sdxl_folder, tmp_path):
    folder = shutil.copytree(sdxl_folder, tmp_path / "model")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(PalimpsestError, match=r"has 1 text encoder\(s\), its unet reads 2"):
        load_folder(folder)


# --- names


@pytest.fixture
def model_root(tmp_path, monkeypatch):
    """ComfyUI's folder of diffusers models, with one in it, and another one outside."""
    root = tmp_path / "diffusers"
    for folder in (root / "people" / "tiny", root / "empty", tmp_path / "outside"):
        folder.mkdir(parents=True)
    for folder in (root / "people" / "tiny", tmp_path / "outside"):
        (folder / "model_index.json").write_text("{}")
    folders = dict(folder_paths.folder_names_and_paths, diffusers=([str(root)], ["folder"]))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    return root


def test_the_list_holds_the_folders_with_an_index(model_root):
    assert diffusers_folders() == ["people/tiny"]
    assert resolve_diffusers_folder("people/tiny") == model_root / "people" / "tiny"


@pytest.mark.parametrize("name", ["../outside", "people/../../outside", "/", "", "empty"])
def test_a_name_outside_the_list_is_refused(model_root, name):
    with pytest.raises(PalimpsestError, match="There is no diffusers model folder"):
        resolve_diffusers_folder(name)
