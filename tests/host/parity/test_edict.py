"""Parity of EDICT, on the small cases that tests/make_golden_edict.py restates."""

import pytest
from palimpsest.benchmarks.parity import edict as parity_edict
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host.parity.cases import TESTS, Cases

CASES = Cases(TESTS / "data" / "edict", "make_golden_edict")

#: fp32 against fp64. A mistake is 1e-3 or more.
ROUNDING = 5e-6


@pytest.mark.parametrize(("name", "rows"), [("edict_direct", 56), ("edict_p2p", 70)])
def test_every_case_agrees_without_the_rows_of_the_step_that_only_mixes(name, rows):
    found = CASES.result(name)
    assert set(found.errors) == {"inv_x", "inv_y", "edit_x", "edit_y"}
    assert found.worst[0] < ROUNDING
    nfe = CASES.settings(name)["nfe"]
    assert rows == sum(part["samples"] for part in nfe.values()) * 7 // 8
    assert found.rows == rows


def test_a_tensor_that_is_a_thousandth_off_fails(copy, capsys):
    copy.scale("edict_direct", edit_x=1.001)
    assert copy.bench("edict_direct") == 1
    assert "  edit_x" in capsys.readouterr().out


def test_each_tensor_is_compared_by_itself(copy):
    """Each is off by another number, and told as its own."""
    off = {"inv_x": 1e-3, "inv_y": 2e-3, "edit_x": 3e-3, "edit_y": 4e-3}
    copy.scale("edict_direct", **{key: 1 + part for key, part in off.items()})
    found = copy.result("edict_direct")
    assert found.errors == pytest.approx(off, rel=0.05)
    assert not found.passed


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("edict_direct", "guidance_scale", 4),
        ("edict_direct", "mix_weight", 0.9),
        ("edict_direct", "prompt_src", "a blue circle on a green field"),
        ("edict_direct", "prompt_tar", "a blue circle on a green field"),
        ("edict_direct", "timesteps_used", [600, 500, 400, 300, 200, 100, 0]),
        ("edict_direct", "final_alpha_cumprod", 1.0),
        ("edict_p2p", "prompt_src", "a blue circle on a green field"),
        ("edict_p2p", "prompt_tar", "a blue circle on a green field"),
    ],
)
def test_every_setting_of_a_case_is_read(copy, name, setting, value):
    copy.say(name, **{setting: value})
    assert copy.result(name).worst[0] > 1e-3


def test_the_mixing_of_the_step_that_is_not_evaluated_matters(copy):
    copy.say("edict_direct", timesteps_used=list(range(700, 0, -100)))
    found = copy.result("edict_direct").errors
    assert max(found["inv_x"], found["inv_y"]) < ROUNDING
    assert min(found["edit_x"], found["edit_y"]) > 5e-4


def test_the_place_where_the_published_control_runs_its_source_matters(monkeypatch):
    ours = parity_edict.replace
    monkeypatch.setattr(parity_edict, "replace", lambda e, record_at: ours(e, record_at="chain"))
    found = CASES.result("edict_p2p").errors
    assert max(found["inv_x"], found["inv_y"]) < ROUNDING
    assert min(found["edit_x"], found["edit_y"]) > 1e-3


def test_a_grid_that_the_published_code_leaves_is_refused(copy):
    copy.say("edict_direct", steps=15)
    with pytest.raises(PalimpsestError, match="1000 training steps do not divide by 15 steps"):
        copy.result("edict_direct")


@pytest.mark.parametrize("name", CASES.names)
def test_the_maker_makes_what_is_stored(name):
    CASES.assert_made_again(name, CASES.maker.base.make_unet())
