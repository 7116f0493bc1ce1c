"""Parity with published edits, on the small cases that tests/make_golden.py computes."""

import math

import pytest
import torch
from palimpsest.benchmarks.parity import __main__ as parity
from palimpsest.benchmarks.parity import edit as parity_edit
from palimpsest.benchmarks.parity import golden
from palimpsest.benchmarks.parity.__main__ import main
from palimpsest.tests.host.parity.cases import MODEL, TESTS, Cases
from safetensors.torch import load_file, save_file

CASES = Cases(TESTS / "data" / "quick", "make_golden")

#: Our rows and the published ones: N up, N x 2 down, and N x .6 source rows for the self window
#: (twice that, guided, and to the end, where the source drifts, but once where its two halves are
#: one); published 5 N and 4 N, or 3 N, or N.
ROWS = {
    "ddim_inversion": (8, 8),
    "ddim_p2p_replace": (8 + 16 + 16, 56),
    "di_p2p_refine": (8 + 16 + 8, 72),
    "di_p2p_replace": (8 + 16 + 4, 72),
    # LocalBlend reads the source in every step.
    "di_p2p_refine_lb": (8 + 16 + 8, 72),
    "ddim_p2p_replace_lb": (6 + 12 + 12, 42),
    "di_p2p_reweight": (6 + 12 + 3, 54),
    "directinversion_inv_replace": (5 + 20, 25),
    "nti_p2p_replace": (6 + 6 + 16 + 6 + 12 + 3, 64),  # 16 inner steps; published 2 rows at a step
    "npi_p2p_replace": (8 + 16 + 8, 40),
    # One source row for both branches where its prompt is the negative, from step 1 on.
    "di_masactrl": (8 + 16 + 7, 72),
    "di_masactrl_prompt": (6 + 12 + 2 * 4, 54),
    "ddim_masactrl": (8 + 16 + 16, 48),
    # One source row until the later window closes; a reconstruction is walked where it is shown.
    "di_pnp": (8 + 16 + 6, 40),
    "ddim_pnp": (5 + 5 + 10 + 4, 25),
    "npi_proximal_l0_refine": (6 + 12 + 6, 30),
    # One source row, two that are moved and two of the guidance; published 2 + 2 + 2 at a step.
    "di_pix2pixzero": (5 + 5 + 20, 35),
    "ddim_pix2pixzero": (5 + 5 + 20, 35),
}

INVERSIONS = {"ddim_inversion", "directinversion_inv_replace"}


def lines_of(text):
    """Name, error, our rows and published rows of every case in a printed table."""
    words = [line.split() for line in text.splitlines()[2:-1]]
    return {w[0]: (float(w[1]), int(w[2]), int(w[3])) for w in words}


def test_every_case_is_run_and_agrees(capsys):
    assert CASES.bench() == 0
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
    "di_masactrl": "traj",
    "ddim_masactrl": "inv_traj",
    "di_pnp": "inverted_x",
    "ddim_pnp": "final",
    "npi_p2p_replace": "traj",
    "npi_proximal_l0_refine": "final",
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_a_thousandth_off_fails(copy, name, capsys):
    copy.scale(name, **{TENSORS[name]: 1.001})
    assert copy.bench(name) == 1
    assert lines_of(capsys.readouterr().out)[name][0] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize(("factor", "status"), [(1.009, 0), (1.02, 1)])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("nti_p2p_replace", "traj"),
        ("di_pix2pixzero", "final"),
        ("di_pix2pixzero", "edit_dir"),
        ("ddim_pix2pixzero", "recon"),
    ],
)
def test_what_follows_slopes_is_given_a_hundredth(copy, name, tensor, factor, status):
    copy.scale(name, **{tensor: factor})
    assert copy.bench(name) == status


@pytest.mark.parametrize(
    "change",
    [{"num_inner_steps": 0}, {"early_stop_epsilon": 1.0}, {"guidance_scale": 7.0}],
    ids=str,
)
def test_every_setting_of_null_text_is_read(copy, change):
    copy.say("nti_p2p_replace", **change)
    assert copy.bench("nti_p2p_replace") == 1


