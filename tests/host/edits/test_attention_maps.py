"""Attention Maps in both hosts, on the embedded model, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from palimpsest.demo.model_files import WEIGHTS
from palimpsest.demo.scenes import Scene, caption, render
from palimpsest.hosts.comfy.attention_maps import (
    ViewRequest,
    attention_maps,
    found,
    heat_pictures,
    heat_sheet,
)
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.features import feature_store
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.drawing.heat import COLORS, heat_over
from palimpsest.pipelines.attention.features import FeatureRecorder
from palimpsest.pipelines.attention.viewer import view_words
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative
from palimpsest.tests.host.shapes import make_wan

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4


def request_for(loaded, trajectory, text=agree.SOURCE, **wishes):
    usual = {"words": [], "window": (0.0, 1.0), "steps": STEPS, "layers": (0.0, 1.0)}
    return ViewRequest(
        loaded.model, loaded.clip, trajectory, text, **{**usual, "every": False, **wishes}
    )


def viewed(loaded, **wishes):
    """A request about a random picture."""
    made, _ = agree.request(loaded, agree.Setting(latent_for(loaded)))
    return request_for(loaded, made.trajectory, **wishes)


@pytest.mark.parametrize("every", [False, True], ids=["as LocalBlend", "all"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_both_hosts_see_the_same(request, family, every):
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    asked = viewed(loaded, every=every, steps=3)
    ours, spent = attention_maps(asked)
    assert spent.rows == 3
    other, trajectory = agree.headless(folder), asked.trajectory
    prompt = other.prompt(agree.SOURCE, size=(64, 64))
    source = lambda hooks: other.unet.rows_of({"cond": prompt}, hooks=hooks)
    chain = replace(trajectory, latents=trajectory.latents.float())
    theirs = view_words(chain, asked.look, source, [0, 2, 3])
    assert asked.names == ["a", "red", "heart", "on", "grass"]
    assert ours.shape == theirs.shape == (1, 5, 8, 8)
    assert relative(ours, theirs) < HOSTS_AGREE


def test_the_embedded_models_heart_is_where_the_mask_says():
    """On the scene's own mask, at its default threshold, better than chance by far."""
    loaded, inside = load_folder(WEIGHTS), []
    for seed in (3, 8, 12):
        scene = Scene.random(seed)
        image, mask = render(scene)
        text = caption(scene)
        described = agree.encode(loaded.clip, text)
        levels = schedule(loaded.model, "ddim_uniform", 12, 1.0)
        picture = Picture(
            loaded.model, described, described, loaded.vae.encode(image[None]), levels, 1.0, "test"
        )
        chain, _ = invert_ddim(picture, convention="destination", refinement=0)
        asked = request_for(loaded, chain, text, words=[scene.shape], steps=6)
        maps, _ = attention_maps(asked)
        seen = found(maps, 0.4)[0, 0] > 0
        true = torch.nn.functional.adaptive_avg_pool2d(mask[None, None], 16)[0, 0] > 0.5
        inside.append(float((seen & true).sum() / (seen | true).sum()))
    assert min(inside) > 0.5, inside


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_attention_that_the_inversion_kept_is_not_run_again(sd1, place):
    asked = viewed(sd1)
    described = asked.conditioning
    picture = Picture(
        sd1.model,
        described,
        described,
        asked.trajectory.origin,
        asked.trajectory.falling_sigmas,
        1.0,
        "test",
    )
    recorder = FeatureRecorder(asked.look, picture.sigmas, 2**30, feature_store(place))
    chain, _ = invert_ddim(picture, convention="current", refinement=0, recorder=recorder)
    served, spent = attention_maps(replace(asked, trajectory=chain))
    bare, usual = attention_maps(replace(asked, trajectory=replace(chain, features=None)))
    assert (spent.rows, usual.rows) == (1, STEPS)
    assert relative(served, bare) < 1e-6
    other = replace(asked, trajectory=chain, text="a blue heart on grass")
    assert attention_maps(other)[1].rows == STEPS  # kept under another text


