"""Folders that diffusers wrote compute in ComfyUI what they compute in diffusers."""

import json
import shutil

import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.cli_args import args
from diffusers import DDIMScheduler, UNet2DConditionModel
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.loading.unet import load_unet
from palimpsest.tests.host import agree, tiny
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


def open_unet(folder):
    return UNet2DConditionModel.from_pretrained(folder / "unet").eval()


def diffusers_unet(unet, x, t, context, pooled):
    added = None
    if pooled is not None:
        sizes = torch.tensor([[128, 64, 0, 0, 128, 64]] * len(x)).float()
        added = {"text_embeds": pooled, "time_ids": sizes}
    return unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added).sample


# --- networks


def both_in_float64(folder, inputs, monkeypatch):
    """ComfyUI's MODEL, and what it and diffusers' network predict, free of float32's rounding."""
    model, theirs = load_unet(folder), open_unet(folder)
    agree.in_float64(model.model.diffusion_model, monkeypatch)
    inputs = [part if part is None else part.double() for part in inputs]
    return model, comfy_unet(model, *inputs), diffusers_unet(theirs.double(), *inputs)


@pytest.mark.parametrize("size", [16, 24])
def test_the_unet_predicts_what_diffusers_predicts(folder, size, monkeypatch):
    _, ours, theirs = both_in_float64(folder, unet_inputs(folder, size), monkeypatch)
    assert ours.dtype == theirs.dtype == torch.float64
    assert relative_error(ours, theirs) < agree.FLOAT64


VARIANTS = {
    "heads of every kind": {"attention_head_dim": (2, 8)},
    "no middle": {"mid_block_type": None},
    "bare middle": {"mid_block_type": "UNetMidBlock2D"},
    "inpainting": {"in_channels": 9},
    "depths of every layer": {
        "layers_per_block": 2,
        "transformer_layers_per_block": ((2, 1), (1, 1)),
        "reverse_transformer_layers_per_block": ((1, 1, 1), (1, 2, 3)),
        "mid_block_type": None,
    },
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variations_of_the_unet_are_known(sd1_folder, tmp_path, variant, monkeypatch):
    folder = shutil.copytree(sd1_folder, tmp_path / "variant")
    config = dict(UNet2DConditionModel.load_config(folder / "unet"))
    tiny.randomise(UNet2DConditionModel.from_config(config | variant)).save_pretrained(
        folder / "unet"
    )
    model, ours, theirs = both_in_float64(folder, unet_inputs(folder), monkeypatch)
    assert relative_error(ours, theirs) < agree.FLOAT64
    assert bool(model.model.concat_keys) == (variant.get("in_channels") == 9)


def test_the_model_is_native(folder):
    loaded = load_folder(folder)
    xl = folder.name.startswith("sdxl")
    wanted = comfy.model_base.SDXL if xl else comfy.model_base.BaseModel
    assert isinstance(loaded.model.model, wanted)
    assert loaded.model.load_device == comfy.model_management.get_torch_device()
    assert type(loaded.clip) is comfy.sd.CLIP
    assert type(loaded.vae) is comfy.sd.VAE


def test_cores_flags_choose_the_precision(folder, monkeypatch):
    monkeypatch.setattr(args, "bf16_unet", True)
    monkeypatch.setattr(args, "fp32_text_enc", True)
    loaded = load_folder(folder)
    assert loaded.model.model.get_dtype() == torch.bfloat16
    assert loaded.clip.cond_stage_model.dtypes == {torch.float32}
    x, _, context, pooled = unet_inputs(folder)
    added = {} if pooled is None else {"y": loaded.model.model.encode_adm(pooled_output=pooled)}
    denoised = loaded.model.model.apply_model(x, torch.ones(2), c_crossattn=context, **added)
    assert denoised.dtype == torch.float32


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


# --- together


def test_a_v_model_denoises_as_its_scheduler_would(sd2_folder):
    """ComfyUI's x0 from x = z √(1 + σ²) is DDIM's x0 from z."""
    model = load_unet(sd2_folder)
    assert model.model.model_type == comfy.model_base.ModelType.V_PREDICTION
    x, _, context, _ = unet_inputs(sd2_folder)
    t = torch.tensor([400, 400])
    scheduler = DDIMScheduler.from_pretrained(sd2_folder / "scheduler")
    scheduler.set_timesteps(1000)
    v = diffusers_unet(open_unet(sd2_folder), x, t, context, None)
    truth = scheduler.step(v, 400, x).pred_original_sample
    sigma = model.model.model_sampling.sigmas[t]
    scale = (1 + sigma**2).sqrt().reshape(2, 1, 1, 1)
    denoised = model.model.apply_model(x * scale, sigma, c_crossattn=context)
    assert relative_error(denoised, truth) < 1e-4


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
    truth = diffusers_unet(open_unet(patched), *inputs)
    comfy.model_management.load_models_gpu([model])
    assert relative_error(comfy_unet(model, *inputs), truth) < 1e-5
    comfy.model_management.load_models_gpu([loaded.model])
    assert relative_error(comfy_unet(loaded.model, *inputs), truth) > 1e-2
    tokens = clip.tokenize("a cat")
    assert relative_error(clip.encode_from_tokens(tokens), loaded.clip.encode("a cat")) > 1e-2
