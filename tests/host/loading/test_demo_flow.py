"""The flow model of the demo, as its training writes it: diffusers and ComfyUI run it alike."""

import pytest
import torch
from comfy.ldm.flux.model import Flux
from comfy.model_detection import convert_diffusers_mmdit
from comfy.ops import disable_weight_init
from diffusers import FluxPipeline
from palimpsest.demo.flow import FlowPainter
from palimpsest.demo.flow_files import copy_parts, load_flow, load_texts, write_flow
from palimpsest.demo.model_files import WEIGHTS
from palimpsest.demo.train_flow import FlowPlan, new_transformer
from palimpsest.hosts.diffusers.transformer import packed, places
from palimpsest.tests.host.tiny import randomise

PLAN = FlowPlan()
TEXTS = ["", "a white star at the top and a black cross at the bottom on the sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole model, but with random weights in its transformer."""
    folder = tmp_path_factory.mktemp("flow")
    copy_parts(WEIGHTS, folder)
    write_flow(folder, FlowPainter(randomise(new_transformer(PLAN)), *load_texts(folder)))
    return folder


@pytest.fixture(scope="module")
def core(folder):
    """ComfyUI's own Flux with the folder's transformer."""
    flux = Flux(
        image_model="flux",
        in_channels=4,
        out_channels=4,
        patch_size=2,
        vec_in_dim=96,
        context_in_dim=96,
        hidden_size=32 * PLAN.heads,
        mlp_ratio=4.0,
        num_heads=PLAN.heads,
        depth=PLAN.blocks[0],
        depth_single_blocks=PLAN.blocks[1],
        axes_dim=[8, 12, 12],
        theta=10000,
        qkv_bias=True,
        guidance_embed=False,
        txt_ids_dims=[],
        operations=disable_weight_init,
        dtype=torch.float32,
    )
    state = dict(load_flow(folder).transformer.state_dict())
    flux.load_state_dict(convert_diffusers_mmdit(state))
    assert not state, "some weights have no place in ComfyUI's Flux"
    return flux.eval()


def latents(rows, columns):
    return torch.randn(2, 4, rows, columns, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_tokens_and_their_places_are_those_of_core(core, size):
    z = latents(*size)
    tokens, where = core.process_img(z)
    assert torch.equal(packed(z), tokens)
    assert torch.equal(places(size[0] // 2, size[1] // 2), where[0])


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_core_gives_the_same_velocity(folder, core, size):
    painter, z, t = load_flow(folder), latents(*size), torch.tensor([0.137, 0.9])
    words = painter.embed(TEXTS)
    with torch.no_grad():
        wanted = painter.velocity(z, t, words)
        found = core(z, t, words.states, words.pooled)
        late = core(z, t + 0.05, words.states, words.pooled)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()  # float32 through 7 blocks
    assert (late - wanted).abs().max() > 1e-2 * wanted.abs().max()  # the time is told as it is


def test_the_folder_is_small_and_a_pipeline_of_diffusers_runs_it(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 20e6
    pipeline = FluxPipeline.from_pretrained(folder, text_encoder_2=None, tokenizer_2=None)
    pipeline.to(dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    words = load_flow(folder).embed(TEXTS)
    options = {"height": 128, "width": 128, "num_inference_steps": 2, "output_type": "latent"}
    out = pipeline(prompt_embeds=words.states[1:], pooled_prompt_embeds=words.pooled[1:], **options)
    assert out.images.shape == (1, 64, 16)
    assert out.images.isfinite().all()