def test_pictures_of_a_batch_are_seen_as_alone(sd1):
    two = latent_for(sd1, batch=2)
    both = request_for(sd1, agree.request(sd1, agree.Setting(two))[0].trajectory)
    maps, spent = attention_maps(both)
    assert spent.rows == 2 * STEPS and len(maps) == 2
    for row in range(2):
        made, _ = agree.request(sd1, agree.Setting(two[row : row + 1]))
        alone, _ = attention_maps(request_for(sd1, made.trajectory))
        assert relative(maps[row : row + 1], alone) < 1e-4


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"text": " "}, "The text of Attention Maps is empty: write what the picture shows"),
        ({"words": ["heart", "horse"]}, "The word 'horse' is not in the prompt 'a red heart on"),
        ({"window": (0.8, 0.2)}, "The steps of Attention Maps: 0.8 to 0.2 must be two rising"),
        ({"layers": (0.8, 0.2)}, "The layers of Attention Maps: 0.8 to 0.2 must be two rising"),
        ({"layers": (0.5, 0.5)}, "Attention Maps has no layer to look into, or no step"),
        ({"window": (1.0, 1.0)}, "Attention Maps has no layer to look into, or no step"),
    ],
    ids=str,
)
def test_what_cannot_be_looked_at_is_refused(sd1, wishes, said):
    with pytest.raises(PalimpsestError, match=said):
        attention_maps(viewed(sd1, **wishes))


def test_a_model_without_a_unet_is_refused_by_its_name(sd1):
    with pytest.raises(PalimpsestError, match=r"Attention Maps needs a UNet .*, or a transformer"):
        attention_maps(replace(viewed(sd1), model=make_wan()))


def test_names_in_a_row_are_one_and_words_that_come_twice_are_shown_once(sd1):
    assert viewed(sd1, words=["red heart"]).names == ["red heart"]
    asked = viewed(sd1, text="a red heart on a blue heart")
    assert asked.names == ["a", "red", "heart", "on", "blue"]
    marked = [column.nonzero().flatten().tolist() for column in asked.look.columns[0].T]
    for name, positions in zip(asked.names, marked, strict=True):
        own = [p for word in asked.tokens.words if word.text == name for p in word.positions]
        assert positions == sorted(own)


# -- what a person sees --------------------------------------------------------------------------


def test_a_heat_map_goes_from_dark_to_bright_over_the_picture():
    pictures = torch.zeros(1, 4, 4, 3)
    low, high = (heat_over(pictures, torch.full((1, 2, 2), v))[0, 0, 0] for v in (0.0, 1.0))
    assert torch.allclose(low, 0.7 * torch.tensor(COLORS[0]))
    assert torch.allclose(high, 0.7 * torch.tensor(COLORS[-1]))
    ramp = torch.linspace(0, 1, 33).view(1, 1, 33)
    bright = heat_over(torch.zeros(1, 1, 33, 3), ramp)[0, 0].sum(-1)
    assert bool((bright.diff() > 0).all())


def test_the_words_of_every_picture_follow_one_another_and_are_labelled():
    maps, pictures = torch.rand(2, 7, 4, 4), torch.rand(2, 32, 40, 3)
    heats = heat_pictures(maps, pictures)
    assert heats.shape == (14, 32, 40, 3)
    assert torch.equal(heats[8], heat_over(pictures[1:], maps[1:, 1])[0])
    names = [f"word{n}" for n in range(7)]
    sheet = heat_sheet(heats, pictures, names, "some words")
    small = heat_sheet(heats[:1], pictures[:1], names[:1], "some words")
    assert sheet.shape[1] > 4 * 32 and sheet.shape[2] > small.shape[2]
    with_longer = heat_sheet(heats, pictures, [*names[:-1], "another"], "some words")
    assert not torch.equal(sheet, with_longer)


def test_a_mask_is_of_any_of_the_words():
    maps = torch.tensor([[[[1.0, 0.3]], [[0.5, 0.2]]]])
    assert found(maps, 0.25).tolist() == [[[[1.0, 1.0]]]]
    assert found(maps, 0.3).tolist() == [[[[1.0, 0.0]]]]
