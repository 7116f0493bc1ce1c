"""The sums of fused attentions beside the published controllers, which edit explicit maps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.prompt_to_prompt import cross_windows, rewrite_prompt
from palimpsest.pipelines.attention.tokens import positions_of
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import Refine, Replace, Reweight, attention, controlled, cross_alpha
from palimpsest.tests.unit.prompts import prompt

STEPS, TOKENS, PIXELS, CHANNELS = 10, 12, 9, 16
SELF, CROSS = Site("self", 0, "cond"), Site("cross", 0, "cond")
HEADS = pytest.mark.parametrize("heads", [1, 4])

SIZES = {"tiger": 2, "tyrannosaurus": 3}
PAIRS = {
    "equal": ("a red cat on grass", "a blue cat on grass"),
    "longer": ("a red cat on grass", "a tyrannosaurus tiger on grass"),
    "shorter": ("a tyrannosaurus cat on tiger", "a red tiger on grass"),
    "more": ("a red cat", "a big red cat with a hat"),
    "fewer": ("a big red cat with a tiger", "a red tiger"),
}
LIKE_FOR_LIKE = ("equal", "longer", "shorter")

WINDOWS = [0.4, 0.8, 1.0, (0.2, 0.6)]
WORD_WINDOWS = {"a": (0.1, 0.9), "red": 1.0}


def described(texts):
    return tuple(prompt(text, TOKENS, **SIZES) for text in texts)


def qkv(rows=1, queries=PIXELS, keys=TOKENS, seed=0, dtype=torch.float64):
    sizes = (queries, keys, keys)
    return QKV(
        *(2 * picture(rows, n, CHANNELS, seed=seed + i, dtype=dtype) for i, n in enumerate(sizes))
    )


def pair(value):
    return (0.0, value) if isinstance(value, float) else value


def ours(control, step, target, source, heads, site=CROSS):
    """The cond rows of one call, as a host makes them: record, then inject."""
    bank = Bank(control)
    bank.begin(moment(step, STEPS))
    bank.record(site, source)
    sdpa = lambda term: attention(term, heads)
    return attend(target, site, [site.role], bank.inject, sdpa)


def published(control, mode, texts, step, target, source, heads, window, weights, words):
    """The same through explicit maps. The alignment tables are taken over: they have own tests."""
    _, described_target = described(texts)
    places = [
        (positions_of(word, described_target, role=""), bounds) for word, bounds in words.items()
    ]
    alpha = cross_alpha(STEPS, TOKENS, window, places)[step]
    if mode == "replace":
        rewrite = Replace(control.alignment.mapping)
    else:
        origin = control.alignment.mapping.argmax(0).tolist()
        new = (control.alignment.aligned == 0).tolist()
        rewrite = Refine([-1 if n else m for m, n in zip(origin, new, strict=True)])
    if weights:
        factors = torch.ones(TOKENS)
        for word, factor in weights.items():
            factors[list(positions_of(word, described_target, role=""))] = factor
        rewrite = Reweight(factors, rewrite)
    return controlled(target, source, heads, rewrite, alpha)


def largest_difference(mode, texts, *, heads, window=0.4, weights=None, words=None, **data):
    """Over all steps, between the two ways to compute the controlled attention."""
    weights, words = weights or {}, words or {}
    control = rewrite_prompt(
        *described(texts),
        mode=mode,
        cross_window=pair(window),
        weights=weights,
        word_windows={word: pair(bounds) for word, bounds in words.items()},
    )
    worst = 0.0
    for step in range(STEPS):
        target, source = qkv(seed=10 * step, **data), qkv(seed=10 * step + 5, **data)
        expected = published(
            control, mode, texts, step, target, source, heads, window, weights, words
        )
        worst = max(worst, distance(ours(control, step, target, source, heads), expected))
    return worst


#: Both are sums of a dozen products of order 10; fp32 rounds each to 1e-7.
EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
PRECISIONS = pytest.mark.parametrize("dtype", EXACT, ids=["fp64", "fp32"])


@HEADS
@PRECISIONS
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", LIKE_FOR_LIKE)
def test_replace_is_the_published_controller(name, window, heads, dtype):
    found = largest_difference("replace", PAIRS[name], heads=heads, window=window, dtype=dtype)
    assert found < EXACT[dtype]


@HEADS
@PRECISIONS
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_refine_is_the_published_controller(name, window, heads, dtype):
    found = largest_difference("refine", PAIRS[name], heads=heads, window=window, dtype=dtype)
    assert found < EXACT[dtype]


@PRECISIONS
@pytest.mark.parametrize(
    ("mode", "texts"),
    [
        ("replace", ("a red cat", "a red cat")),  # reweight alone: nothing is rewritten
        ("refine", ("a red cat", "a red cat")),
        ("replace", ("a big cat on grass", "a red tiger on grass")),
        ("refine", ("a cat on grass", "a red tiger on grass")),
    ],
    ids=["alone", "alone by refine", "on replace", "on refine"],
)
@pytest.mark.parametrize("weights", [{"red": 4.0}, {"red": -2.0, "a": 0.5}, {"red": 0.0}], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_reweight_is_the_published_controller(mode, texts, weights, window, dtype):
    found = largest_difference(mode, texts, heads=2, window=window, weights=weights, dtype=dtype)
    assert found < EXACT[dtype]


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("weights", [{}, {"red": 3.0}], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_words_may_have_windows_of_their_own(mode, weights, window):
    texts = ("a tiger cat on grass", "a red tiger on grass")
    options = {"heads": 2, "window": window, "weights": weights}
    assert largest_difference(mode, texts, words=WORD_WINDOWS, **options) < 1e-12


@settings(max_examples=25)
@given(
    st.sampled_from(["replace", "refine"]),
    st.sampled_from(sorted(LIKE_FOR_LIKE)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(-5, 5),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_any_setting_is_the_published_controller(mode, name, window, weight, own):
    found = largest_difference(
        mode, PAIRS[name], heads=2, window=window, weights={"a": weight}, words={"on": own}
    )
    assert found < 1e-12


PARTS = {
    "weights": lambda c: replace(c, weights=torch.ones(TOKENS)),
    "windows": lambda c: replace(c, cross_windows=cross_windows(TOKENS, (0.2, 0.6), {})),
    "new tokens": lambda c: replace(c, alignment=replace(c.alignment, aligned=torch.ones(TOKENS))),
    "mapping": lambda c: replace(c, alignment=replace(c.alignment, mapping=torch.eye(TOKENS))),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_comparison_sees_every_part_of_the_rule(part):
    """Each part, left out of ours, must show: otherwise the tests above would say nothing."""
    texts = ("a cat on grass", "a red tiger on grass")
    full = rewrite_prompt(
        *described(texts),
        mode="refine",
        cross_window=(0.2, 0.6),
        weights={"red": 3.0},
        word_windows={"a": (0.0, 1.0)},
    )
    target, source = qkv(seed=1), qkv(seed=4)
    setting = (target, source, 2, (0.2, 0.6), {"red": 3.0}, {"a": 1.0})
    worst = {"full": 0.0, "without": 0.0}
    for step in range(STEPS):
        expected = published(full, "refine", texts, step, *setting)
        for name, control in (("full", full), ("without", PARTS[part](full))):
            found = distance(ours(control, step, target, source, 2), expected)
            worst[name] = max(worst[name], found)
    assert worst["full"] < 1e-12
    assert worst["without"] > 1e-2


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("copies", [(2, 1), (2, 2), (1, 2), (3, 1)], ids=str)
def test_prompts_that_a_host_repeats_to_pad_a_batch_give_the_same(mode, step, copies):
    """ComfyUI repeats a prompt of 77 tokens to go with one of 154, in either row."""
    control = rewrite_prompt(
        *described(("a red cat on grass", "a tyrannosaurus cat on grass")),
        mode=mode,
        weights={"cat": 2.0},
        word_windows={"on": (0.0, 0.9)},
    )
    target, source = qkv(seed=1), qkv(seed=4)
    tiled = [
        QKV(t.q, t.k.repeat(1, n, 1), t.v.repeat(1, n, 1))
        for t, n in zip((target, source), copies, strict=True)
    ]
    once = ours(control, step, target, source, 2)
    assert distance(ours(control, step, *tiled, 2), once) < 1e-12


def test_prompts_of_unequal_rows_give_what_the_matrices_say():
    """Only the source's own keys are looked at, however many tokens the target has."""
    source_text = prompt("a red cat", 8)
    target_text = prompt("a red cat with a very long tail on a mat", 16)
    control = rewrite_prompt(source_text, target_text, mode="refine", cross_window=(0.0, 1.0))
    target, source = qkv(keys=16, seed=1), qkv(keys=8, seed=4)
    origin = control.alignment.mapping.argmax(0).tolist()
    new = (control.alignment.aligned == 0).tolist()
    rewrite = Refine([-1 if n else m for m, n in zip(origin, new, strict=True)])
    expected = controlled(target, source, 2, rewrite, torch.ones(16))
    assert distance(ours(control, 0, target, source, 2), expected) < 1e-12


