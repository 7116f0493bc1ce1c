"""The embedded model: both hosts run it alike."""

from pathlib import Path

import pytest
import torch
from palimpsest.demo import scenes
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.diffusers import folder as diffusers_host
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
