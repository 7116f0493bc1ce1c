"""Folders that diffusers wrote compute in ComfyUI what they compute in diffusers."""

import json
import shutil
from contextlib import contextmanager

import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from palimpsest.hosts.comfy_models import (
    diffusers_folders,
    load_folder,
    resolve_diffusers_folder,
)
from palimpsest.hosts.comfy_unet import load_unet
from palimpsest.hosts.comfy_vae import load_vae
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import tiny
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

SHAPES = ["sd1_folder", "sd2_folder", "sdxl_folder"]
TEXT = "a photo of a (tiger), on the mat"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(params=SHAPES)
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny_vae_folder(tmp_path_factory):
    return tiny.make_sd1(tmp_path_factory.mktemp("models") / "tiny", vae=tiny.make_tiny_vae())


@pytest.fixture
def edited_folder(sd1_folder, tmp_path):
    """Copy the SD 1.x folder and edit one of its JSON files."""

    @contextmanager
    def edit(name):
        folder = shutil.copytree(sd1_folder, tmp_path / "edited")
        config = json.loads((folder / name).read_text())
        yield folder, config
        (folder / name).write_text(json.dumps(config))

    return edit


def relative_error(value, truth):
    return ((value - truth).abs().max() / truth.abs().max()).item()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet_inputs(folder, size=16):
    """Random latents, timesteps and text for a folder's UNet, and SDXL's pooled text."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    x = noise(2, config["in_channels"], size, size)
    context = noise(2, 77, config["cross_attention_dim"], seed=2)
    pooled = noise(2, 40, seed=3) if config["addition_embed_type"] else None
    return x, torch.tensor([7.0, 801.0]), context, pooled


def comfy_unet(model, x, t, context, pooled):
    """ComfyUI's network, with the size embedding from ComfyUI's own conditioning."""
    y = None
    if pooled is not None:
        conds = model.model.extra_conds(
            pooled_output=pooled, width=64, height=128, noise=x, device=x.device
        )
        y = conds["y"].cond
    return model.model.diffusion_model(x, t, context=context, y=y)


def diffusers_unet(folder):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()

    def predict(x, t, context, pooled):
        added = None
        if pooled is not None:
            sizes = torch.tensor([[128, 64, 0, 0, 128, 64]] * len(x)).float()
            added = {"text_embeds": pooled, "time_ids": sizes}
        return unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added).sample

    return predict


# --- networks


@pytest.mark.parametrize("size", [16, 24])
def test_the_unet_predicts_what_diffusers_predicts(folder, size):
    inputs = unet_inputs(folder, size)
    truth = diffusers_unet(folder)(*inputs)
    assert relative_error(comfy_unet(load_unet(folder), *inputs), truth) < 1e-5


def test_the_model_is_native(folder):
    loaded = load_folder(folder)
    xl = folder.name.startswith("sdxl")
    wanted = comfy.model_base.SDXL if xl else comfy.model_base.BaseModel
    assert isinstance(loaded.model.model, wanted)
    assert loaded.model.load_device == comfy.model_management.get_torch_device()
    assert type(loaded.clip) is comfy.sd.CLIP
    assert type(loaded.vae) is comfy.sd.VAE


def test_a_copy_with_weights_of_its_own_can_be_made(folder):
    """ComfyUI asks for one for hooks under dynamic VRAM and for other devices."""
    loaded = load_folder(folder)
    copy = loaded.model.clone(force_deepcopy=True)
    assert copy.model is not loaded.model.model
    inputs = unet_inputs(folder)
    assert torch.equal(comfy_unet(copy, *inputs), comfy_unet(loaded.model, *inputs))
    for patcher in (loaded.clip.patcher, loaded.vae.patcher):
        again = patcher.clone(force_deepcopy=True).model.state_dict()
        assert all(torch.equal(w, again[key]) for key, w in patcher.model.state_dict().items())


# --- text


def transformers_states(folder, part, ids):
    """Last hidden state, penultimate state and pooled output of transformers' own encoder."""
    config = json.loads((folder / part / "config.json").read_text())
    projected = config["architectures"] == ["CLIPTextModelWithProjection"]
    make = CLIPTextModelWithProjection if projected else CLIPTextModel
    encoder = make.from_pretrained(folder / part).eval()
    out = encoder(torch.tensor(ids), output_hidden_states=True)
    pooled = out.text_embeds if projected else out.pooler_output
    return out.last_hidden_state, out.hidden_states[-2], pooled


