"""Parity of the SDE family, on the small cases that tests/make_golden_sde.py restates."""

import pytest
from palimpsest.benchmarks.parity import sde as parity_sde
from palimpsest.tests.host.parity.cases import TESTS, Cases

CASES = Cases(TESTS / "data" / "sde", "make_golden_sde")

#: fp32 against fp64. A mistake is 1e-3 or more.
ROUNDING = 2e-6


@pytest.mark.parametrize("name", CASES.names)
def test_every_case_agrees_at_the_published_rows(name):
    found = CASES.result(name)
    assert found.worst[0] < ROUNDING
    published = CASES.settings(name).get("nfe")
    assert found.rows == (published["edit"]["samples"] if published else 0)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sdedit_vp", "final"),
        ("sdedrag_copypaste", "output"),
        ("sdedrag_cycle", "backward"),
        ("sdedrag_full", "backward_01"),
        ("sdedrag_step", "out"),
    ],
)
def test_a_tensor_that_is_a_thousandth_off_fails(copy, name, key, capsys):
    copy.scale(name, **{key: 1.001})
    assert copy.bench(name) == 1
    assert f"  {key}" in capsys.readouterr().out


def altered(copy, name, setting, value):
    """The result of a case whose file says another value of one setting."""
    copy.say(name, **{setting: value})
    return copy.result(name)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("sdedrag_copypaste", "alpha", 1.0),
        ("sdedrag_copypaste", "img_scale", 0.5),
        ("sdedrag_full", "step_size", 4),
        ("sdedrag_step", "eta", 1.0),
        ("sdedrag_step", "sde", False),
        ("sdedrag_step", "guidance_scale", 1.0),
    ],
)
def test_every_setting_of_a_case_is_read(copy, name, setting, value):
    assert altered(copy, name, setting, value).worst[0] > 1e-3


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("sdedrag_copypaste", "r", 2),
        ("sdedrag_full", "adapt_r", 2),
        ("sdedrag_full", "target_px", [[92, 70], [103, 80]]),
    ],
)
def test_a_setting_that_asks_for_other_draws_than_were_recorded_is_read(copy, name, setting, value):
    with pytest.raises((StopIteration, RuntimeError)):
        altered(copy, name, setting, value)


def test_the_quirks_of_the_published_code_matter(monkeypatch):
    """Without any one of them a case would not agree, or it would not test that quirk."""
    brush = parity_sde.published_brush
    monkeypatch.setattr(parity_sde, "ramp", lambda s, top, overshoot: golden_ramp(s, top))
    assert CASES.result("sdedrag_full").worst[0] > 1e-3
    monkeypatch.undo()
    monkeypatch.setattr(parity_sde, "published_brush", lambda case: whole(brush(case)))
    with pytest.raises(RuntimeError):  # the copied square has more cells than were drawn for
        CASES.result("sdedrag_copypaste")


def golden_ramp(sigmas, top):
    return parity_sde.constant(top)


def whole(brush):
    return type(brush)(brush.radius, brush.alpha, brush.beta, full_border=True)


@pytest.mark.parametrize("name", ["sdedit_vp", "sdedrag_copypaste", "sdedrag_full"])
def test_the_maker_makes_what_is_stored(name):
    CASES.assert_made_again(name, CASES.maker.base.make_unet())