@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_of_targets_reads_one_source(batch):
    control = rewrite_prompt(*described(PAIRS["longer"]))
    targets, source = qkv(batch, seed=1), qkv(seed=4)
    alone = [
        ours(control, 0, QKV(*(t[i : i + 1] for t in targets)), source, 2) for i in range(batch)
    ]
    assert distance(ours(control, 0, targets, source, 2), torch.cat(alone)) < 1e-13


# -- self-attention ------------------------------------------------------------------------------


@HEADS
@PRECISIONS
def test_self_attention_is_the_sources_maps_on_the_targets_values(heads, dtype):
    control = rewrite_prompt(*described(PAIRS["equal"]))
    target, source = (qkv(keys=PIXELS, seed=seed, dtype=dtype) for seed in (1, 4))
    expected = attention((source.q, source.k, target.v), heads)
    found = ours(control, 0, target, source, heads, SELF)
    assert distance(found, expected) < EXACT[dtype]
    assert distance(found, attention(target, heads)) > 0.1


@pytest.mark.parametrize(
    ("window", "steps", "open_steps"),
    [
        ((0.0, 0.6), 50, range(30)),
        ((0.0, 0.6), 10, range(6)),
        ((0.2, 0.5), 10, range(2, 5)),
        ((0.0, 0.0), 10, range(0)),
        ((0.0, 1.0), 10, range(10)),
        ((0.0, 0.55), 10, range(5)),
    ],
)
def test_the_self_window_counts_steps(window, steps, open_steps):
    control = rewrite_prompt(
        *described(PAIRS["equal"]), self_window=window, cross_window=(0.0, 0.0)
    )
    assert [
        s for s in range(steps) if control.reads(SELF._replace(tokens=9), moment(s, steps))
    ] == list(open_steps)
    assert [s for s in range(steps) if control.active(moment(s, steps))] == list(open_steps)


