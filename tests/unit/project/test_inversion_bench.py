"""The benchmark of the inversions: its edits, its scores and its comparisons mean what they say."""

from dataclasses import asdict, replace

import pytest
import torch
from palimpsest.benchmarks.inversions.guidance import (
    by_guidance,
    claims,
    guidance,
    order,
    orders,
    versus,
)
from palimpsest.benchmarks.inversions.outcome import CLAIM, Outcome
from palimpsest.benchmarks.inversions.page import by_kind, page, table
from palimpsest.benchmarks.inversions.scene_edits import CELL, CHOICES, Score, psnr, score, tasks
from palimpsest.demo.scenes import EXCLUDED, render

COUNT = 24


@pytest.fixture(scope="module")
def every():
    return tasks(COUNT)


# --- edits


def test_every_kind_of_edit_comes_in_turn_and_changes_one_thing(every):
    assert [task.kind for task in every[:8]] == [*CHOICES, *CHOICES]
    for task in every:
        differs = {
            name
            for name in task.scene.__dataclass_fields__
            if getattr(task.scene, name) != getattr(task.wanted, name)
        }
        assert differs == {task.kind}
        for scene in (task.scene, task.wanted):
            assert (scene.color, scene.background) not in EXCLUDED


def test_a_short_list_is_the_beginning_of_a_long_one(every):
    assert tasks(5) == every[:5]
    assert len({task.scene for task in every}) == COUNT


