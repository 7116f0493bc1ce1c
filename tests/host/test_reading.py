"""The words that the front end shows before any run, beside those of a run."""

import pytest
import torch
from palimpsest.hosts.comfy.reading import reader, words_of
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.reading import read_words


def asked(source, target, **more):
    told = words_of({"source": source, "target": target, "mode": "auto", **more})
    return [
        (w["text"], [told["source"][i] for i in w["reads"]], w["state"]) for w in told["target"]
    ]


def test_a_word_that_is_replaced_reads_its_counterpart_whatever_its_tokens():
    assert asked("a red cat", "an ultramarine tyrannosaurus") == [
        ("an", ["a"], "changed"),
        ("ultramarine", ["red"], "changed"),
        ("tyrannosaurus", ["cat"], "changed"),
    ]


def test_a_refined_prompt_has_new_words_and_marks_and_weights_are_read_as_in_a_run():
    assert asked("a cat, sleeping", "a (fat:1.3) cat, sleeping") == [
        ("a", ["a"], "kept"),
        ("fat", [], "new"),
        ("cat,", ["cat,"], "kept"),
        ("sleeping", ["sleeping"], "kept"),
    ]


def test_every_word_has_the_weight_and_window_that_the_control_gives_it():
    told = words_of(
        {
            "source": "a red cat",
            "target": "a blue cat",
            "mode": "replace",
            "weights": "blue: 2.5",
            "word_windows": "cat: 0.1-0.9",
            "cross_start": 0.05,
            "cross_window": 0.5,
        }
    )
    assert [(w["weight"], w["window"]) for w in told["target"]] == [
        (1.0, [0.05, 0.5]),
        (2.5, [0.05, 0.5]),
        (1.0, [0.1, 0.9]),
    ]


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_what_is_shown_is_what_the_control_reads(mode):
    """By the columns of its own matrix: a word reads where any of its tokens has a weight."""
    before, after = (
        prompt_tokens(reader(), t) for t in ("a tiny red cat", "one ultramarine cat x")
    )
    control = rewrite_prompt(before, after, mode=mode)
    matrix = control.alignment.mapping * control.alignment.aligned
    for word in read_words(control, before, after):
        own = next(w for w in after.words if w.text == word.text)
        for number, other in enumerate(before.words):
            weights = matrix[torch.tensor(other.positions)][:, torch.tensor(own.positions)]
            assert (number in word.reads) == bool(weights.sum() > 0)
