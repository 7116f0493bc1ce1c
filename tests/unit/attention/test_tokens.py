import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.tokens import (
    PromptTokens,
    Word,
    positions_of,
    refine_tokens,
    replace_words,
)
from palimpsest.pipelines.attention.word_values import parse_weights
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.prompts import END, START, prompt

SIZES = {"tiger": 2, "tyrannosaurus": 3, "cat": 1}


def pairs(alignment):
    """{target: {source: weight}} of all entries of a mapping that are not 0."""
    found = {}
    for s, n in alignment.mapping.nonzero().tolist():
        found.setdefault(n, {})[s] = round(float(alignment.mapping[s, n]), 6)
    return found


def table(source, target, length=8, **options):
    made = replace_words(
        prompt(source, length, **SIZES), prompt(target, length, **SIZES), **options
    )
    return pairs(made)


def one_to_one(count, shift=0):
    return {n: {n + shift: 1} for n in range(count)}


def test_equal_token_counts_map_one_to_one():
    assert table("a cat sits", "a dog sits") == one_to_one(8)
    assert table("a tiger sits", "a tiger runs") == one_to_one(8)


def test_a_word_that_gets_longer_spreads_over_its_tokens_and_moves_what_follows():
    assert table("a cat sits", "a tiger sits") == {
        0: {0: 1},
        1: {1: 1},
        2: {2: 0.5},
        3: {2: 0.5},
        **{n: {n - 1: 1} for n in range(4, 8)},
    }


def test_a_word_that_gets_shorter_gathers_its_tokens_and_moves_what_follows():
    assert table("a tyrannosaurus sits", "a cat sits") == {
        0: {0: 1},
        1: {1: 1},
        2: {2: 1, 3: 1, 4: 1},
        # 8 positions hold less padding of the source: its last token serves twice.
        **{n: {min(n + 2, 7): 1} for n in range(3, 8)},
    }


def test_several_words_of_many_sizes_keep_what_lies_between_them_in_step():
    assert table("cat on tiger", "tiger on tyrannosaurus", 10) == {
        0: {0: 1},
        1: {1: 0.5},
        2: {1: 0.5},
        3: {2: 1},
        **{n: {3: 0.333333, 4: 0.333333} for n in (4, 5, 6)},
        **{n: {n - 2: 1} for n in (7, 8, 9)},
    }


def published_mapper(source, target):
    """The published loop restated: after the last changed word it writes [j, j], not [i, j]."""
    size = len(source.ids)
    changed = [
        (list(s.positions), list(t.positions))
        for s, t in zip(source.words, target.words, strict=True)
        if s.text != t.text
    ]
    mapper, i, j = torch.zeros(size, size), 0, 0
    while i < size and j < size:
        if changed and changed[0][0][0] == i:
            ours, theirs = changed.pop(0)
            for s, t in itertools.product(ours, theirs):
                equal = len(ours) == len(theirs)
                mapper[s, t] = float(s - i == t - j) if equal else 1 / len(theirs)
            i, j = i + len(ours), j + len(theirs)
        else:
            mapper[i if changed else j, j] = 1
            i, j = i + 1, j + 1
    return mapper


def written(texts, sizes, length=30):
    """A prompt in which equal words have equally many tokens."""
    return prompt(" ".join(texts), length, **sizes)


@st.composite
def replaced_prompts(draw):
    count = draw(st.integers(1, 6))
    letters = st.lists(st.sampled_from("uvwxyz"), min_size=count, max_size=count)
    sizes = {letter: draw(st.integers(1, 4)) for letter in "uvwxyz"}
    return written(draw(letters), sizes), written(draw(letters), sizes)


@settings(max_examples=50)
@given(replaced_prompts())
def test_the_published_tail_is_that_of_the_published_code(prompts):
    made = replace_words(*prompts, published_tail=True)
    assert torch.equal(made.mapping, published_mapper(*prompts))


@settings(max_examples=50)
@given(replaced_prompts())
def test_no_token_is_left_without_a_source(prompts):
    """Columns sum to 1, but for a word that changed its size: n_s tokens share out over n_t."""
    source, target = prompts
    made = replace_words(source, target)
    expected = torch.ones(len(target.ids))
    for s, t in zip(source.words, target.words, strict=True):
        expected[list(t.positions)] = len(s.positions) / len(t.positions)
    assert torch.allclose(made.mapping.sum(0), expected)
    assert torch.equal(made.aligned, torch.ones(len(target.ids)))


@settings(max_examples=50)
@given(replaced_prompts())
def test_every_word_reads_the_word_it_replaces_and_nothing_else(prompts):
    source, target = prompts
    mapping = replace_words(source, target).mapping
    for s, t in zip(source.words, target.words, strict=True):
        read = mapping[:, list(t.positions)].sum(1).nonzero().flatten().tolist()
        assert read == list(s.positions)