@pytest.mark.parametrize(
    ("window", "steps", "open_steps"),
    [
        (0.4, 50, range(20)),
        (0.8, 50, range(40)),
        (1.0, 50, range(50)),
        (0.4, 10, range(4)),
        ((0.2, 0.6), 10, range(2, 6)),
        (0.0, 10, range(0)),
    ],
)
def test_the_cross_window_counts_one_row_more_than_steps(window, steps, open_steps):
    """int(0.4 * 51) = 20, as the published array of steps + 1 rows has it."""
    control = rewrite_prompt(
        *described(PAIRS["equal"]), self_window=(0.0, 0.0), cross_window=pair(window)
    )
    assert [
        s for s in range(steps) if control.reads(CROSS._replace(tokens=9), moment(s, steps))
    ] == list(open_steps)
    assert [s for s in range(steps) if control.active(moment(s, steps))] == list(open_steps)


@pytest.mark.parametrize("pixels", [1, 16**2, 32**2, 32**2 + 1, 64**2])
def test_large_feature_maps_keep_their_own_self_attention(pixels):
    control = rewrite_prompt(*described(PAIRS["equal"]))
    assert control.reads(SELF._replace(tokens=pixels), moment(0, STEPS)) == (pixels <= 1024)
    assert control.reads(CROSS._replace(tokens=pixels), moment(0, STEPS))


@pytest.mark.parametrize("site", [SELF, CROSS])
def test_the_unconditional_row_is_never_touched(site):
    control = rewrite_prompt(*described(PAIRS["equal"]))
    bank = Bank(control, at=moment(0, STEPS))
    uncond = site._replace(role="uncond")
    bank.record(uncond, qkv())
    assert bank.empty
    assert bank.inject(uncond, qkv()) is None


@pytest.mark.parametrize("site", [SELF, CROSS])
def test_after_its_windows_the_control_is_idle(site):
    bank = Bank(rewrite_prompt(*described(PAIRS["equal"])))
    bank.begin(moment(STEPS - 1, STEPS))
    bank.record(site, qkv())
    assert bank.empty
    assert bank.inject(site, qkv()) is None


