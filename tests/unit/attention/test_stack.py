"""Several controls as one, beside the maps of the last that acts at each place."""

from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.control import FeatureControl, source_roles
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.one_row import over_one_row
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_to_prompt import chained, rewrite_prompt
from palimpsest.pipelines.attention.stack import parts_of, stacked
from palimpsest.pipelines.attention.tokens import Alignment
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import attention
from palimpsest.tests.unit.prompts import prompt

TOKENS, PIXELS, CHANNELS, STEPS, LAYERS = 12, 9, 16, 10, 16
TEXTS = ("a red cat on grass", "a blue cat on grass")


def qkv(rows=1, keys=PIXELS, seed=0):
    sizes = (PIXELS, keys, keys)
    return QKV(*(2 * picture(rows, n, CHANNELS, seed=seed + i) for i, n in enumerate(sizes)))


def rewrite(texts=TEXTS, **wishes):
    return rewrite_prompt(*(prompt(text, TOKENS) for text in texts), **wishes)


def controlled(control, site, at, target, source):
    """[uncond, cond] of the target, given [uncond, cond] of the source."""
    bank = Bank(control, at=at)
    for row, role in enumerate(("uncond", "cond")):
        if role in source_roles(control):
            bank.record(site._replace(role=role), QKV(*(t[row : row + 1] for t in source)))
    sdpa = lambda term: attention(term, 4)
    return attend(target, site, ["uncond", "cond"], bank.inject, sdpa)


def test_one_control_alone_is_itself():
    own = MasaCtrl()
    assert stacked([own]) is own


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("layer", [0, 9, 10, 15])
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_at_every_place_the_last_that_reads_there_acts_as_it_does_alone(kind, layer, step):
    first, last = rewrite(), MasaCtrl(steps=(0.3, 1.0))
    site = Site(kind, layer, "cond", PIXELS, layers=LAYERS)
    keys = TOKENS if kind == "cross" else PIXELS
    target, source, at = qkv(2, keys), qkv(2, keys, seed=5), moment(step, STEPS)
    acting = last if last.reads(site, at) else first
    both = controlled(stacked([first, last]), site, at, target, source)
    assert torch.equal(both, controlled(acting, site, at, target, source))


def test_the_source_leaves_what_all_that_read_there_want_and_no_more():
    both = stacked([rewrite(self_window=(0.0, 0.5)), MasaCtrl()])
    site = Site("self", 12, "cond", PIXELS, layers=LAYERS)
    own = qkv()
    names = lambda site, at: [t is not None for t in both.kept(site, own, at)]
    assert names(site, moment(4, STEPS)) == [True, True, True]
    assert names(site, moment(5, STEPS)) == [False, True, True]
    assert names(site._replace(layer=3), moment(4, STEPS)) == [True, True, False]
    assert not both.reads(site._replace(layer=3), moment(5, STEPS))
    assert names(site._replace(role="uncond"), moment(4, STEPS)) == [False, True, True]
    assert [both.active(moment(step, STEPS)) for step in (0, 9)] == [True, True]


def test_a_row_is_read_where_any_of_them_reads_it():
    assert source_roles(stacked([rewrite(), MasaCtrl()])) == ("cond", "uncond")
    assert source_roles(stacked([rewrite(), rewrite()])) == ("cond",)


def test_features_of_residual_blocks_are_read_where_one_of_them_does():
    plain, with_features = (stacked([rewrite(), c]) for c in (MasaCtrl(), PlugAndPlay()))
    assert not isinstance(plain, FeatureControl)
    assert isinstance(with_features, FeatureControl)
    block = Site("features", 14, "cond", layers=22)
    own, source = picture(1, 2, 3, 3), picture(1, 2, 3, 3, seed=1)
    assert torch.equal(with_features.feature(own, source, block, moment(0, STEPS)), source)
    assert isinstance(over_one_row(with_features), FeatureControl)


# -- one Prompt-to-Prompt after another ----------------------------------------------------------

CROSS = Site("cross", 0, "cond", PIXELS)


def same(one, other):
    for step in range(STEPS):
        target, source = qkv(2, TOKENS, seed=9 * step), qkv(2, TOKENS, seed=9 * step + 5)
        outs = [controlled(c, CROSS, moment(step, STEPS), target, source) for c in (one, other)]
        assert distance(*outs) < 1e-13


@pytest.mark.parametrize(
    "texts", [TEXTS, ("a red cat", "a big red cat with a hat"), ("a big cat", "a cat")]
)
def test_reweighting_after_a_rewrite_is_the_rewrite_with_weights(texts):
    word = texts[1].split()[1]
    again = rewrite((texts[1], texts[1]), weights={word: 3.0})
    same(chained(rewrite(texts), again), rewrite(texts, weights={word: 3.0}))


