"""The benchmark of the controls: its edits and its scores mean what they say."""

from dataclasses import replace

import pytest
import torch
from palimpsest.benchmarks.controls.methods import METHODS
from palimpsest.benchmarks.controls.page import Outcome, of_kind, page, table
from palimpsest.benchmarks.controls.scene_edits import KINDS, OF_ONE, Score, score, tasks
from palimpsest.demo.scenes import PLACES, changed, render

COUNT = 2
each = pytest.mark.parametrize("kind", KINDS)


@each
def test_an_edit_changes_one_thing_of_its_kind(kind):
    for task in tasks(20, kind):
        before, after = task.captions
        assert before != after
        scene, wanted = task.scene, task.wanted
        differ = [
            name
            for a, b, prefix in zip(scene.things, wanted.things, ("", "other_"), strict=False)
            for name in OF_ONE
            if getattr(a, name) != getattr(b, name)
            for name in [prefix + name]
        ]
        if kind in OF_ONE:
            assert differ == [f"other_{kind}" if task.second else kind]
        else:
            assert differ == []
        assert (scene.background != wanted.background) == (kind == "background")
        assert (wanted.place == PLACES.get(scene.place)) and (scene.place is None) != (
            kind == "place"
        )
        assert all(
            word in text.split() for word, text in zip(task.words, task.captions, strict=True)
        )


def test_both_objects_are_edited_and_a_shorter_list_is_a_prefix():
    for kind in OF_ONE:
        assert {task.second for task in tasks(20, kind)} == {True, False}
        assert tasks(20, kind)[:5] == tasks(5, kind)


@each
def test_the_drawn_edit_is_a_success_and_the_picture_is_none(kind):
    for task in tasks(COUNT, kind):
        best = score(task, task.truth)
        assert best.success and best.changed and best.likeness == pytest.approx(1, abs=1e-4)
        assert best.other is (True if kind in OF_ONE else None)
        assert best.background is None or best.background > 60
        none = score(task, task.picture)
        assert not none.success and not none.changed and none.likeness < best.likeness
        assert none.other is best.other


def test_what_harms_the_other_object_or_the_background_is_seen():
    task = tasks(1, "color")[0]
    other = replace(task.wanted.other, color="white", texture="plain")
    harmed = render(replace(task.wanted, other=other))[0][None]
    found = score(task, harmed)
    assert found.other is False and found.changed and not found.success
    assert found.background < 30
    moved = replace(task.wanted.other, x=task.wanted.other.x - 12)
    assert score(task, render(replace(task.wanted, other=moved))[0][None]).other is False


def test_where_nothing_may_change_nothing_of_the_drawing_does():
    for task in tasks(6, "shape"):
        assert not changed(task.scene, task.wanted)[task.kept()].any()
        assert 0 < task.kept().float().mean() < 1


def test_every_control_has_a_hundred_edits_and_the_prompt_alone_has_all():
    for method in METHODS.values():
        assert 50 * len(method.kinds) >= 100
        assert method.control is not None or method.kinds == KINDS


def test_the_tables_count_what_was_measured():
    good = Score(success=True, changed=True, other=True, background=30.0, likeness=0.9)
    bad = Score(success=False, changed=True, other=None, background=None, likeness=0.7)
    outcomes = [
        Outcome("words", "color", 0, good, 160, 1.0),
        Outcome("words", "background", 0, bad, 170, 3.0),
    ]
    line = next(row for row in table(outcomes).splitlines() if "Prompt-to-Prompt" in row)
    assert "| 2 | 50% | 100% | 100% | 30.0 dB | 0.800 | 165 | 2.0 |" in line
    assert "| 1 | 0% | 100% |  |  | 0.700 |" in of_kind(outcomes, "background")
    assert "drawn edited" in of_kind(outcomes, "color", [good])
    whole = page(outcomes, {kind: [good] for kind in KINDS})
    assert whole.count("drawn edited*") >= len(KINDS)
    kept = Outcome.read({**vars(outcomes[0]), "score": vars(good)})
    assert kept == outcomes[0]
    assert torch.tensor([o.score.likeness for o in outcomes]).mean() == pytest.approx(0.8)