@pytest.mark.parametrize("name", ["di_p2p_replace", "ddim_p2p_replace"])
def test_each_row_is_compared_by_itself(copy, name):
    """Every row of every tensor is off by another number, and each is told as its own."""
    off = {"traj": (1e-3, 2e-3), "final": (3e-3, 4e-3)}
    copy.scale(name, **{key: [1 + part for part in parts] for key, parts in off.items()})
    found = copy.result(name)
    told = {
        f"{key}.{who}": part
        for key, parts in off.items()
        for who, part in zip(("source", "target"), parts, strict=True)
    }
    assert found.errors == pytest.approx(told, rel=0.05)
    assert not found.passed and found.worst[1] == "final.target"


@pytest.mark.parametrize("row", [0, 1], ids=["source", "target"])
def test_a_row_that_is_off_is_named_in_the_table(copy, row, capsys):
    copy.scale("di_p2p_reweight", final=[1.001 if row == at else 1.0 for at in (0, 1)])
    assert copy.bench("di_p2p_reweight") == 1
    assert f"final.{('source', 'target')[row]}" in capsys.readouterr().out


def test_nan_fails(copy):
    copy.scale("ddim_inversion", traj=math.nan)
    assert copy.bench("ddim_inversion") == 1


SETTINGS = {
    "di_p2p_replace": {"self_replace_steps": 0.3},
    "di_p2p_refine": {"cross_replace_steps": {"default_": 0.8, "flowers": 1.0}},
    "di_p2p_reweight": {"eq_params": {"words": ["blue"], "values": [4]}},
    "ddim_p2p_replace": {"guidance_scale": 7.4},
    "di_masactrl": {"start_step": 2},
    "ddim_masactrl": {"start_layer": 3},
    "di_masactrl_prompt": {"prompt_src_branch": ""},
    "di_pnp": {"pnp_attn_t": 0.3},
    "ddim_pnp": {"pnp_f_t": 0.8},
    "di_pix2pixzero": {"xa_guidance": 0.3},
    "ddim_pix2pixzero": {"guidance_scale": 5.0},
    "npi_p2p_replace": {"prox": "l0", "quantile": 0.6},
    "npi_proximal_l0_refine": {"quantile": 0.7},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_a_case_is_read(copy, name):
    copy.say(name, **SETTINGS[name])
    assert copy.bench(name) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"lb_threshold": [0.9, 0.95]},
        {"lb_threshold": [0.85, 0.85]},
        {"lb_start_blend": 0.3},
        {"blend_words": [["field"], ["yellow"]]},
        {"blend_words": [["green"], ["flowers"]]},
        {"substruct_words": None},
        {"substruct_words": [["circle"], ["with"]]},
        {"blend_words": None},
    ],
    ids=str,
)
def test_every_setting_of_local_blend_is_read(copy, change):
    copy.say("di_p2p_refine_lb", **change)
    assert copy.bench("di_p2p_refine_lb") == 1


def test_one_cell_of_one_mask_that_differs_fails_and_is_named(copy, capsys):
    path = copy.folder / "di_p2p_refine_lb.safetensors"
    tensors = load_file(path)
    tensors["lb_masks"][3, 1, 0, 5, 7] ^= 1
    save_file(tensors, path)
    assert copy.bench("di_p2p_refine_lb") == 1
    found = copy.result("di_p2p_refine_lb").errors["lb_masks"]
    assert found == pytest.approx(1 / tensors["lb_masks"][:, 1].numel())
    assert "lb_masks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [{"lambda_ac": 40}, {"lambda_kl": 400}, {"num_reg_steps": 1}, {"num_ac_rolls": 1}],
    ids=str,
)
def test_every_setting_of_noise_regularisation_is_read(copy, change):
    copy.say("ddim_pix2pixzero", **change)
    assert copy.bench("ddim_pix2pixzero") == 1


def test_the_tail_after_a_replaced_word_stays_where_the_published_code_leaves_it(monkeypatch):
    """Both pairs under Replace have unequal token counts, or this switch would change nothing."""
    moved = parity_edit.rewrite_prompt
    monkeypatch.setattr(
        parity_edit, "rewrite_prompt", lambda *a, **k: moved(*a, **k | {"published_tail": False})
    )
    assert CASES.bench("di_p2p_replace") == 1
    assert CASES.bench("ddim_p2p_replace") == 1


@pytest.mark.parametrize(
    "change",
    [{"prox": None}, {"prox": "l1"}, {"quantile": -0.5}, {"npi_interp": 0.2}],
    ids=str,
)
def test_every_setting_of_proximal_guidance_is_read(copy, change):
    copy.say("npi_proximal_l0_refine", **change)
    assert copy.bench("npi_proximal*") == 1