def test_one_refinement_after_another_is_the_refinement_to_the_last():
    texts = ("a cat on grass", "a red cat on grass", "a big red cat on green grass")
    both = chained(rewrite(texts[:2]), rewrite(texts[1:]))
    same(both, rewrite((texts[0], texts[2]), mode="refine"))
    assert not torch.equal(both.alignment.aligned, rewrite(texts[1:]).alignment.aligned)


def test_weights_of_both_are_multiplied_along_what_reads_what():
    first = rewrite(TEXTS, weights={"blue": 3.0, "cat": 0.5})
    second = rewrite(("a blue cat on grass", "a huge cat on grass"), weights={"huge": 2.0})
    both = chained(first, second)
    assert both.weights.tolist() == [1, 1, 6, 0.5, 1, 1] + [1] * 6


def test_a_new_word_has_the_weight_and_the_window_of_the_last_alone():
    first = rewrite(("a cat", "a red cat"), weights={"red": 3.0}, cross_window=(0.1, 0.5))
    second = rewrite(("a red cat", "a big red cat"), weights={"big": 2.0}, cross_window=(0.2, 0.8))
    both = chained(first, second)
    assert both.alignment.aligned[:6].tolist() == [1, 1, 0, 0, 1, 1]
    assert both.weights[:6].tolist() == [1, 1, 2, 3, 1, 1]
    assert (
        both.cross_windows[:5].tolist() == [[0.2, 0.5], [0.2, 0.5], [0.2, 0.8]] + [[0.2, 0.5]] * 2
    )


def test_a_window_is_open_while_both_are():
    first = rewrite(self_window=(0.1, 0.6))
    second = rewrite((TEXTS[1], TEXTS[0]), self_window=(0.3, 0.9))
    assert chained(first, second).self_window == (0.3, 0.6)
    apart = chained(rewrite(self_window=(0.0, 0.2)), rewrite(self_window=(0.5, 0.9)))
    assert apart.self_window[0] == apart.self_window[1]


def test_a_word_that_reads_several_has_their_mean_weight():
    """Two words become one of two tokens, which another of two tokens replaces."""
    first = rewrite(("a big cat", "a big dog"), weights={"big": 4.0, "dog": 2.0})
    between = first.alignment.mapping.new_zeros(TOKENS, TOKENS)
    between[:, :] = torch.eye(TOKENS)
    between[2:4, 2:4] = 0.5  # as the published mapping of several tokens to several
    second = replace(
        rewrite(("a big dog", "a big dog")),
        alignment=Alignment(between, torch.ones(TOKENS)),
    )
    assert chained(first, second).weights[:5].tolist() == [1, 1, 3, 3, 1]
    doubled = replace(second, alignment=Alignment(2 * between, torch.ones(TOKENS)))
    assert chained(first, doubled).weights[:5].tolist() == [1, 1, 3, 3, 1]


def test_the_smaller_size_and_any_wish_for_lasting_weights_hold():
    wishes = [{"self_pixels": 8, "weights_always": True}, {"self_pixels": 16}]
    for one, other in (wishes, wishes[::-1]):
        both = chained(rewrite(**one), rewrite((TEXTS[1], TEXTS[0]), **other))
        assert both.self_pixels == rewrite(**wishes[0]).self_pixels and both.weights_always
    plain = chained(rewrite(), rewrite((TEXTS[1], TEXTS[0])))
    assert not plain.weights_always


def test_the_window_of_a_word_is_that_of_what_it_reads():
    first = rewrite(
        ("a cat on grass", "a dog on sand"),
        word_windows={"dog": (0.125, 0.25), "sand": (0.5, 0.75)},
        cross_window=(0.0, 1.0),
    )
    second = rewrite(
        ("a dog on sand", "a horse on sand"),
        word_windows={"on": (0.25, 0.5)},
        cross_window=(0.0, 1.0),
    )
    assert chained(first, second).cross_windows[:5].tolist() == [
        [0, 1],
        [0, 1],
        [0.125, 0.25],
        [0.25, 0.5],
        [0.5, 0.75],
    ]


def test_of_what_it_reads_a_new_word_gives_no_share():
    """What is read of the first prompt is whole again; how much of it is read says `aligned`."""
    first = rewrite(("a cat", "a red cat"))
    between = torch.eye(TOKENS)
    between[2:4, 2:4] = 0.5  # of the new word and of the cat, half each
    second = replace(
        rewrite(("a red cat", "a red cat")), alignment=Alignment(between, torch.ones(TOKENS))
    )
    both = chained(first, second).alignment
    assert both.aligned[:5].tolist() == [1, 1, 0.5, 0.5, 1]
    assert both.mapping[:, 2].tolist() == both.mapping[:, 3].tolist() == [0, 0, 1] + [0] * 9


def test_the_parts_of_a_control_are_what_was_stacked():
    one, two = rewrite(), MasaCtrl()
    assert parts_of(stacked([one, two])) == (one, two)
    assert parts_of(one) == (one,)