def test_nothing_may_change_but_where_the_drawings_differ_and_a_cell_around(every):
    for task in every[:8]:
        differ = (render(task.scene)[0] - render(task.wanted)[0]).abs().amax(-1) > 1 / 512
        where = task.kept()
        assert bool(where.any()), task
        ys, xs = torch.nonzero(differ, as_tuple=True)
        for y, x in torch.nonzero(where)[:: max(1, int(where.sum()) // 20)]:
            nearest = torch.maximum((ys - y).abs(), (xs - x).abs()).min()
            assert int(nearest) > CELL
        for y, x in torch.nonzero(~where)[:: max(1, int((~where).sum()) // 20)]:
            nearest = torch.maximum((ys - y).abs(), (xs - x).abs()).min()
            assert int(nearest) <= CELL


# --- scores


def test_decibels_of_a_known_error():
    a = torch.zeros(2, 2)
    assert psnr(a, a + 0.1) == pytest.approx(20)
    assert psnr(a, a) == float("inf")


@pytest.mark.parametrize("number", range(4))
def test_the_true_result_succeeds_and_the_untouched_picture_does_not(every, number):
    task = every[number]
    noise = 0.01 * torch.ones_like(task.picture)
    true = score(task, task.truth + noise, task.picture + noise)
    assert (true.success, true.changed, true.kept) == (True, True, True)
    assert true.background == pytest.approx(40, abs=0.1)
    assert true.background_vae > 80
    same = score(task, task.picture, task.picture + noise)
    assert (same.success, same.changed, same.kept) == (False, False, True)
    assert same.background == float("inf")
    assert same.background_vae == pytest.approx(40, abs=0.1)


def test_an_object_that_moved_or_became_another_is_not_kept(every):
    task = every[0]
    x = task.wanted.x + (20 if task.wanted.x < 64 else -20)
    other = "square" if task.wanted.shape != "square" else "circle"
    for wrong in (replace(task.wanted, x=x), replace(task.wanted, shape=other)):
        found = score(task, render(wrong)[0][None], task.picture)
        assert found.changed
        assert not found.kept


# --- comparisons


def outcome(method, task, background, *, success=True, kind="color", back=20.0):
    found = Score(success, success, success, background, background + 1)
    return Outcome(method, task, kind, found, back, rows=100, seconds=2.0)


def test_a_line_of_the_table_is_the_mean_of_its_method():
    rows = [outcome("ddim", n, 20 + n, success=n < 3) for n in range(4)]
    rows += [outcome("direct", 0, 30.0, back=None)]
    lines = table(rows, [Score(True, True, True, 40.0, 45.0)]).splitlines()
    assert lines[2] == ("| DDIM | 4 | 20.0 dB | 75% | 75% | 75% | 21.5 dB | 22.5 dB | 100 | 2.0 |")
    assert lines[3].startswith("| Direct Inversion | 1 | exact | 100% |")
    assert lines[4].startswith("| *drawn edited* | 1 | | 100% | 100% | 100% | 40.0 dB | 45.0 dB")
    assert len(lines) == 5


def test_kinds_are_told_apart():
    rows = [
        outcome("ddim", n, 20.0 + n, success=n != 1, kind=kind) for n, kind in enumerate(CHOICES)
    ]
    (line,) = by_kind(rows).splitlines()[2:]
    assert line == "| DDIM | 100%, 20.0 dB | 0%, 21.0 dB | 100%, 22.0 dB | 100%, 23.0 dB |"


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [([2, 3, 4], "holds, +3.0 dB (standard error 0.6), better in 3 of 3 edits"),
     ([-2, -3, -4], "reversed, -3.0 dB (standard error 0.6), better in 0 of 3 edits"),
     ([3, -3, 1], "undecided, +0.3 dB (standard error 1.8), better in 2 of 3 edits")],
)  # fmt: skip
def test_two_methods_are_compared_edit_by_edit(gaps, verdict):
    # Tasks are far apart: only their differences count.
    rows = [outcome("ddim", n, 10.0 * n) for n in range(4)]
    rows += [outcome("direct", n, 10.0 * n + gap) for n, gap in enumerate(gaps)]
    assert versus(rows, "direct", "ddim") == f"Direct Inversion over DDIM: {verdict}"


def test_failed_edits_can_be_left_out():
    rows = [outcome("ddim", n, 20.0, success=n != 0) for n in range(3)]
    rows += [outcome("direct", n, background) for n, background in enumerate((90.0, 21.0, 21.1))]
    told = versus(rows, "direct", "ddim", succeeded=True)
    assert "+1.1 dB" in told or "+1.0 dB" in told
    assert told.endswith("better in 2 of 2 edits")
    assert "too few edits" in versus(rows[:1] + rows[3:], "direct", "ddim")


def test_the_order_is_that_of_the_edits_that_all_were_given():
    rows = [outcome(key, n, 20.0 + i) for i, key in enumerate(CLAIM) for n in range(2)]
    rows.append(outcome(CLAIM[0], 2, 99.0))
    assert order(rows).startswith("DDIM (23.0 dB) > Negative-prompt (22.0 dB) > Null-text")
    assert claims(rows).count("reversed") == len(CLAIM)


def test_a_kept_line_is_read_back_and_the_page_tells_all():
    rows = [outcome(key, n, 20.0, back=None) for key in CLAIM for n in range(3)]
    assert [Outcome.read(asdict(row)) for row in rows] == rows
    told = page(rows, [rows[0].score])
    assert "3 scenes of the embedded model" in told
    assert "| Null-text | 3 | exact |" in told
    assert "> Null-text > Negative-prompt > DDIM" in told


# --- guidances


def test_every_guidance_is_told_apart_and_the_methods_own_is_one_of_them():
    rows = [outcome("direct", n, 20.0 + n, success=n > 0) for n in range(2)]
    rows += [replace(outcome("direct", 0, 30.0, success=False), cfg=2.0)]
    rows += [outcome("ddim", n, 20.0, success=n > 2) for n in range(4)]
    assert [guidance(row) for row in rows] == [5.0, 5.0, 2.0, 5.0, 5.0, 5.0, 5.0]
    head, _, direct, plain = by_guidance(rows).splitlines()
    assert head == "| inversion | guidance 2 | guidance 5 |"
    assert direct == "| Direct Inversion | 0% of 1, 30.0 dB | 50% of 2, 20.5 dB |"
    assert plain == "| DDIM |  | 25% of 4, 20.0 dB |"


def test_the_order_is_told_at_each_guidance_that_all_methods_have():
    rows = [outcome(key, n, 20.0 + i) for i, key in enumerate(CLAIM) for n in range(3)]
    rows += [replace(row, cfg=2.0, score=outcome("x", 0, 40.0).score) for row in rows[:-1]]
    rows += [replace(row, cfg=3.0) for row in rows if row.method == "ddim" and row.cfg is None]
    told = orders(rows)
    assert "At guidance 5 (3 edits that all were given): DDIM (23.0 dB) > Negative-prompt" in told
    assert "At guidance 2 (2 edits that all were given): Direct Inversion (40.0 dB) >" in told
    assert told.index("guidance 2 (") < told.index("guidance 5 (")
    assert "guidance 3 (" not in told


def test_the_table_of_the_page_is_that_of_the_methods_own_guidance():
    rows = [outcome(key, n, 20.0) for key in CLAIM for n in range(3)]
    rows += [replace(outcome("ddim", n, 40.0), cfg=2.0) for n in range(3)]
    told = page(rows, [rows[0].score])
    assert "| DDIM | 3 | 20.0 dB | 100% | 100% | 100% | 20.0 dB |" in told
    assert "| DDIM | 100% of 3, 40.0 dB | 100% of 3, 20.0 dB |" in told
