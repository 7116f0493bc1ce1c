"""Parity of the SDE family, on the small cases that tests/make_golden_sde.py restates."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from palimpsest.benchmarks.parity import __main__ as parity
from palimpsest.benchmarks.parity import golden
from palimpsest.benchmarks.parity import sde as parity_sde
from palimpsest.benchmarks.parity.__main__ import main
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).resolve().parents[2]
CASES, MODEL = TESTS / "data" / "sde", TESTS / "data" / "model"
NAMES = sorted(path.stem for path in CASES.glob("*.json") if path.stem != "text")

#: fp32 against fp64. A mistake is 1e-3 or more.
ROUNDING = 2e-6


def run(folder, *arguments):
    return main([str(folder), "--model", str(MODEL), *arguments])


def result(name, folder=CASES):
    opened = golden.open_folder(folder, MODEL)
    case = opened.case(name)
    return parity.runner_of(case)(opened, case)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(CASES, tmp_path / "copy"))


@pytest.mark.parametrize("name", NAMES)
def test_every_case_agrees_at_the_published_rows(name):
    found = result(name)
    assert found.worst[0] < ROUNDING
    published = json.loads((CASES / f"{name}.json").read_text()).get("nfe")
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
    tensors = load_file(copy / f"{name}.safetensors")
    tensors[key] = tensors[key] * 1.001
    save_file(tensors, copy / f"{name}.safetensors")
    assert run(copy, "--only", name) == 1
    assert f"  {key}" in capsys.readouterr().out


def altered(copy, name, setting, value):
    """The result of a case whose file says another value of one setting."""
    path = copy / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    return result(name, copy)


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
    assert result("sdedrag_full").worst[0] > 1e-3
    monkeypatch.undo()
    monkeypatch.setattr(parity_sde, "published_brush", lambda case: whole(brush(case)))
    with pytest.raises(RuntimeError):  # the copied square has more cells than were drawn for
        result("sdedrag_copypaste")


def golden_ramp(sigmas, top):
    return parity_sde.constant(top)


def whole(brush):
    return type(brush)(brush.radius, brush.alpha, brush.beta, full_border=True)


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_sde", TESTS / "make_golden_sde.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["sdedit_vp", "sdedrag_copypaste", "sdedrag_full"])
def test_the_maker_makes_what_is_stored(maker, name):
    settings, tensors = maker.make_case(name, maker.base.make_unet().double())
    stored = golden.open_folder(CASES, MODEL).case(name)
    assert json.loads(json.dumps(settings)) == stored.settings
    assert tensors.keys() == stored.tensors.keys()
    for key, tensor in tensors.items():
        # float64 on another machine, rounded to float32: a last bit may fall the other way.
        torch.testing.assert_close(tensor, stored.tensors[key], rtol=1e-6, atol=1e-6)
