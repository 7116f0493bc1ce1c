"""Parity of EDICT, on the small cases that tests/make_golden_edict.py restates."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from palimpsest.benchmarks.parity import __main__ as parity
from palimpsest.benchmarks.parity import edict as parity_edict
from palimpsest.benchmarks.parity import golden
from palimpsest.benchmarks.parity.__main__ import main
from palimpsest.pipelines.errors import PalimpsestError
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).resolve().parents[2]
CASES, MODEL = TESTS / "data" / "edict", TESTS / "data" / "model"
NAMES = ["edict_direct", "edict_p2p"]

#: fp32 against fp64. A mistake is 1e-3 or more.
ROUNDING = 5e-6


def result(name, folder=CASES):
    opened = golden.open_folder(folder, MODEL)
    case = opened.case(name)
    return parity.runner_of(case)(opened, case)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(CASES, tmp_path / "copy"))


@pytest.mark.parametrize(("name", "rows"), [("edict_direct", 56), ("edict_p2p", 70)])
def test_every_case_agrees_without_the_rows_of_the_step_that_only_mixes(name, rows):
    found = result(name)
    assert set(found.errors) == {"inv_x", "inv_y", "edit_x", "edit_y"}
    assert found.worst[0] < ROUNDING
    nfe = json.loads((CASES / f"{name}.json").read_text())["nfe"]
    assert rows == sum(part["samples"] for part in nfe.values()) * 7 // 8
    assert found.rows == rows


def test_a_tensor_that_is_a_thousandth_off_fails(copy, capsys):
    tensors = load_file(copy / "edict_direct.safetensors")
    tensors["edit_x"] = tensors["edit_x"] * 1.001
    save_file(tensors, copy / "edict_direct.safetensors")
    assert main([str(copy), "--model", str(MODEL), "--only", "edict_direct"]) == 1
    assert "  edit_x" in capsys.readouterr().out


def test_each_tensor_is_compared_by_itself(copy):
    """Each is off by another number, and told as its own."""
    off = {"inv_x": 1e-3, "inv_y": 2e-3, "edit_x": 3e-3, "edit_y": 4e-3}
    tensors = load_file(copy / "edict_direct.safetensors")
    changed = {key: tensors[key] * (1 + part) for key, part in off.items()}
    save_file(tensors | changed, copy / "edict_direct.safetensors")
    found = result("edict_direct", copy)
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
    path = copy / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    assert result(name, copy).worst[0] > 1e-3


def test_the_mixing_of_the_step_that_is_not_evaluated_matters(copy):
    path = copy / "edict_direct.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"timesteps_used": list(range(700, 0, -100))})
    )
    found = result("edict_direct", copy).errors
    assert max(found["inv_x"], found["inv_y"]) < ROUNDING
    assert min(found["edit_x"], found["edit_y"]) > 5e-4


def test_the_place_where_the_published_control_runs_its_source_matters(monkeypatch):
    ours = parity_edict.replace
    monkeypatch.setattr(parity_edict, "replace", lambda e, record_at: ours(e, record_at="chain"))
    found = result("edict_p2p").errors
    assert max(found["inv_x"], found["inv_y"]) < ROUNDING
    assert min(found["edit_x"], found["edit_y"]) > 1e-3


def test_a_grid_that_the_published_code_leaves_is_refused(copy):
    path = copy / "edict_direct.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 15}))
    with pytest.raises(PalimpsestError, match="1000 training steps do not divide by 15 steps"):
        result("edict_direct", copy)


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_edict", TESTS / "make_golden_edict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_the_maker_makes_what_is_stored(maker, name):
    settings, tensors = maker.make_case(name, maker.base.make_unet().double())
    stored = golden.open_folder(CASES, MODEL).case(name)
    assert json.loads(json.dumps(settings)) == stored.settings
    assert tensors.keys() == stored.tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(tensor, stored.tensors[key], rtol=1e-9, atol=1e-9)
