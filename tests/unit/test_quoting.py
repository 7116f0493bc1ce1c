"""What messages repeat of what they were given, and mistakes that used to end in raw errors."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.attention.word_values import WEIGHTS, parse_weights
from palimpsest.pipelines.copy_paste import Brush, Move, copy_paste
from palimpsest.pipelines.diffedit import edit_mask
from palimpsest.pipelines.errors import QUOTED, PalimpsestError, quoted
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.points import LONGEST_SIDE, read_points

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(ANYTHING)
@settings(deadline=None, database=None, derandomize=True, max_examples=40)
def test_a_quotation_is_one_short_line(value):
    text = quoted(value)
    assert len(text) <= QUOTED and len(text.splitlines()) <= 1
    if not isinstance(value, bytes | list | tuple | dict) and len(repr(value)) <= 40:
        assert text == repr(value)


@pytest.mark.parametrize("size", [10, 100, 10_000, 1_000_000])
def test_the_long_and_the_large_are_cut(size):
    for value in ("x" * size, ["x" * size], list(range(size)), {"a": "\x00" * size}):
        assert len(quoted(value)) <= QUOTED
    assert quoted("x" * 100) == f"'{'x' * 76}..."
    assert quoted("\x1b" * 100).startswith(r"'\x1b\x1b")
    for whole in (list(range(9)), tuple(range(9)), dict.fromkeys(range(9), 0), "x" * 60):
        assert quoted(whole) == repr(whole)
    assert quoted([1, 2]) == "[1, 2]" and quoted("two\nlines") == r"'two\nlines'"


def test_forty_digits_are_written_out():
    assert quoted(10**39) == repr(10**39)
    assert quoted(10**40) == "an integer of 41 digits"


@pytest.mark.parametrize(("digits", "said"), [(400, "400 digits"), (9000, "9000 digits")])
def test_numbers_that_python_does_not_write_are_described(digits, said):
    assert quoted(10 ** (digits - 1)) == f"an integer of {said}"
    assert quoted([10 ** (digits - 1)]) == f"[an integer of {said}]"


def stored(**changes):
    whole = {"version": 1, "size": [9, 9], "pairs": [[[1, 1], [2, 2]]]} | changes
    return json.dumps(whole)


HUGE = 10**400


@pytest.mark.parametrize(
    "text",
    [
        stored(size=[HUGE, 9]),
        stored(size=[LONGEST_SIDE + 1, 9]),
        stored(pairs=[[[HUGE, 1], [2, 2]]]),
        stored(pairs=[[[-HUGE, 1], [2, 2]]]),
        stored(pairs=[[[math.nan, 1], [2, 2]]]),
        stored(pairs=[[[math.inf, 1], [2, 2]]]),
        stored(version=HUGE),
        stored(version="1" * 500),
        '{"version": 1, "size": [' + "1" * 6000 + ", 9]}",
    ],
)
def test_huge_numbers_in_points_are_refused_in_one_short_sentence(text):
    with pytest.raises(PalimpsestError) as caught:
        read_points(text)
    assert len(str(caught.value)) <= 320, str(caught.value)


def test_points_of_the_largest_picture_are_read():
    at = LONGEST_SIDE
    read = read_points(stored(size=[at, at], pairs=[[[at - 1, 1], [1, at - 1]]]))
    assert read.size == (at, at)


@pytest.mark.parametrize("factor", ["1e30", "inf", "nan", "-101", "9" * 500])
def test_a_word_weight_that_overflows_is_refused(factor):
    with pytest.raises(PalimpsestError, match="a number from -100 to 100") as caught:
        parse_weights(f"blue: {factor}")
    assert len(str(caught.value)) <= 250
    assert parse_weights(f"blue: {WEIGHTS[1]:g}\nred: {WEIGHTS[0]:g}") == {"blue": 100, "red": -100}


def test_a_picture_one_cell_high_is_told_what_would_help():
    with pytest.raises(PalimpsestError, match=r"8 x 1: paint what moves as a region"):
        copy_paste(
            torch.zeros(1, 4, 1, 8),
            [Move(0, (1, 0), (3, 0))],
            1.0,
            brush=Brush(radius=1),
            draw=seeded(0),
        )


def test_prompts_that_were_compared_in_nan_are_not_called_the_same():
    broken = lambda x, sigma: x * math.nan
    with pytest.raises(PalimpsestError, match="left the finite numbers where the prompts were"):
        edit_mask(
            broken,
            broken,
            torch.zeros(1, 4, 8, 8),
            torch.tensor(1.0, dtype=torch.float64),
            draw=seeded(0),
            draws=2,
            ratio=3.0,
        )