def test_a_fully_replaced_prompt_needs_one_term_only():
    control = rewrite_prompt(*described(PAIRS["equal"]), mode="replace")
    assert len(control.terms(qkv(), qkv(seed=4), CROSS, moment(0, STEPS))) == 1
    halfway = rewrite_prompt(*described(PAIRS["more"]), mode="refine")
    assert len(halfway.terms(qkv(), qkv(seed=4), CROSS, moment(0, STEPS))) == 2


# -- making a control ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_auto_replaces_where_words_match_one_to_one_and_refines_elsewhere(name):
    mode = "replace" if name in LIKE_FOR_LIKE else "refine"
    chosen, named = (rewrite_prompt(*described(PAIRS[name]), mode=m) for m in ("auto", mode))
    assert torch.equal(chosen.alignment.mapping, named.alignment.mapping)
    assert torch.equal(chosen.alignment.aligned, named.alignment.aligned)


def test_weights_and_windows_go_to_every_token_of_their_word():
    control = rewrite_prompt(
        *described(("a cat on grass", "a tiger on grass")),
        weights={"Tiger": 2.0},
        word_windows={"tiger": (0.1, 0.9)},
    )
    assert control.weights.tolist() == [1, 1, 2, 2] + [1] * 8
    assert control.cross_windows[2:4].tolist() == [[0.1, 0.9]] * 2
    assert control.cross_windows[[0, 1, 4, 11]].tolist() == [[0.0, 0.4]] * 4


@pytest.mark.parametrize("option", ["weights", "word_windows"])
def test_a_word_that_only_the_source_has_is_named(option):
    with pytest.raises(PalimpsestError, match="'red' is not in the target prompt 'a blue cat"):
        rewrite_prompt(*described(PAIRS["equal"]), **{option: {"red": (0.0, 1.0)}})


# -- weights that always act ---------------------------------------------------------------------


@pytest.mark.parametrize("texts", [PAIRS["equal"], PAIRS["more"]], ids=["replace", "refine"])
def test_weights_that_always_act_scale_the_maps_after_the_window_too(texts):
    weights = {"cat": 3.0, "a": -0.5}
    control = replace(rewrite_prompt(*described(texts), weights=weights), weights_always=True)
    published = rewrite_prompt(*described(texts), weights=weights)
    for step in range(STEPS):
        target, source = qkv(seed=10 * step), qkv(seed=10 * step + 5)
        found = ours(control, step, target, source, 4)
        expected = ours(published, step, target, source, 4)
        if step >= 4:
            scaled = target._replace(v=target.v * control.weights[:, None])
            expected = attention(scaled, 4)
        assert distance(found, expected) < 1e-13


def test_weights_of_one_leave_attention_alone_and_no_source_is_run_for_weights():
    at = moment(STEPS - 1, STEPS)
    control = replace(rewrite_prompt(*described(PAIRS["equal"])), weights_always=True)
    assert control.terms(qkv(), None, CROSS, at) is None
    weighted = replace(control, weights=2 * control.weights)
    assert weighted.terms(qkv(), None, SELF, at) is None
    assert weighted.terms(qkv(), None, CROSS, at) is not None
    assert not weighted.active(at)
    bank = Bank(weighted, at=at)
    assert bank.inject(CROSS._replace(role="uncond"), qkv()) is None


def test_a_word_whose_window_is_shut_is_weighted_beside_one_whose_is_open():
    control = rewrite_prompt(
        *described(PAIRS["equal"]),
        weights={"blue": 3.0, "cat": 2.0},
        word_windows={"blue": (0.0, 1.0)},
    )
    control = replace(control, weights_always=True)
    target, source = qkv(), qkv(seed=5)
    alpha = cross_alpha(STEPS, TOKENS, 0.4, [((2,), 1.0)])[7]
    own = lambda a, b: b * control.weights
    rewrite = Reweight(control.weights, Replace(control.alignment.mapping))
    maps = lambda a, b: rewrite(a, b) * alpha + own(a, b) * (1 - alpha)
    expected = controlled(target, source, 4, maps, torch.ones(TOKENS))
    assert distance(ours(control, 7, target, source, 4), expected) < 1e-13
