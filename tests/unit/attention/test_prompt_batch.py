"""A batch of target prompts is what each of them would be alone."""

import inspect

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.prompt_batch import PromptBatch, rewrite_prompts
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import moment
from palimpsest.tests.unit.prompts import prompt
from torch.nn.functional import scaled_dot_product_attention

SOURCE = prompt("a red heart on grass")
TARGETS = [
    prompt("a blue heart on grass"),
    prompt("a red heart on grass with yellow flowers"),
    prompt("a red star on sand"),
]
WISHES = {"cross_window": (0.0, 0.5), "self_window": (0.0, 0.7), "weights": {"yellow": 3.0}}
STEPS, HEADS, WIDTH = 10, 2, 8
WINDOWS = [(0.0, 1.0), (0.5, 1.0)]

#: float64, and the same kernel on the same rows.
SAME = 1e-13


def sdpa(term):
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in term)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)


def qkv(rows, queries, keys, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (queries, keys, keys)
    return QKV(*(torch.randn(rows, n, WIDTH, generator=generator).double() for n in shapes))


def alone(target):
    known = {w: f for w, f in WISHES["weights"].items() if w in target.text}
    return rewrite_prompt(SOURCE, target, **{**WISHES, "weights": known})


def test_its_defaults_are_those_of_one_prompt():
    ours, theirs = (inspect.signature(f).parameters for f in (rewrite_prompts, rewrite_prompt))
    for name in ("mode", "cross_window", "self_window", "weights"):
        assert ours[name].default == theirs[name].default, name


@pytest.mark.parametrize("step", [0, 4, 5, 6, 7, 9], ids=lambda step: f"step {step}")
@pytest.mark.parametrize(("kind", "keys"), [("self", 16), ("cross", 77)])
@pytest.mark.parametrize("targets", [TARGETS, TARGETS[1:2]], ids=len)
def test_every_row_is_what_its_prompt_gives_alone(targets, kind, keys, step):
    site, source = Site(kind, 0, "cond"), qkv(1, 16, keys, seed=1)
    target = qkv(len(targets), 16, keys, seed=2)

    def controlled(control, own):
        bank = Bank(control)
        bank.begin(moment(step, STEPS))
        bank.record(site, source)
        return attend(own, site, ["cond"], bank.inject, sdpa)

    together = controlled(rewrite_prompts(SOURCE, targets, **WISHES), target)
    for row, prompt_ in enumerate(targets):
        one = controlled(alone(prompt_), QKV(*(t[row : row + 1] for t in target)))
        assert float((together[row : row + 1] - one).abs().max()) < SAME


def test_the_batch_runs_the_source_as_long_as_any_prompt_reads_it():
    batch = rewrite_prompts(SOURCE, TARGETS, **WISHES)
    active = [batch.active(moment(step, STEPS)) for step in range(STEPS)]
    assert active == [
        any(alone(t).active(moment(step, STEPS)) for t in TARGETS) for step in range(STEPS)
    ]


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_a_mode_is_that_of_all_prompts(mode):
    """Of equally many words: by itself each would be replaced."""
    (control,) = rewrite_prompts(SOURCE, TARGETS[:1], mode=mode).controls
    expected = rewrite_prompt(SOURCE, TARGETS[0], mode=mode)
    assert torch.equal(control.alignment.mapping, expected.alignment.mapping)
    other = rewrite_prompt(SOURCE, TARGETS[0], mode={"replace": "refine"}.get(mode, "replace"))
    assert not torch.equal(control.alignment.mapping, other.alignment.mapping)


def test_a_weight_that_no_prompt_has_a_word_for_is_refused():
    with pytest.raises(PalimpsestError, match="horse"):
        rewrite_prompts(SOURCE, TARGETS[:1], weights={"horse": 2.0})


def test_the_source_is_read_where_any_control_reads_it():
    short, long = (rewrite_prompt(SOURCE, TARGETS[0], self_window=(0.0, e)) for e in (0.2, 0.9))
    for controls in ((short, long), (long, short)):
        batch = PromptBatch(controls)
        for at in (moment(step, STEPS) for step in range(STEPS)):
            assert batch.active(at) == long.active(at)
            for site in (Site("self", 0, "cond", 16), Site("cross", 0, "cond", 16)):
                assert batch.reads(site, at) == long.reads(site, at)


def test_a_weight_acts_where_its_word_is_and_must_be_somewhere():
    batch = rewrite_prompts(SOURCE, TARGETS, **WISHES)
    assert [float(control.weights.max()) for control in batch.controls] == [1, 3, 1]
    with pytest.raises(PalimpsestError, match="'purple' is not in the target prompts"):
        rewrite_prompts(SOURCE, TARGETS, weights={"purple": 2.0})


def test_every_wish_goes_to_every_prompt():
    wishes = {
        "mode": "refine",
        "cross_window": (0.1, 0.5),
        "self_window": (0.2, 0.7),
        "word_windows": {"heart": (0.3, 0.4)},
        "self_pixels": 8,
        "weights_always": True,
    }
    batch = rewrite_prompts(SOURCE, TARGETS[:2], **wishes)
    for control, target in zip(batch.controls, TARGETS, strict=False):
        expected = rewrite_prompt(SOURCE, target, **wishes)
        assert torch.equal(control.cross_windows, expected.cross_windows)
        assert torch.equal(control.alignment.mapping, expected.alignment.mapping)
        for name in ("self_window", "self_pixels", "weights_always"):
            assert getattr(control, name) == getattr(expected, name), name


def test_another_number_of_rows_than_prompts_is_refused():
    batch = rewrite_prompts(SOURCE, TARGETS)
    with pytest.raises(PalimpsestError, match="for 3 target prompts, 2 rows are edited"):
        batch.terms(qkv(2, 16, 16, 1), qkv(2, 16, 16, 2), Site("self", 0, "cond"), moment(0, STEPS))


def test_a_source_of_another_length_is_read_by_all_rows_or_by_none():
    """A row whose window is closed has its own keys, one whose window is open the source's."""
    site, own, source = Site("cross", 0, "cond"), qkv(2, 16, 77, 1), qkv(2, 16, 154, 2)
    long = prompt("a red heart on grass", length=154)
    both = [rewrite_prompt(long, t, cross_window=w) for t, w in zip(TARGETS, WINDOWS, strict=False)]
    terms = PromptBatch((both[0], both[0])).terms(own, source, site, moment(0, STEPS))
    assert [term.k.shape[1] for term in terms] == [154]
    with pytest.raises(PalimpsestError, match="have 77 and 154 tokens"):
        PromptBatch(tuple(both)).terms(own, source, site, moment(0, STEPS))
