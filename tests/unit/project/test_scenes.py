"""The scenes: their captions and masks are exact, and the judge reads them back."""

from dataclasses import replace

import pytest
import torch
from palimpsest.demo import judge, scenes
from palimpsest.demo.scenes import Scene, caption, changed, held_out, render

SCENE = Scene("blue", "heart", "striped", "a brick wall", 60.0, 66.0, 32.0, 7)


def distinct(count):
    """Held-out scenes that differ in what they show and where."""
    return [Scene.random(500 + i, (content,)) for i, content in enumerate(held_out()[:count])]


def test_a_scene_renders_the_same_twice():
    first, second = render(SCENE), render(SCENE)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_a_random_scene_depends_on_its_seed_alone():
    assert Scene.random(11) == Scene.random(11)
    assert len({Scene.random(seed) for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("seed", "said", "spot", "mean", "deviation", "area"),
    [
        (0, "a dotted black heart on grass", (62.62, 78.31, 36.2), 0.427067, 0.193934, 3787.244),
        (3, "a dotted red square on grass", (76.75, 48.82, 30.73), 0.496512, 0.195148, 2920.244),
        (7, "a blue triangle on grass", (81.06, 71.38, 30.56), 0.482587, 0.182661, 2359.027),
        (
            1234,
            "a dotted green cross on a brick wall",
            (62.22, 59.46, 28.02),
            0.504473,
            0.195062,
            2072.025,
        ),
    ],
)
def test_a_seed_draws_what_it_always_drew(seed, said, spot, mean, deviation, area):
    """Workflows and published figures name scenes by their seeds."""
    scene = Scene.random(seed)
    assert caption(scene) == said
    assert (scene.x, scene.y, scene.size) == spot
    assert scene.other is None and scene.place is None
    image, mask = (part.double() for part in render(scene))
    assert image.mean().item() == pytest.approx(mean, abs=2e-6)
    assert image.std().item() == pytest.approx(deviation, abs=2e-6)
    assert mask.sum().item() == pytest.approx(area, abs=2e-3)


def test_image_and_mask_have_the_promised_shape_and_range():
    for content in distinct(12):
        image, mask = render(content)
        assert image.shape == (128, 128, 3)
        assert mask.shape == (128, 128)
        assert image.min() >= 0 and image.max() <= 1
        assert mask.max() == 1 and mask.min() == 0


def test_an_object_stays_inside_the_picture():
    for seed in range(30):
        mask = render(Scene.random(seed))[1]
        border = torch.ones_like(mask, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert mask[border].max() == 0, Scene.random(seed)


def test_captions_are_unique_and_say_what_is_drawn():
    contents = scenes.every_content()
    captions = {caption(content) for content in contents}
    assert len(captions) == len(contents) == 756
    for content in contents:
        words = caption(content).split()
        assert {content.color, content.shape} <= set(words)
        assert (content.texture in words) == (content.texture != "plain")
        assert caption(content).endswith(f"on {content.background}")


def test_a_caption_reads_like_english():
    assert caption(SCENE) == "a striped blue heart on a brick wall"
    assert caption(SCENE.with_(texture="plain", background="snow")) == "a blue heart on snow"


def test_no_object_has_the_colour_of_its_background():
    contents = scenes.every_content()
    assert not {(content.color, content.background) for content in contents} & scenes.EXCLUDED
    plain = {caption(c): c for c in (replace(c, texture="plain", shape="circle") for c in contents)}
    for content in plain.values():
        image, mask = render(content)
        inside = image[mask == 1].mean(0)
        around = image[mask == 0].mean(0)
        assert (inside - around).norm() > 0.2, caption(content)


def test_training_and_held_out_captions_share_nothing_and_leave_nothing_out():
    hidden = {caption(content) for content in held_out()}
    seen = {caption(content) for content in scenes.training_content()}
    assert len(hidden) == 200
    assert not hidden & seen
    assert len(hidden | seen) == 756


def test_random_scenes_of_given_contents_show_only_those():
    wanted = held_out()[:3]
    drawn = {caption(Scene.random(seed, wanted)) for seed in range(40)}
    assert drawn == {caption(content) for content in wanted}


@pytest.mark.parametrize(
    "edit",
    [
        {"color": "yellow"},
        {"shape": "star"},
        {"texture": "dotted"},
        {"background": "snow"},
    ],
)
def test_an_edit_changes_its_attribute_and_keeps_place_and_details(edit):
    edited = SCENE.with_(**edit)
    assert edited == replace(SCENE, **edit)
    assert edited != SCENE


def test_a_new_colour_changes_pixels_of_the_object_only():
    edited = SCENE.with_(color="yellow")
    before, mask = render(SCENE)
    after, _ = render(edited)
    where = changed(SCENE, edited) == 1
    assert torch.equal(before[~where], after[~where])
    assert (mask[where] > 0).all()
    assert where[mask == 1].float().mean() > 0.95


def test_another_shape_keeps_the_background_away_from_both_objects():
    edited = SCENE.with_(shape="circle")
    assert torch.equal(render(SCENE)[0][:, :8], render(edited)[0][:, :8])
    assert 0.02 < changed(SCENE, edited).mean() < 0.3


def test_nothing_changes_without_an_edit():
    assert changed(SCENE, SCENE).sum() == 0
    assert changed(SCENE, replace(SCENE, seed=8)).mean() > 0.3


def test_a_scene_renders_at_other_resolutions():
    image, mask = render(SCENE, 256)
    small = torch.nn.functional.avg_pool2d(mask[None, None], 2)[0, 0]
    assert image.shape == (256, 256, 3)
    assert (small - render(SCENE)[1]).abs().mean() < 0.005


def test_an_unknown_attribute_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="color is 'mauve', but must be one of red, green"):
        SCENE.with_(color="mauve")


def test_the_judge_reads_drawings_back():
    for content in distinct(6):
        verdict = judge.judge(render(content)[0])
        assert all(verdict.agrees(content).values()), (content, verdict)
        assert abs(verdict.x - content.x) < 2 and abs(verdict.y - content.y) < 2
        assert verdict.error < 0.08


def test_the_judge_does_not_agree_with_another_scene():
    verdict = judge.judge(render(SCENE)[0])
    other = Scene("pink", "star", "dotted", "snow", 60.0, 66.0, 32.0, 7)
    assert not any(verdict.agrees(other).values())


def test_the_judge_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"\[64, 64, 3\], but must be \[128, 128, 3\]"):
        judge.judge(torch.zeros(64, 64, 3))


@pytest.mark.parametrize("color", scenes.COLORS)
def test_pixels_of_a_colour_are_found_where_it_was_painted(color):
    plain = SCENE.with_(color=color, texture="plain", background="a wooden floor")
    image, mask = render(plain)
    found = judge.pixels_of_color(image, color)
    assert found[mask == 1].float().mean() > 0.9
    assert found[mask == 0].float().mean() < 0.02
    rival = "green" if color != "green" else "pink"
    assert judge.pixels_of_color(image, rival)[mask == 1].float().mean() < 0.05
