"""Parity with published edits, on the small cases that tests/make_golden.py computes."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from palimpsest.benchmarks.parity import __main__ as parity
from palimpsest.benchmarks.parity import edit as parity_edit
from palimpsest.benchmarks.parity import golden
from palimpsest.benchmarks.parity.__main__ import main
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).resolve().parents[2]
QUICK, MODEL = TESTS / "data" / "quick", TESTS / "data" / "model"

#: Our rows and the published ones: N up, N x 2 down, and N x .6 source rows for the self window
#: (twice that, guided, and to the end, where the source drifts, but once where its two halves are
#: one); published 5 N and 4 N, or 3 N, or N.
ROWS = {
    "ddim_inversion": (8, 8),
    "ddim_p2p_replace": (8 + 16 + 16, 56),
    "di_p2p_refine": (8 + 16 + 8, 72),
    "di_p2p_replace": (8 + 16 + 4, 72),
    "di_p2p_reweight": (6 + 12 + 3, 54),
    "directinversion_inv_replace": (5 + 20, 25),
    "nti_p2p_replace": (6 + 6 + 16 + 6 + 12 + 3, 64),  # 16 inner steps; published 2 rows at a step
    "npi_p2p_replace": (8 + 16 + 8, 40),
    "npi_proximal_l0_refine": (6 + 12 + 6, 30),
}


def run(folder, *arguments):
    return main([str(folder), "--model", str(MODEL), *arguments])


def result(name, folder):
    opened = golden.open_folder(folder, MODEL)
    case = opened.case(name)
    return parity.runner_of(case)(opened, case)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(QUICK, tmp_path / "copy"))


def lines_of(text):
    """Name, error, our rows and published rows of every case in a printed table."""
    words = [line.split() for line in text.splitlines()[2:-1]]
    return {w[0]: (float(w[1]), int(w[2]), int(w[3])) for w in words}


def test_every_case_is_run_and_agrees(capsys):
    assert run(QUICK) == 0
    table = lines_of(capsys.readouterr().out)
    assert {name: (ours, published) for name, (_, ours, published) in table.items()} == ROWS
    # fp32 against fp64: this model lets rounding grow to 5e-6. A mistake is 1e-3 or more.
    assert max(error for error, *_ in table.values()) < 2e-5


TENSORS = {
    "ddim_inversion": "traj",
    "directinversion_inv_replace": "noise_loss_list",
    "di_p2p_replace": "final",
    "di_p2p_refine": "traj",
    "ddim_p2p_replace": "final",
    "npi_p2p_replace": "traj",
    "npi_proximal_l0_refine": "final",
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_a_thousandth_off_fails(copy, name, capsys):
    file, key = copy / f"{name}.safetensors", TENSORS[name]
    tensors = load_file(file)
    save_file({**tensors, key: tensors[key] * 1.001}, file)
    assert run(copy, "--only", name) == 1
    assert lines_of(capsys.readouterr().out)[name][0] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize(("factor", "status"), [(1.009, 0), (1.02, 1)])
def test_null_text_is_given_a_hundredth(copy, factor, status):
    file = copy / "nti_p2p_replace.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "traj": tensors["traj"] * factor}, file)
    assert run(copy, "--only", "nti_p2p_replace") == status


@pytest.mark.parametrize(
    "change",
    [{"num_inner_steps": 0}, {"early_stop_epsilon": 1.0}, {"guidance_scale": 7.0}],
    ids=str,
)
def test_every_setting_of_null_text_is_read(copy, change):
    file = copy / "nti_p2p_replace.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert run(copy, "--only", "nti_p2p_replace") == 1


@pytest.mark.parametrize("name", ["di_p2p_replace", "ddim_p2p_replace"])
def test_each_row_is_compared_by_itself(copy, name):
    """Every row of every tensor is off by another number, and each is told as its own."""
    file, off = copy / f"{name}.safetensors", {}
    tensors = load_file(file)
    for key in ("traj", "final"):
        for row, who in enumerate(("source", "target")):
            off[f"{key}.{who}"] = 1e-3 * (1 + len(off))
            tensors[key][..., row, :, :, :] *= 1 + off[f"{key}.{who}"]
    save_file(tensors, file)
    found = result(name, copy)
    assert found.errors == pytest.approx(off, rel=0.05)
    assert not found.passed and found.worst[1] == "final.target"


@pytest.mark.parametrize("row", [0, 1], ids=["source", "target"])
def test_a_row_that_is_off_is_named_in_the_table(copy, row, capsys):
    file = copy / "di_p2p_reweight.safetensors"
    tensors = load_file(file)
    tensors["final"][..., row, :, :, :] *= 1.001
    save_file(tensors, file)
    assert run(copy, "--only", "di_p2p_reweight") == 1
    assert f"final.{('source', 'target')[row]}" in capsys.readouterr().out


def test_nan_fails(copy):
    file = copy / "ddim_inversion.safetensors"
    save_file({k: t * torch.nan if k == "traj" else t for k, t in load_file(file).items()}, file)
    assert run(copy, "--only", "ddim_inversion") == 1


SETTINGS = {
    "di_p2p_replace": {"self_replace_steps": 0.3},
    "di_p2p_refine": {"cross_replace_steps": {"default_": 0.8, "flowers": 1.0}},
    "di_p2p_reweight": {"eq_params": {"words": ["blue"], "values": [4]}},
    "ddim_p2p_replace": {"guidance_scale": 7.4},
    "npi_p2p_replace": {"prox": "l0", "quantile": 0.6},
    "npi_proximal_l0_refine": {"quantile": 0.7},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_a_case_is_read(copy, name):
    file = copy / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SETTINGS[name]))
    assert run(copy, "--only", name) == 1


def test_the_tail_after_a_replaced_word_stays_where_the_published_code_leaves_it(monkeypatch):
    """Both pairs under Replace have unequal token counts, or this switch would change nothing."""
    moved = parity_edit.rewrite_prompt
    monkeypatch.setattr(
        parity_edit, "rewrite_prompt", lambda *a, **k: moved(*a, **k | {"published_tail": False})
    )
    assert run(QUICK, "--only", "di_p2p_replace") == 1
    assert run(QUICK, "--only", "ddim_p2p_replace") == 1


@pytest.mark.parametrize(
    "change",
    [{"prox": None}, {"prox": "l1"}, {"quantile": -0.5}, {"npi_interp": 0.2}],
    ids=str,
)
def test_every_setting_of_proximal_guidance_is_read(copy, change):
    file = copy / "npi_proximal_l0_refine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert run(copy, "--only", "npi_proximal*") == 1


def test_an_unknown_threshold_is_named(copy, capsys):
    file = copy / "npi_proximal_l0_refine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prox": "l2"}))
    assert run(copy, "--only", "npi_proximal*") == 1
    assert "has the threshold l2, known are l0, l1" in capsys.readouterr().err


def test_cross_windows_may_be_one_number_as_the_published_code_allows(copy):
    file = copy / "ddim_p2p_replace.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_replace_steps": 0.7}))
    assert run(copy, "--only", "ddim_p2p_replace") == 0


def test_words_that_the_target_lacks_are_passed_over_as_the_published_code_does(copy):
    file = copy / "di_p2p_reweight.json"
    settings = json.loads(file.read_text())
    settings["eq_params"]["words"].append("horse")
    settings["eq_params"]["values"].append(9)
    settings["cross_replace_steps"]["red"] = 1.0
    file.write_text(json.dumps(settings))
    assert run(copy, "--only", "di_p2p_reweight") == 0


def test_patterns_choose_cases(capsys):
    assert run(QUICK, "--only", "ddim_inv*,di_p2p_rew?ight") == 0
    assert set(lines_of(capsys.readouterr().out)) == {"ddim_inversion", "di_p2p_reweight"}


def test_a_pattern_without_a_case_fails_with_a_sentence(capsys):
    assert run(QUICK, "--only", "no_such_case") == 1
    assert "no_such_case" in capsys.readouterr().err


def test_a_missing_folder_fails_with_a_sentence(tmp_path, capsys):
    assert run(tmp_path / "nowhere") == 1
    assert "give a folder of golden cases" in capsys.readouterr().err


def test_a_missing_model_fails_with_a_sentence(tmp_path, capsys):
    assert main([str(QUICK), "--model", str(tmp_path)]) == 1
    assert "--model" in capsys.readouterr().err


def test_a_missing_default_folder_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity, "GOLDEN", tmp_path)
    assert main([]) == 1
    assert str(tmp_path / "public") in capsys.readouterr().err


def test_a_damaged_case_fails_with_a_sentence_and_the_others_still_run(copy, capsys):
    (copy / "ddim_inversion.safetensors").write_bytes(b"cut off")
    assert run(copy, "--only", "ddim_inversion,directinversion_inv*") == 1
    told = capsys.readouterr()
    assert "The case ddim_inversion cannot be read" in told.err
    assert set(lines_of(told.out)) == {"directinversion_inv_replace"}


def test_a_prompt_that_the_folder_lacks_is_named(copy, capsys):
    file = copy / "ddim_inversion.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prompt_src": "a horse"}))
    assert run(copy, "--only", "ddim_inversion") == 1
    assert "a horse" in capsys.readouterr().err


def test_words_know_their_tokens():
    folder = golden.open_folder(QUICK, MODEL)
    words = folder.prompt("a ultramarine circle on a green wall").tokens.words
    assert [(w.text, w.positions) for w in words[:3]] == [
        ("a", (1,)),
        ("ultramarine", (2, 3)),
        ("circle", (4,)),
    ]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_golden", TESTS / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_maker_makes_what_is_stored(maker, tmp_path):
    unet = maker.write_model(tmp_path)
    for name in ("unet.safetensors", "latents.safetensors"):
        made, stored = load_file(tmp_path / name), load_file(MODEL / name)
        assert made.keys() == stored.keys()
        # The last bit of half precision, should another machine's rounding differ somewhere.
        for key in made:
            torch.testing.assert_close(made[key], stored[key], rtol=1e-3, atol=1e-6)
    settings, tensors = maker.make_case("di_p2p_reweight", unet.double())
    stored = golden.open_folder(QUICK, MODEL).case("di_p2p_reweight")
    assert settings == stored.settings
    for key, tensor in tensors.items():
        # float64 on another machine, rounded to float32: a last bit may fall the other way.
        torch.testing.assert_close(tensor, stored.tensors[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in ROWS if "p2p" in n])
def test_the_control_of_a_case_changes_its_edit(name):
    assert json.loads((QUICK / f"{name}.json").read_text())["control_changes"] > 0.05