def test_an_unknown_threshold_is_named(copy, capsys):
    copy.say("npi_proximal_l0_refine", prox="l2")
    assert copy.bench("npi_proximal*") == 1
    assert "has the threshold l2, known are l0, l1" in capsys.readouterr().err


def test_cross_windows_may_be_one_number_as_the_published_code_allows(copy):
    copy.say("ddim_p2p_replace", cross_replace_steps=0.7)
    assert copy.bench("ddim_p2p_replace") == 0


def test_words_that_the_target_lacks_are_passed_over_as_the_published_code_does(copy):
    said = copy.settings("di_p2p_reweight")
    weights, cross = said["eq_params"], said["cross_replace_steps"]
    copy.say(
        "di_p2p_reweight",
        eq_params={"words": [*weights["words"], "horse"], "values": [*weights["values"], 9]},
        cross_replace_steps=cross | {"red": 1.0},
    )
    assert copy.bench("di_p2p_reweight") == 0


def test_patterns_choose_cases(capsys):
    assert CASES.bench("ddim_inv*", "di_p2p_rew?ight") == 0
    assert set(lines_of(capsys.readouterr().out)) == {"ddim_inversion", "di_p2p_reweight"}


def test_a_pattern_without_a_case_fails_with_a_sentence(capsys):
    assert CASES.bench("no_such_case") == 1
    assert "no_such_case" in capsys.readouterr().err


def test_a_missing_folder_fails_with_a_sentence(tmp_path, capsys):
    assert Cases(tmp_path / "nowhere", "").bench() == 1
    assert "give a folder of golden cases" in capsys.readouterr().err


def test_a_missing_model_fails_with_a_sentence(tmp_path, capsys):
    assert main([str(CASES.folder), "--model", str(tmp_path)]) == 1
    assert "--model" in capsys.readouterr().err


def test_a_missing_default_folder_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity, "GOLDEN", tmp_path)
    assert main([]) == 1
    assert str(tmp_path / "public") in capsys.readouterr().err


def test_a_case_without_a_pipeline_fails_and_is_named(copy, capsys):
    """A check that skips cannot pass."""
    copy.say("ddim_inversion", method="a method of next year")
    assert copy.bench("ddim_inversion", "directinversion_inv*") == 1
    told = capsys.readouterr().out
    assert "ddim_inversion                   not built yet: a method of next year" in told
    assert "1 of 2 cases within tolerance" in told


def test_a_damaged_case_fails_with_a_sentence_and_the_others_still_run(copy, capsys):
    (copy.folder / "ddim_inversion.safetensors").write_bytes(b"cut off")
    assert copy.bench("ddim_inversion", "directinversion_inv*") == 1
    told = capsys.readouterr()
    assert "The case ddim_inversion cannot be read" in told.err
    assert set(lines_of(told.out)) == {"directinversion_inv_replace"}


def test_a_prompt_that_the_folder_lacks_is_named(copy, capsys):
    copy.say("ddim_inversion", prompt_src="a horse")
    assert copy.bench("ddim_inversion") == 1
    assert "a horse" in capsys.readouterr().err


def test_words_know_their_tokens():
    folder = golden.open_folder(CASES.folder, MODEL)
    words = folder.prompt("a ultramarine circle on a green wall").tokens.words
    assert [(w.text, w.positions) for w in words[:3]] == [
        ("a", (1,)),
        ("ultramarine", (2, 3)),
        ("circle", (4,)),
    ]


def test_the_maker_makes_what_is_stored(tmp_path):
    unet = CASES.maker.write_model(tmp_path)
    for name in ("unet.safetensors", "latents.safetensors"):
        made, stored = load_file(tmp_path / name), load_file(MODEL / name)
        assert made.keys() == stored.keys()
        # The last bit of half precision, should another machine's rounding differ somewhere.
        for key in made:
            torch.testing.assert_close(made[key], stored[key], rtol=1e-3, atol=1e-6)
    made_again = ("di_p2p_reweight", "di_p2p_refine_lb", "di_masactrl_prompt", "ddim_pnp")
    for name in (*made_again, "di_pix2pixzero"):
        CASES.assert_made_again(name, unet)


@pytest.mark.parametrize(
    "name", [n for n in ROWS if any(word in n for word in ("p2p", "masactrl", "pnp", "pix2pix"))]
)
def test_the_control_of_a_case_changes_its_edit(name):
    assert CASES.settings(name)["control_changes"] > 0.05
