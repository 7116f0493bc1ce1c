"""Our controls beside published controllers, through whole maps of all rows, in whole edits."""

import pytest
import torch
from palimpsest.benchmarks.published_controls import (
    PublishedMasaCtrl,
    PublishedPlugAndPlay,
    PublishedPromptToPrompt,
    published_edit,
    residual_hook,
)
from palimpsest.hosts.diffusers.attention import residual_blocks, transformer_blocks
from palimpsest.pipelines.attention.local_blend import LocalBlend, blend_columns
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.stack import stacked
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import relative

STEPS, CFG = 5, 3.0

#: Maps and fused attention in float32, over five steps of random weights at little noise.
EXACT = 1e-4


@pytest.fixture
def edits(sd1_folder):
    """A network, the same edit by ours and by a published controller."""
    model = agree.headless(sd1_folder)
    unet = model.unet
    texts = (agree.SOURCE, "a red heart on blue grass", "")
    source, target, empty = (model.prompt(text, size=(256, 256)) for text in texts)
    noise = torch.Generator().manual_seed(0)
    x0, other = (torch.randn(1, 4, 32, 32, generator=noise) for _ in range(2))
    timesteps = [1, 41, 81, 121, 161]
    sigmas = torch.cat([torch.zeros(1).double(), unet.sigmas[timesteps]])
    chain = torch.stack([x0 + float(sigma) * other for sigma in sigmas])
    trajectory = Trajectory(chain, sigmas, x0, Recipe("made up"))

    def ours(control):
        edit = unet.edit(trajectory, source, target, empty, cfg=CFG, control=control)
        return edit.run().latent

    def published(controller):
        rows = [empty, empty, source, target]
        if isinstance(controller, PublishedPlugAndPlay):
            rows = [source, empty, target]
        text = torch.cat([prompt.embedding for prompt in rows])
        return published_edit(unet.unet, controller, trajectory, timesteps, text, CFG)

    return unet.unet, (source.tokens, target.tokens), ours, published


@pytest.mark.parametrize("mode", ["refine", "replace"])
@pytest.mark.parametrize("blends", [False, True])
def test_prompt_to_prompt_and_its_blend(edits, blends, mode):
    _, tokens, ours, published = edits
    if mode == "replace":
        tokens = (tokens[0], tokens[0])
    weights = {"heart": 2.0}
    rewrite = rewrite_prompt(*tokens, mode=mode, weights=weights)
    control, controller = rewrite, PublishedPromptToPrompt(rewrite)
    if blends:
        columns = [blend_columns([p], ["heart"], [], role="prompt") for p in tokens]
        control = stacked([rewrite, LocalBlend(*columns, threshold=0.9)])
        words = torch.cat(columns)[..., 0]
        controller = PublishedPromptToPrompt(rewrite, words, threshold=0.9, start=1, halvings=1)
    expected = published(controller)
    assert relative(ours(control), expected) < EXACT
    assert relative(ours(None), expected) > 10 * EXACT


def test_masactrl(edits):
    network, _, ours, published = edits
    layers = len(transformer_blocks(network))
    control = MasaCtrl((0.2, 1.0), (0.5, 1.0))
    expected = published(PublishedMasaCtrl(1, layers // 2))
    assert relative(ours(control), expected) < EXACT
    assert relative(ours(None), expected) > 10 * EXACT


def test_plug_and_play(edits):
    network, _, ours, published = edits
    layers, blocks = len(transformer_blocks(network)), residual_blocks(network)
    control = PlugAndPlay((0.0, 0.6), (0.0, 0.8), (0.5, 1.0), 0.6)
    controller = PublishedPlugAndPlay(layers // 2, 3, 4, blocks[int(0.6 * len(blocks))])
    undo = residual_hook(controller)
    expected = published(controller)
    undo()
    assert relative(ours(control), expected) < EXACT
    assert relative(ours(None), expected) > 10 * EXACT