def test_the_text_is_read_as_transformers_reads_it(folder):
    clip = load_folder(folder).clip
    tokens = clip.tokenize(TEXT.replace("(", "\\(").replace(")", "\\)"))
    cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    ids = {key: [[t for t, _ in chunk] for chunk in chunks] for key, chunks in tokens.items()}
    if folder.name.startswith("sdxl"):
        _, first, _ = transformers_states(folder, "text_encoder", ids["l"])
        _, second, truth_pooled = transformers_states(folder, "text_encoder_2", ids["g"])
        truth = torch.cat([first, second], dim=-1)
    else:
        (only,) = ids.values()
        truth, _, truth_pooled = transformers_states(folder, "text_encoder", only)
    assert relative_error(cond, truth) < 1e-5
    assert relative_error(pooled, truth_pooled) < 1e-5


def test_the_tokens_are_those_of_the_folders_tokenizers(folder):
    clip = load_folder(folder).clip
    for key, chunks in clip.tokenize("a red tiger").items():
        tokenizer = getattr(clip.tokenizer, f"clip_{key}").tokenizer
        padded = tokenizer("a red tiger", padding="max_length", max_length=77)["input_ids"]
        assert [t for t, _ in chunks[0]] == padded


def test_the_padding_is_the_folders(sd1_folder, sd2_folder):
    last = {}
    for folder in (sd1_folder, sd2_folder):
        (chunks,) = load_folder(folder).clip.tokenize("a cat").values()
        last[folder] = chunks[0][-1][0], chunks[0][3][0]  # the padding, and the end token
    assert last[sd1_folder][0] == last[sd1_folder][1]
    assert last[sd2_folder][0] == 0


# --- pictures


def check_vae(vae, reference, encode):
    """Encoding, and decoding before ComfyUI clamps it, in [-1, 1] with channels first."""
    pixels = noise(1, 3, 64, 48).sigmoid()
    latent = vae.encode(pixels.movedim(1, -1))
    assert latent.shape == (1, 4, 8, 6)
    assert relative_error(latent, encode(pixels * 2 - 1)) < 1e-4
    decoded = vae.decode(latent).movedim(-1, 1)
    truth = reference.decode(latent).sample / 2 + 0.5
    inside = (truth > 0) & (truth < 1)
    assert inside.float().mean() > 0.2
    assert relative_error(decoded, truth.clamp(0, 1)) < 1e-4


def test_the_vae_is_diffusers_autoencoder(folder):
    reference = AutoencoderKL.from_pretrained(folder / "vae").eval()
    check_vae(load_vae(folder), reference, lambda x: reference.encode(x).latent_dist.mean)


def test_the_vae_may_be_an_autoencoder_tiny(tiny_vae_folder):
    reference = AutoencoderTiny.from_pretrained(tiny_vae_folder / "vae").eval().float()
    loaded = load_folder(tiny_vae_folder)
    check_vae(loaded.vae, reference, lambda x: reference.encode(x).latents)
    latent = noise(1, 4, 8, 8)
    assert torch.equal(loaded.model.model.process_latent_in(latent), latent)


@pytest.mark.parametrize(("shape", "scale"), [("sd1_folder", 0.18215), ("sdxl_folder", 0.13025)])
def test_the_model_scales_latents_as_the_vae_says(shape, scale, request):
    model = load_unet(request.getfixturevalue(shape)).model
    latent = noise(1, 4, 8, 8)
    assert torch.equal(model.process_latent_in(latent), latent * scale)
    assert relative_error(model.process_latent_out(model.process_latent_in(latent)), latent) < 1e-6
    assert len(model.latent_format.latent_rgb_factors) == 4


def test_latents_with_a_mean_and_a_deviation_are_normalised(edited_folder):
    with edited_folder("vae/config.json") as (folder, config):
        config |= {"latents_mean": [1, 2, 3, 4], "latents_std": [2, 2, 2, 4]}
    model = load_unet(folder).model
    latent = torch.tensor([3.0, 4.0, 5.0, 8.0]).reshape(1, 4, 1, 1)
    assert torch.allclose(model.process_latent_in(latent), torch.full_like(latent, 0.18215))
    assert torch.allclose(model.process_latent_out(model.process_latent_in(latent)), latent)


# --- noise


