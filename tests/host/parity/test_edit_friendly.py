"""Edit-Friendly DDPM beside the small cases that tests/make_golden_edit_friendly.py makes."""

import pytest
from palimpsest.benchmarks.parity import edit_friendly as parity_edit_friendly
from palimpsest.benchmarks.parity.edit_friendly import Windows
from palimpsest.pipelines.attention.prompt_to_prompt import cross_windows
from palimpsest.pipelines.correction import CYCLE
from palimpsest.tests.host.parity.cases import TESTS, Cases

CASES = Cases(TESTS / "data" / "edit_friendly", "make_golden_edit_friendly")

#: Guesses of the walked levels (twice that where guided), the target's two rows a step, and the
#: source's one while a window is open. Published: 8 levels twice, and two rows a row and step.
ROWS = {
    "ef_ours": (2 * 5 + 2 * 5, 16 + 10),
    "ef_p2p_refine": (2 * 5 + 2 * 5 + 5, 16 + 20),
    "ef_p2p_replace": (6 + 2 * 6 + 4, 16 + 24),
}

#: fp32 against fp64, the noise multiplied by guidance up to 15. A mistake is 1e-3 or more.
ROUNDING = 2e-5


@pytest.mark.parametrize("name", ROWS)
def test_every_case_agrees_and_costs_less(name):
    found = CASES.result(name)
    assert found.worst[0] < ROUNDING
    nfe = CASES.settings(name)["nfe"]
    assert (found.rows, sum(part["samples"] for part in nfe.values())) == ROWS[name]


TENSORS = {
    "ef_ours": ("wts", "zs", "final", "traj"),
    "ef_p2p_refine": ("zs", "final"),
    "ef_p2p_replace": ("zs", "final"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_each_tensor_is_compared_by_itself(copy, name):
    """Each is off by another number, and told as its own."""
    off = {key: 1e-3 * n for n, key in enumerate(TENSORS[name], start=1)}
    copy.scale(name, **{key: 1 + part for key, part in off.items()})
    found = copy.result(name)
    told = {key: off[key.partition(".")[0]] for key in found.errors}
    assert found.errors == pytest.approx(told, rel=0.05)
    assert {key.partition(".")[0] for key in told} == off.keys()
    assert not found.passed


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_a_thousandth_off_fails(copy, name, capsys):
    copy.scale(name, zs=1.001)
    assert copy.bench(name) == 1
    assert "  zs" in capsys.readouterr().out


@pytest.mark.parametrize("row", [0, 1], ids=["source", "target"])
def test_each_row_is_compared_by_itself(copy, row, capsys):
    copy.scale("ef_p2p_replace", final=[1.001 if row == at else 1.0 for at in (0, 1)])
    assert copy.bench("ef_p2p_replace") == 1
    assert f"final.{('source', 'target')[row]}" in capsys.readouterr().out


SETTINGS = [
    ("ef_ours", {"cfg_src": 3.4}),
    ("ef_ours", {"cfg_tar": 14.9}),
    ("ef_p2p_replace", {"cross_replace_steps": 0.6}),
    ("ef_p2p_replace", {"self_replace_steps": 0.4}),
    ("ef_p2p_replace", {"controller": "AttentionRefine"}),
    ("ef_p2p_refine", {"cfg_tar": 8.9}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=str)
def test_every_setting_of_a_case_is_read(copy, name, settings):
    copy.say(name, **settings)
    assert copy.bench(name) == 1


def test_cross_windows_may_have_words_of_their_own(copy):
    whole = copy.settings("ef_p2p_replace")["cross_replace_steps"]
    cross = {"default_": whole, "red": 1.0}  # not of the target: no word
    copy.say("ef_p2p_replace", cross_replace_steps=cross)
    assert copy.bench("ef_p2p_replace") == 0
    copy.say("ef_p2p_replace", cross_replace_steps=cross | {"ultramarine": [0.0, 0.8]})
    assert copy.bench("ef_p2p_replace") == 1


def test_larger_maps_of_self_attention_are_left_alone(monkeypatch):
    """The case has 16 x 24 pixels at the top: more than 16 x 16, fewer than 32 x 32."""
    assert CASES.result("ef_p2p_replace").worst[0] < ROUNDING
    monkeypatch.setattr(parity_edit_friendly, "SELF_PIXELS", 32**2)
    assert CASES.result("ef_p2p_replace").worst[0] > 100 * ROUNDING


def test_the_last_step_repeats_no_noise(monkeypatch):
    monkeypatch.setattr(parity_edit_friendly, "DIRECT_INVERSION", CYCLE)
    found = CASES.result("ef_ours")
    assert found.errors["final.target"] > 100 * ROUNDING
    assert found.errors["wts"] < ROUNDING


def test_another_eta_is_refused_since_the_published_step_is_none_then(copy, capsys):
    copy.say("ef_ours", eta=0.5)
    assert copy.bench("ef_ours") == 1
    assert "only eta 1 is compared" in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "skip"), [(50, 12), (100, 36), (8, 2), (10, 4), (7, 0)])
@pytest.mark.parametrize("bound", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, [0.1, 0.5]])
def test_a_window_ends_at_the_published_step(steps, skip, bound):
    """Rows [int(first * (steps + 1)), int(last * (steps + 1))) of the words, counted after the
    skip; `steps` of self-attention."""
    walked = steps - skip
    windows = Windows(steps, walked)
    first, last = bound if isinstance(bound, list) else (0.0, bound)
    words = cross_windows(1, windows.cross(bound), {})[0] * (walked + 1)
    own = [int(walked * part) for part in windows.own(bound)]
    for i in range(walked):
        published = int(first * (steps + 1)) <= i < int(last * (steps + 1))
        assert (int(words[0]) <= i < int(words[1])) == published
        assert (own[0] <= i < own[1]) == (int(first * steps) <= i < int(last * steps))


def test_the_maker_makes_what_is_stored():
    CASES.assert_made_again("ef_p2p_replace", CASES.maker.base.make_unet())
