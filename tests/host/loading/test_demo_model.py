"""The embedded models: both hosts run them alike."""

import json
import re
import shutil
from pathlib import Path

import comfy.sample
import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from palimpsest.demo import scenes
from palimpsest.demo.flow_files import load_flow
from palimpsest.demo.judge import judge
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.diffusers import folder as diffusers_host
from palimpsest.hosts.diffusers.transformer import Words, load_transformer
from palimpsest.nodes.load import DEMO_MODELS, LoadDemoModel
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.schedule import sigma_from_t
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, relative

WEIGHTS = Path(__file__).resolve().parents[3] / "demo" / "weights"


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def demo():
    return load_folder(WEIGHTS)


def picture():
    scene = scenes.Scene.random(7).with_(
        color="red", shape="heart", texture="plain", background="grass"
    )
    return scenes.render(scene)[0].unsqueeze(0)


def test_both_hosts_encode_and_decode_alike(demo):
    other = diffusers_host.load_folder(WEIGHTS)
    latent = demo.vae.encode(picture())
    assert relative(latent, other.encode(picture())) < 1e-5
    assert relative(demo.vae.decode(latent), other.decode(latent)) < 1e-5


def test_both_hosts_make_the_same_edit(demo):
    latent = demo.vae.encode(picture())
    setting = agree.Setting(latent, steps=10, strength=1.0, cfg=5.0)
    sigmas = schedule(demo.model, "simple", setting.steps, setting.strength)
    ours = agree.in_comfy(demo, setting)
    theirs = agree.in_diffusers(WEIGHTS, setting, sigmas, 1.0)
    assert ours[2] == theirs[2]
    assert relative(ours[0], theirs[0]) < HOSTS_AGREE
    assert torch.equal(ours[1], latent)
    free = agree.in_comfy(demo, agree.Setting(latent, steps=10, strength=1.0, control=False))
    assert relative(free[0], ours[0]) > 30 * HOSTS_AGREE


def test_words_are_whole_tokens(demo):
    tokens = [
        agree.prompt_tokens(demo.clip, scenes.caption(scene)) for scene in scenes.every_content()
    ]
    assert all(len(word.positions) == 1 for prompt in tokens for word in prompt.words)


# --- the flow transformer


@pytest.fixture(scope="module")
def flow():
    return load_folder(DEMO_MODELS["flow transformer"])


def test_the_node_gives_either_and_the_unet_where_nothing_is_said():
    given = {kind: LoadDemoModel.execute(kind=kind).args[0] for kind in DEMO_MODELS}
    assert isinstance(given["UNet"].model.diffusion_model, UNetModel)
    assert isinstance(given["flow transformer"].model.diffusion_model, Flux)
    said_nothing = LoadDemoModel.execute().args[0]  # as graphs from before
    assert isinstance(said_nothing.model.diffusion_model, UNetModel)


def test_cores_own_sampler_paints_what_the_prompt_says(flow):
    positive, negative = (agree.encode(flow.clip, text) for text in ("a red heart on sand", ""))
    empty = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(empty, 3)
    options = (30, 4.0, "euler", "simple", positive, negative, empty)
    painted = flow.vae.decode(comfy.sample.sample(flow.model, noise, *options, seed=3))
    found = judge(painted[0])
    assert (found.color, found.shape, found.background) == ("red", "heart", "sand")


def test_it_is_the_folder_that_diffusers_reads(flow):
    folder = DEMO_MODELS["flow transformer"]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 20e6
    model, painter = load_transformer(folder / "transformer"), load_flow(folder)
    made = painter.embed(["a red heart on sand"])
    ((embedding, more),) = agree.encode(flow.clip, "a red heart on sand")
    assert relative(embedding, made.states) < 1e-5
    assert relative(more["pooled_output"], made.pooled) < 1e-5
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.6])
    shown = {"c_crossattn": embedding, "y": more["pooled_output"]}
    denoised = flow.model.model.apply_model(z, t, **shown)
    sigma = sigma_from_t(t[0])
    theirs = model.denoiser(Words(made.states, made.pooled))(z * (1 + sigma), sigma)
    assert relative(denoised, theirs) < HOSTS_AGREE


def test_a_flow_folder_whose_parts_do_not_fit_says_so(tmp_path):
    folder = shutil.copytree(DEMO_MODELS["flow transformer"], tmp_path / "flow")
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for changes, said in (
        ({"joint_attention_dim": 64}, "gives 96 numbers a token, the transformer reads 64"),
        ({"axes_dims_rope": [8, 8, 8]}, "three numbers whose sum is attention_head_dim 32"),
        ({"num_layers": 4}, "The weights of transformer do not fit its config.json"),
        ({"_class_name": "ZImageTransformer2DModel"}, "it must be FluxTransformer2DModel or"),
        ({"in_channels": "16"}, "in_channels = '16': it must be a whole number"),
    ):
        path.write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(PalimpsestError, match=re.escape(said)):
            load_folder(folder)
    path.write_text(json.dumps(config), encoding="utf-8")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    parts["text_encoder_2"] = ["transformers", "T5EncoderModel"]
    index.write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(PalimpsestError, match="text_encoder_2 is T5EncoderModel: it must be none"):
        load_folder(folder)