SCHEDULES = {
    "scaled_linear": {},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": [0.01 * (n + 1) for n in range(20)], "num_train_timesteps": 20},
    "short": {"num_train_timesteps": 100},
    "zero_snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("change", SCHEDULES.values(), ids=SCHEDULES)
def test_the_noise_levels_are_the_schedulers(edited_folder, change):
    with edited_folder("scheduler/scheduler_config.json") as (folder, config):
        config |= change
    betas = DDIMScheduler.from_pretrained(folder / "scheduler").betas.double()
    alphas = torch.cumprod(1 - betas, dim=0)
    if "rescale_betas_zero_snr" in change:
        assert alphas[-1] == 0
        alphas[-1] = 4.8973451890853435e-08  # what ComfyUI puts for it
    truth = ((1 - alphas) / alphas) ** 0.5
    sampling = load_unet(folder).model.model_sampling
    assert sampling.num_timesteps == len(truth)
    assert ((sampling.sigmas - truth) / truth).abs().max() < 1e-4


def test_a_v_model_denoises_as_its_scheduler_would(sd2_folder):
    """ComfyUI's x0 from x = z √(1 + σ²) is DDIM's x0 from z."""
    model = load_unet(sd2_folder)
    assert model.model.model_type == comfy.model_base.ModelType.V_PREDICTION
    x, _, context, _ = unet_inputs(sd2_folder)
    t = torch.tensor([400, 400])
    scheduler = DDIMScheduler.from_pretrained(sd2_folder / "scheduler")
    scheduler.set_timesteps(1000)
    v = diffusers_unet(sd2_folder)(x, t, context, None)
    truth = scheduler.step(v, 400, x).pred_original_sample
    sigma = model.model.model_sampling.sigmas[t]
    scale = (1 + sigma**2).sqrt().reshape(2, 1, 1, 1)
    denoised = model.model.apply_model(x * scale, sigma, c_crossattn=context)
    assert relative_error(denoised, truth) < 1e-4


# --- together


def test_core_samples_with_it(folder):
    loaded = load_folder(folder)
    positive, negative = (
        loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))
        for text in ("a red cat", "")
    )
    latent = torch.zeros(1, 4, 8, 8)
    sampled = comfy.sample.sample(
        loaded.model, noise(1, 4, 8, 8), 4, 5.0, "euler", "normal", positive, negative, latent
    )
    assert torch.isfinite(sampled).all()
    assert loaded.vae.decode(sampled).shape == (1, 64, 64, 3)


def test_a_lora_file_is_added_to_the_weights_it_names(sd1_folder, tmp_path):
    theirs = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    lora = {}
    for key, wide, narrow in (
        (f"lora_unet_{theirs.replace('.', '_')}", 64, 32),
        (f"lora_te_{layer.replace('.', '_')}", 32, 32),
    ):
        lora |= {
            f"{key}.lora_up.weight": noise(wide, 2),
            f"{key}.lora_down.weight": noise(2, narrow, seed=2),
        }
    loaded = load_folder(sd1_folder)
    model, clip = comfy.sd.load_lora_for_models(loaded.model, loaded.clip, lora, 0.5, 0.5)

    patched = shutil.copytree(sd1_folder, tmp_path / "patched")
    path = patched / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights[f"{theirs}.weight"] += 0.5 * noise(64, 2) @ noise(2, 32, seed=2)
    save_file(weights, path, metadata={"format": "pt"})
    inputs = unet_inputs(sd1_folder)
    truth = diffusers_unet(patched)(*inputs)
    comfy.model_management.load_models_gpu([model])
    assert relative_error(comfy_unet(model, *inputs), truth) < 1e-5
    comfy.model_management.load_models_gpu([loaded.model])
    assert relative_error(comfy_unet(loaded.model, *inputs), truth) > 1e-2
    tokens = clip.tokenize("a cat")
    assert relative_error(clip.encode_from_tokens(tokens), loaded.clip.encode("a cat")) > 1e-2


# --- files


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
    inputs = unet_inputs(folder)
    whole, sharded = (comfy_unet(load_unet(f), *inputs) for f in (sd1_folder, folder))
    assert torch.equal(whole, sharded)


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
    inputs = unet_inputs(folder)
    loaded = load_folder(folder)
    assert (
        relative_error(comfy_unet(loaded.model, *inputs), diffusers_unet(sd1_folder)(*inputs))
        < 1e-2
    )


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
    "flow": (
        changed("scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        r"prediction_type = 'flow_prediction': it must be epsilon or v_prediction",
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