@pytest.mark.parametrize("quirk", [False, True])
def test_a_control_has_the_tail_that_is_asked_for(quirk):
    source, target = (prompt(t, 8, **SIZES) for t in ("tyrannosaurus sits", "cat sits"))
    made = rewrite_prompt(source, target, published_tail=quirk).alignment
    mappings = [replace_words(source, target, published_tail=q).mapping for q in (quirk, not quirk)]
    assert torch.equal(made.mapping, mappings[0]) and not torch.equal(*mappings)


def test_the_published_tail_loses_tokens_and_ours_does_not():
    """What the fix is for: a shorter target leaves columns empty, that is, text unseen."""
    prompts = [prompt(t, 8, **SIZES) for t in ("tyrannosaurus sits", "cat sits")]
    published, fixed = (
        replace_words(*prompts, published_tail=quirk).mapping.sum(0) for quirk in (True, False)
    )
    assert published.tolist() == [1, 3, 1, 1, 1, 1, 0, 0]
    assert fixed.tolist() == [1, 3, 1, 1, 1, 1, 1, 1]


def chunked(first, second, **sizes):
    """A long prompt as ComfyUI encodes it: two rows of 8, each with its own start and end."""
    parts = [prompt(text, 8, **sizes) for text in (first, second)]
    moved = [Word(w.text, tuple(p + 8 for p in w.positions)) for w in parts[1].words]
    ids = parts[0].ids + parts[1].ids
    return PromptTokens(ids, (*parts[0].words, *moved), 8 + parts[1].length)


def test_a_word_that_moves_to_the_next_row_keeps_its_source():
    """A longer word no longer fits its row: padding, end and start now stand between the words."""
    source = chunked("on cat sits by", "the sea", sits=2)
    target = chunked("on tyrannosaurus", "sits by the sea", sits=2, **SIZES)
    made = replace_words(source, target)
    for s, t in zip(source.words, target.words, strict=True):
        read = made.mapping[:, list(t.positions)].sum(1).nonzero().flatten().tolist()
        assert read == list(s.positions)
    # End, padding and start of the row that only the target has are new: they keep their own maps.
    new = [n for n, old in enumerate(made.aligned.tolist()) if not old]
    assert new == [5, 6, 7, 8]
    assert bool((made.mapping.sum(0)[new] == 0).all())


def test_a_word_without_tokens_is_passed_over():
    """Tokenizers drop some characters altogether."""
    nothing = {"\u200b": 0}
    source, target = prompt("a \u200b cat", 8, **nothing), prompt("a \u200b dog", 8, **nothing)
    assert pairs(replace_words(source, target)) == one_to_one(8)


def test_prompts_of_one_and_of_two_rows_align():
    source, target = prompt("on cat sits", 8), chunked("on tyrannosaurus", "sits", **SIZES)
    for one, other in ((source, target), (target, source)):
        made = replace_words(one, other)
        assert made.mapping.shape == (len(one.ids), len(other.ids))
        assert torch.equal((made.mapping.sum(0) > 0).float(), made.aligned)


def test_unequal_word_counts_are_refused_with_both_prompts_and_a_way_out():
    with pytest.raises(PalimpsestError) as error:
        replace_words(prompt("a cat"), prompt("a big cat"))
    assert str(error.value) == (
        "Replace needs as many words in the target prompt as in the source prompt, got 3 "
        "('a big cat') for 2 ('a cat'). Use mode refine, or write the prompts word for word."
    )


# -- refine --------------------------------------------------------------------------------------


def published_refine(x, y):
    """Needleman-Wunsch with gap 0, match 1, mismatch -1; ties: left, then up, then diagonal."""
    best = {(i, 0): 0 for i in range(len(x) + 1)} | {(0, j): 0 for j in range(len(y) + 1)}
    way = {(i, 0): "up" for i in range(1, len(x) + 1)} | {
        (0, j): "left" for j in range(1, len(y) + 1)
    }
    for i, j in itertools.product(range(1, len(x) + 1), range(1, len(y) + 1)):
        moves = {
            "left": best[i, j - 1],
            "up": best[i - 1, j],
            "both": best[i - 1, j - 1] + (1 if x[i - 1] == y[j - 1] else -1),
        }
        best[i, j] = max(moves.values())
        way[i, j] = next(name for name, score in moves.items() if score == best[i, j])
    origin, at = [-1] * len(y), (len(x), len(y))
    while at in way:
        i, j = at
        at = {"left": (i, j - 1), "up": (i - 1, j), "both": (i - 1, j - 1)}[way[at]]
        if way[i, j] == "both":
            origin[at[1]] = at[0]
    return origin


def longest_common_subsequence(x, y):
    """By brute force over the subsets of the shorter one."""
    short, long = sorted((x, y), key=len)
    for size in range(len(short), 0, -1):
        for chosen in itertools.combinations(short, size):
            rest = iter(long)
            if all(token in rest for token in chosen):
                return size
    return 0


