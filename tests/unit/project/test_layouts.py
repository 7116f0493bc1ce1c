"""Scenes with places and with two objects: what is said of them, drawn, edited and read back."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from palimpsest.demo import judge
from palimpsest.demo.layouts import KINDS, scene_of
from palimpsest.demo.scenes import (
    PLACES,
    Scene,
    caption,
    changed,
    held_out,
    lies,
    masks,
    render,
    training_content,
)
from palimpsest.demo.things import Thing
from palimpsest.demo.train_data import MIX, held_out_scenes, training_scenes

STAR = Thing("blue", "star", "dotted", 94.0, 60.0, 24.0)
HEART = Scene("red", "heart", "plain", "grass", 33.0, 70.0, 23.0, 7, place="on the left")
PAIR = replace(HEART, other=STAR)
UNPLACED = replace(PAIR, place=None)


def drawn(kind, count=40):
    return [scene_of(kind, seed, held_out()) for seed in range(count)]


def test_captions_say_both_objects_and_where_they_are():
    assert caption(HEART) == "a red heart on the left on grass"
    assert caption(UNPLACED) == "a red heart and a dotted blue star on grass"
    assert caption(PAIR) == "a red heart on the left and a dotted blue star on the right on grass"


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_of_every_kind_depends_on_its_seed_alone(kind):
    assert drawn(kind) == drawn(kind)
    assert len(set(drawn(kind))) == 40
    assert {scene.place is None for scene in drawn(kind)} == {"placed" not in kind}
    assert {scene.other is None for scene in drawn(kind)} == {"pair" not in kind}


@pytest.mark.parametrize("kind", ["placed", "placed pair"])
def test_every_place_is_drawn_and_objects_lie_clearly_in_theirs(kind):
    scenes = drawn(kind)
    assert {scene.place for scene in scenes} == set(PLACES)
    for scene in scenes:
        for thing, place in zip(scene.things, (scene.place, PLACES[scene.place]), strict=False):
            assert lies(thing.x, thing.y, place) and not lies(thing.x, thing.y, PLACES[place])
            far = [abs(thing.x - 64), abs(thing.y - 64)]["top" in place or "bottom" in place]
            assert far >= 16, caption(scene)


def test_the_first_of_two_without_places_comes_first_in_reading():
    for scene in drawn("pair"):
        assert scene.x < 64 < scene.other.x or scene.y < 64 < scene.other.y, scene


@pytest.mark.parametrize("kind", ["pair", "placed pair"])
def test_two_objects_differ_and_stay_apart_and_inside(kind):
    for scene in drawn(kind):
        first, other = scene.things
        assert first.color != other.color and first.shape != other.shape
        both = masks(scene)
        assert both.shape == (2, 128, 128)
        wider = torch.nn.functional.max_pool2d(both[:, None], 5, 1, 2)[:, 0]
        assert (wider[0] * wider[1]).max() == 0, "there is a gap between them"
        assert max(both[:, edge].max() for edge in (0, -1)) == 0
        assert max(both[:, :, edge].max() for edge in (0, -1)) == 0


def test_masks_are_exact():
    image, mask = render(PAIR)
    assert torch.equal(mask, masks(PAIR)[0])
    for i, edit in enumerate(({"color": "white"}, {"other_color": "white"})):
        after = render(PAIR.with_(**edit))[0]
        where = masks(PAIR)[i] > 0
        assert torch.equal(image[~where], after[~where])
        assert (image - after)[masks(PAIR)[i] == 1].abs().amax(-1).min() > 0.01


def test_a_scene_of_two_is_held_out_where_both_objects_are():
    training = {caption(content) for content in training_content()}

    def alone(scene):
        for thing in scene.things:
            yield caption(
                Scene(thing.color, thing.shape, thing.texture, scene.background, 64, 64, 30, 0)
            )

    for kind in KINDS:
        for scene in held_out_scenes(40, kind):
            assert not training & set(alone(scene))
    for scene in training_scenes(200):
        assert set(alone(scene)) <= training


def test_training_holds_every_kind_as_often_as_the_mix_says():
    scenes = training_scenes(2 * len(MIX))
    kinds = [f"{'placed ' if s.place else ''}{'pair' if s.other else ''}".strip() for s in scenes]
    assert [kind or "one" for kind in kinds] == [*MIX, *MIX]
    assert set(MIX) == set(KINDS)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"color": "pink"}, "a pink heart and a dotted blue star on grass"),
        ({"other_color": "pink"}, "a red heart and a dotted pink star on grass"),
        ({"other_shape": "circle"}, "a red heart and a dotted blue circle on grass"),
        ({"other_texture": "plain"}, "a red heart and a blue star on grass"),
        (
            {"texture": "striped", "other_texture": "striped", "background": "snow"},
            "a striped red heart and a striped blue star on snow",
        ),
    ],
)
def test_an_edit_is_of_either_object(edit, said):
    edited = UNPLACED.with_(**edit)
    assert caption(edited) == said
    assert (edited.x, edited.y, edited.size, edited.seed) == (33.0, 70.0, 23.0, 7)
    assert (edited.other.x, edited.other.y, edited.other.size) == (94.0, 60.0, 24.0)


@pytest.mark.parametrize("scene", [HEART, PAIR], ids=["one", "two"])
def test_a_new_place_moves_what_is_there_and_back(scene):
    right = scene.with_(place="on the right")
    assert (right.x, right.y) == (95.0, 70.0)
    for before, after in pairwise([*PLACES, "on the left"]):
        moved = scene.with_(place=before).with_(place=after)
        assert moved.place == after and lies(moved.x, moved.y, after)
        assert moved == scene.with_(place=after)
    assert scene.with_(place="at the top").with_(place="on the left") == scene
    assert changed(scene, right).mean() > 0.1


def test_with_places_both_objects_change_sides():
    top = PAIR.with_(place="at the top")
    assert caption(top) == "a red heart at the top and a dotted blue star at the bottom on grass"
    assert (top.x, top.y, top.other.x, top.other.y) == (70.0, 33.0, 60.0, 94.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda: HEART.with_(other_color="blue"),
            "no second object beside a red heart on the left",
        ),
        (
            lambda: UNPLACED.with_(place="at the top"),
            "names no place that could change: a red heart",
        ),
        (
            lambda: HEART.with_(place="above"),
            "place is 'above', but must be one of on the left, on",
        ),
        (
            lambda: PAIR.with_(other_shape="heart"),
            "a red heart and a dotted blue heart must differ",
        ),
        (lambda: PAIR.with_(color="blue"), "a blue heart and a dotted blue star must differ"),
        (lambda: replace(PAIR, x=70.0), "a red heart at 70, 70 is not on the left"),
        (lambda: replace(PAIR, place="at the top"), "a red heart at 33, 70 is not at the top"),
        (lambda: replace(STAR, color="mauve"), "color is 'mauve', but must be one of red, green"),
    ],
)
def test_what_cannot_be_said_or_drawn_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


@pytest.mark.parametrize("kind", ["pair", "placed pair"])
def test_the_judge_reads_both_objects_back(kind):
    for scene in drawn(kind, 4):
        right = judge.agreement(render(scene)[0], scene)
        assert all(right.values()), (scene, judge.judge_pair(render(scene)[0]))
        names = ["color", "shape", "texture"]
        expected = [*names, *(f"other_{name}" for name in names), "background"]
        assert list(right) == expected + ["place"] * (scene.place is not None)


def test_the_judge_reads_one_object_and_its_place():
    for scene in held_out_scenes(5, "placed"):
        right = judge.agreement(render(scene)[0], scene)
        assert list(right) == ["color", "shape", "texture", "background", "place"]
        assert all(right.values()), scene


def test_the_judge_tells_swapped_attributes_and_places():
    image = render(PAIR)[0]
    swapped = PAIR.with_(color="pink").with_(other_color="red").with_(color="blue")
    right = judge.agreement(image, swapped)
    assert not (right["color"] and right["shape"]) and not right["other_color"]
    turned = judge.agreement(image, PAIR.with_(place="on the right"))
    assert not turned.pop("place") and all(turned.values())
    above = judge.agreement(image, PAIR.with_(place="at the top"))
    assert not above.pop("place") or not all(above.values())
