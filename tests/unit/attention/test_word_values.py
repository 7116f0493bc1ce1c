"""Cross windows that a user writes for single words; weights are in `test_words`."""

import pytest
from palimpsest.pipelines.attention.word_values import parse_weights, parse_windows
from palimpsest.pipelines.errors import PalimpsestError


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("", {}),
        ("blue: 0.8", {"blue": (0.0, 0.8)}),
        ("blue: 0.2-0.8", {"blue": (0.2, 0.8)}),
        ("blue = 0.2 - 0.8, red dress：.5", {"blue": (0.2, 0.8), "red dress": (0.0, 0.5)}),
        ("(blue: 0.2..0.8)\nt-shirt: 1", {"blue": (0.2, 0.8), "t-shirt": (0.0, 1.0)}),
        ("blue: 0–1", {"blue": (0.0, 1.0)}),
        ("ratio 3:4: 0-0", {"ratio 3:4": (0.0, 0.0)}),
    ],
)
def test_windows_are_an_end_or_a_start_and_an_end(text, windows):
    assert parse_windows(text) == windows


@pytest.mark.parametrize("line", ["blue", "blue: x", "blue: 1.2", "blue: 0.8-0.2", "blue: -0.5"])
def test_anything_else_is_refused_with_the_form_it_must_have(line):
    with pytest.raises(PalimpsestError, match=r"The word windows have .* `word: end` or `word: st"):
        parse_windows(f"red: 0.5\n{line}")


def test_a_window_is_no_weight():
    with pytest.raises(PalimpsestError, match=r"the line 'blue: 0\.2-0\.8', a line must be `word"):
        parse_weights("red: 1\nblue: 0.2-0.8")