few_tokens = st.lists(st.integers(1, 4), max_size=8)


def tokens_only(ids, length=12):
    """A prompt of bare token ids."""
    ids = (START, *ids, END)
    return PromptTokens(ids + (END,) * (length - len(ids)), (), len(ids))


def origins(alignment):
    """Source position of every target token, -1 where it is new."""
    found = alignment.mapping.argmax(0)
    return torch.where(alignment.mapping.sum(0) > 0, found, -1).tolist()


@settings(max_examples=60)
@given(few_tokens, few_tokens)
def test_refine_keeps_a_longest_common_subsequence(x, y):
    source, target = tokens_only(x), tokens_only(y)
    origin = origins(refine_tokens(source, target))[: target.length]
    kept = [(s, n) for n, s in enumerate(origin) if s != -1]
    assert all(source.ids[s] == target.ids[n] for s, n in kept)
    assert [s for s, _ in kept] == sorted({s for s, _ in kept})
    assert len(kept) == 2 + longest_common_subsequence(x, y)


@given(few_tokens, few_tokens)
def test_refine_breaks_ties_as_the_published_code(x, y):
    source, target = tokens_only(x), tokens_only(y)
    expected = published_refine(source.ids[: source.length], target.ids[: target.length])
    expected += range(target.length, len(target.ids))
    made = refine_tokens(source, target)
    assert origins(made) == expected
    assert made.aligned.tolist() == [float(s != -1) for s in expected]


def test_of_repeated_words_the_first_is_kept():
    source, target = prompt("a cat", 8), prompt("a cat and a cat", 8)
    assert origins(refine_tokens(source, target))[:7] == [0, 1, 2, -1, -1, -1, 3]


def test_a_prompt_refined_into_itself_reads_itself():
    same = prompt("a red cat on a red mat", 12)
    assert pairs(refine_tokens(same, same)) == one_to_one(12)


def test_padding_reads_padding_also_where_the_prompts_have_unequal_rows():
    source, target = prompt("a cat", 8), prompt("a cat and a dog on a mat by the sea", 16)
    for one, other in ((source, target), (target, source)):
        made = refine_tokens(one, other)
        padding = origins(made)[other.length :]
        assert padding == [min(n, len(one.ids) - 1) for n in range(other.length, len(other.ids))]
        assert all(one.ids[s] == END for s in padding) or len(one.ids) > len(other.ids)


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["cat", "Cat", "CAT", "cat,", "'cat'", "cat."])
@pytest.mark.parametrize("text", ["a cat", "a Cat, asleep", 'a "cat".'])
def test_words_are_found_whatever_their_case_and_punctuation(word, text):
    assert positions_of(word, prompt(text), role="target prompt") == (2,)


def test_every_occurrence_and_every_token_of_a_word_counts():
    text = prompt("tiger and tiger", **SIZES)
    assert positions_of("tiger", text, role="target prompt") == (1, 2, 4, 5)


def test_several_words_count_where_they_stand_together():
    text = prompt("red cat on red mat by cat", **SIZES)
    assert positions_of("red mat", text, role="target prompt") == (4, 5)
    with pytest.raises(PalimpsestError):
        positions_of("mat red", text, role="target prompt")


def test_a_part_of_a_word_is_not_the_word():
    with pytest.raises(PalimpsestError) as error:
        positions_of("cat", prompt("two cats"), role="target prompt")
    assert str(error.value) == (
        "The word 'cat' is not in the target prompt 'two cats'. "
        "Use a word that stands there, or add it to the prompt."
    )


@pytest.mark.parametrize("word", ["", " "])
def test_a_weight_needs_a_word(word):
    with pytest.raises(PalimpsestError, match="A word weight without a word"):
        positions_of(word, prompt("a cat"), role="target prompt")


def test_weights_are_read_line_by_line():
    text = "blue: 2\n\n  red mat :-1.5\r\nratio 3:4: 0.5\n"
    assert parse_weights(text) == {"blue": 2.0, "red mat": -1.5, "ratio 3:4": 0.5}
    assert parse_weights(" \n") == {}


@pytest.mark.parametrize("line", ["blue", "blue 2", "blue: two", ": 2", "blue: nan", "blue: inf"])
def test_a_line_that_is_no_weight_is_quoted(line):
    with pytest.raises(PalimpsestError) as error:
        parse_weights(f"red: 1\n{line}")
    assert str(error.value).startswith(f"The word weights have the line {line!r}, a line must be")


@given(st.dictionaries(st.from_regex("[a-z]{1,8}", fullmatch=True), st.floats(-9, 9), max_size=4))
def test_weights_survive_writing_and_reading(weights):
    text = "\n".join(f"{word}: {factor!r}" for word, factor in weights.items())
    assert parse_weights(text) == weights
    assert all(math.isfinite(factor) for factor in parse_weights(text).values())
