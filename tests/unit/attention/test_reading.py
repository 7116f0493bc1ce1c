"""What each word of a target prompt reads, for people to look at."""

from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.reading import read_words
from palimpsest.tests.unit.prompts import prompt


def read(before, after, **wishes):
    source, target = prompt(before), prompt(after)
    return read_words(rewrite_prompt(source, target, **wishes), source, target)


def test_a_word_stays_takes_the_place_of_another_or_is_new():
    replaced = read("a red heart", "a blue heart", mode="replace")
    assert [(w.text, w.reads, w.state) for w in replaced] == [
        ("a", (0,), "kept"),
        ("blue", (1,), "changed"),
        ("heart", (2,), "kept"),
    ]
    refined = read("a heart", "a Blue heart", mode="refine")
    assert [(w.reads, w.state) for w in refined] == [((0,), "kept"), ((), "new"), ((1,), "kept")]


def test_of_a_word_of_several_tokens_all_that_any_of_them_reads():
    source, target = prompt("a tulip here", tulip=2), prompt("a orchid here", orchid=3)
    control = rewrite_prompt(source, target, mode="replace")
    words = read_words(control, source, target)
    assert [(w.reads, w.state) for w in words] == [
        ((0,), "kept"),
        ((1,), "changed"),
        ((2,), "kept"),
    ]


def test_a_word_has_its_weight_and_its_window():
    words = read(
        "a red heart",
        "a blue heart",
        cross_window=(0.1, 0.6),
        weights={"blue": 2.5},
        word_windows={"heart": (0.2, 0.3)},
    )
    assert [(w.weight, w.window) for w in words] == [
        (1, (0.1, 0.6)),
        (2.5, (0.1, 0.6)),
        (1, (0.2, 0.3)),
    ]
