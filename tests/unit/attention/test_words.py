"""Words cut as the tokenizer cuts them, how prompts align by them, and how weights name them."""

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.attention.prompt_to_prompt import (
    rewrite_prompt,
    token_weights,
)
from palimpsest.pipelines.attention.tokens import (
    PromptTokens,
    find_word,
    positions_of,
    refine_tokens,
    replace_words,
    same_words,
)
from palimpsest.pipelines.attention.word_values import WEIGHTS, parse_weights
from palimpsest.pipelines.attention.words import _BYTES, Word, cut_word, unmarked
from palimpsest.pipelines.errors import PalimpsestError
from transformers.convert_slow_tokenizer import bytes_to_unicode

#: Byte-level tokens as CLIP's own vocabulary has them.
SPELLED = {
    "1girl,solo,smile": ["1</w>", "girl</w>", ",</w>", "solo</w>", ",</w>", "smile</w>"],
    "1girl,solo,frown": ["1</w>", "girl</w>", ",</w>", "solo</w>", ",</w>", "frown</w>"],
    "1girl,frown": ["1</w>", "girl</w>", ",</w>", "frown</w>"],
    "Girl's": ["girl</w>", "'s</w>"],
    "boys": ["boys</w>"],
    "t-shirt": ["t</w>", "-</w>", "shirt</w>"],
    "cat/dog|bird": ["cat</w>", "/</w>", "dog</w>", "|</w>", "bird</w>"],
    "(cat)[dog]": ["(</w>", "cat</w>", ")", "[</w>", "dog</w>", "]</w>"],
    '"cat".': ['"</w>', "cat</w>", '".</w>'],
    "cat,": ["cat</w>", ",</w>"],
    "unicorn,": ["uni", "corn</w>", ",</w>"],
    "naïve": ["na", "Ã¯", "ve</w>"],
    "一只猫": ["ä¸", "Ģ", "åı", "ª", "ç", "Į", "«</w>"],
    "一只狗": ["ä¸", "Ģ", "åı", "ª", "çĭ", "Ĺ</w>"],
    "猫が座る": ["ç", "Į", "«", "ãģ", "Į", "å", "º", "§", "ãĤ", "ĭ</w>"],
    "고양이가": ["ê³", "ł", "ìĸ", "ĳ", "ìĿ´", "ê°", "Ģ</w>"],
    "개가": ["ê°ľ", "ê°", "Ģ</w>"],
    "vip猫": ["vip", "ç", "Į", "«</w>"],
}
PARTS = {
    "1girl,solo,smile": ["1", "girl", ",", "solo", ",", "smile"],
    "Girl's": ["Girl", "'s"],
    "t-shirt": ["t", "-", "shirt"],
    "cat/dog|bird": ["cat", "/", "dog", "|", "bird"],
    "(cat)[dog]": ["(", "cat", ")[", "dog", "]"],
    '"cat".': ['"', "cat", '".'],
    "naïve": ["naïve"],
    "一只猫": ["一", "只", "猫"],
    "猫が座る": ["猫", "が", "座", "る"],
    "고양이가": ["고", "양", "이", "가"],
    "vip猫": ["vip", "猫"],
}


def tokens(text):
    """A prompt of words whose tokens are known above; any other is one token."""
    ids, words = [0], []
    for word in text.split():
        spelled = SPELLED.get(word, [word.lower() + "</w>"])
        words.append(cut_word(word, range(len(ids), len(ids) + len(spelled)), spelled))
        ids += [10 + zlib.crc32(token.encode()) for token in spelled]
    length = len(ids) + 1
    return PromptTokens((*ids, *[1] * (24 - len(ids))), tuple(words), length)


def aligned(made, length):
    """Which source token every target token between start and end comes from, one to one."""
    columns = made.mapping[:, 1 : length - 1].T
    return [int(c.argmax()) if float(c.max()) == float(c.sum()) == 1 else None for c in columns]


@pytest.mark.parametrize("word", PARTS)
def test_a_word_is_cut_where_its_tokenizer_cuts_it(word):
    made = cut_word(word, range(3, 3 + len(SPELLED[word])), SPELLED[word])
    assert [part.text for part in made.parts] == PARTS[word]
    assert (made.text, made.positions) == (word, tuple(range(3, 3 + len(SPELLED[word]))))
    assert tuple(p for part in made.parts for p in part.positions) == made.positions
    assert [part.glued for part in made.parts[1:]] == [True] * (len(made.parts) - 1)


def test_a_token_that_ends_within_a_character_is_not_cut_off_from_the_rest_of_it():
    letters = {byte: letter for letter, byte in _BYTES.items()}
    whole = "".join(letters[byte] for byte in "一只".encode())
    spelled = [whole[:4], whole[4:] + "</w>"]
    assert [part.text for part in cut_word("一只", range(2), spelled).parts] == ["一只"]


def test_a_word_whose_letters_the_tokenizer_changes_has_its_own():
    made = cut_word("İX-", range(4), ["i", "Ìĩ", "x</w>", "-</w>"])
    assert [part.text for part in made.parts] == ["i̇x", "-"]


@given(st.text(min_size=1, max_size=12), st.lists(st.booleans(), min_size=48, max_size=48))
def test_parts_are_the_word_however_its_bytes_are_cut(text, ends):
    """No token is lost, and characters are cut only where tokens end with them."""
    letters = {byte: letter for letter, byte in _BYTES.items()}
    pairs = zip(text.encode(), ends, strict=False)
    spelled = [letters[byte] + ("</w>" if end else "") for byte, end in pairs]
    made = cut_word(text, range(len(spelled)), spelled)
    assert [p for part in made.parts for p in part.positions] == list(range(len(spelled)))


# --- alignment


def test_tags_without_spaces_align_tag_by_tag():
    """They were one word of six tokens, every one of which read all six."""
    source, target = tokens("1girl,solo,smile"), tokens("1girl,solo,frown")
    assert aligned(rewrite_prompt(source, target).alignment, target.length) == [1, 2, 3, 4, 5, 6]


def test_tags_that_come_and_go_are_refined():
    source, target = tokens("1girl,solo,smile"), tokens("1girl,frown")
    assert not same_words(source, target)
    made = rewrite_prompt(source, target).alignment
    assert aligned(made, target.length) == [1, 2, 3, None]
    assert torch.equal(made.mapping, refine_tokens(source, target).mapping)


def test_spaces_between_tags_change_nothing():
    close, wide = tokens("1girl,solo,smile"), tokens("1 girl , solo , frown")
    assert same_words(close, wide)
    assert aligned(replace_words(close, wide), wide.length) == [1, 2, 3, 4, 5, 6]


def test_a_line_of_chinese_aligns_character_by_character():
    source, target = tokens("一只猫"), tokens("一只狗")
    assert same_words(source, target)
    made = replace_words(source, target)
    assert aligned(made, target.length)[:4] == [1, 2, 3, 4]
    assert torch.equal(made.mapping[5:8, 5:7], torch.full((3, 2), 0.5))


SAME = {
    "a mark more": ("a cat, on grass", "a dog on grass"),
    "a possessive less": ("a Girl's cat", "a boys cat"),
    "the marks elsewhere": ("a cat, dog", "a cat dog,"),
    "korean words of other lengths": ("고양이가 x", "개가 x"),
    "another mark": ("a cat/dog|bird", "a cat/dog|bird"),
}


@pytest.mark.parametrize("case", SAME)
def test_prompts_of_as_many_words_between_spaces_stay_word_for_word(case):
    source, target = map(tokens, SAME[case])
    assert same_words(source, target)
    mapping = replace_words(source, target).mapping
    for s, t in zip(source.words, target.words, strict=True):
        sub = mapping[list(s.positions)][:, list(t.positions)]
        # sums of thirds in float32
        torch.testing.assert_close(sub.sum(0), mapping[:, list(t.positions)].sum(0))


def test_a_longer_word_spreads_and_its_comma_stays_a_comma():
    source, target = tokens("a cat, on"), tokens("a unicorn, on")
    mapping = replace_words(source, target).mapping
    assert torch.equal(mapping[2, 2:4], torch.full((2,), 0.5))
    assert mapping[3, 4] == 1 and mapping[4, 5] == 1


def test_the_published_code_does_not_look_into_words():
    source, target = tokens("a cat, on"), tokens("a unicorn, on")
    mapping = replace_words(source, target, published_tail=True).mapping
    assert torch.equal(mapping[2:4, 2:5], torch.full((2, 3), 1 / 3))


def test_what_was_word_for_word_between_spaces_can_still_be_replaced():
    source, target = tokens("a t-shirt"), tokens("a boys")
    assert not same_words(source, target)
    mapping = replace_words(source, target).mapping
    assert torch.equal(mapping[2:5, 2], torch.ones(3))


# --- names


NAMED = {
    ("cat,", "a unicorn, cat, on"): (5,),
    ("cat", "a cat, on"): (2,),
    ("t-shirt", "a t-shirt on"): (2, 3, 4),
    ("shirt", "a t-shirt on"): (4,),
    ("Girl's", "a Girl's cat"): (2, 3),
    ("girl", "a Girl's cat"): (2,),
    ("girl's cat", "a Girl's cat"): (2, 3, 4),
    ("solo", "1girl,solo,smile"): (4,),
    ("1girl", "1girl,solo,smile"): (1, 2),
    ("girl,solo", "1girl,solo,smile"): (2, 3, 4),
    ("girl, solo", "1girl,solo,smile"): (2, 3, 4),
    ("girl solo", "1girl,solo,smile"): (2, 3, 4),
    ("cat/dog", "a cat/dog|bird"): (2, 3, 4),
    ("bird", "a cat/dog|bird"): (6,),
    ("(cat)", "(cat)[dog]"): (),
    ("cat", "(cat)[dog]"): (2,),
    ("cat", 'a "cat". on'): (3,),
    ("猫", "一只猫"): (5, 6, 7),
    ("只猫", "一只猫"): (3, 4, 5, 6, 7),
    ("고양이", "고양이가 x"): (1, 2, 3, 4, 5),
    (",", "a cat, on"): (3,),
    ("irl", "1girl,solo,smile"): (),
    ("s", "a Girl's cat"): (),
    ("cat cat", "a cat cat cat"): (2, 3, 4),
}


@pytest.mark.parametrize(("word", "text"), NAMED)
def test_a_name_is_found_as_it_stands_in_the_prompt(word, text):
    assert find_word(word, tokens(text)) == NAMED[word, text]


def test_what_is_found_is_weighed():
    prompt = tokens("a Girl's cat")
    weights = token_weights(7, {positions_of("girl's", prompt, role="target prompt"): 3.0})
    assert weights.tolist() == [1, 1, 3, 3, 1, 1, 1]


def test_marks_and_quotes_do_not_count():
    assert unmarked(" A 'Red'  cat, don't; \"x\": 3.5 ") == "a red cat don't x 3 5"


def test_words_that_follow_without_a_space_are_parts_of_one():
    first, second = Word("red", (1,)), cut_word("t-x", (2, 3, 4), ["t</w>", "-</w>", "x</w>"])
    made = first.followed_by(second)
    assert (made.text, made.positions) == ("redt-x", (1, 2, 3, 4))
    assert [(p.text, p.glued) for p in made.parts] == [
        ("red", False),
        ("t", True),
        ("-", True),
        ("x", True),
    ]


# --- weights

WRITTEN = {
    "cat=2": {"cat": 2.0},
    "cat = 2": {"cat": 2.0},
    "(cat:2)": {"cat": 2.0},
    "( red cat : 1.5 )": {"red cat": 1.5},
    "猫：2": {"猫": 2.0},
    "cat: 2, dog: -3.5,": {"cat": 2.0, "dog": -3.5},
    "(cat:2), (dog:3)": {"cat": 2.0, "dog": 3.0},
    "cat：2，dog：3": {"cat": 2.0, "dog": 3.0},
    "cat: 2; dog = .5": {"cat": 2.0, "dog": 0.5},
    "cat,dog: 2": {"cat,dog": 2.0},
    "cat,dog: 2, bird: 3": {"cat,dog": 2.0, "bird": 3.0},
    "girl's: 2": {"girl's": 2.0},
    "(red) cat: 2": {"(red) cat": 2.0},
    "ratio 3:4: 0.5": {"ratio 3:4": 0.5},
    "a: 1e1\nb: +2.": {"a": 10.0, "b": 2.0},
}


@pytest.mark.parametrize("text", WRITTEN)
def test_weights_are_read_as_people_write_them(text):
    assert parse_weights(text) == WRITTEN[text]


@pytest.mark.parametrize("number", ["1e30", "-1e30", "1e999", "101"])
def test_a_weight_outside_the_range_is_refused_with_it(number):
    with pytest.raises(PalimpsestError, match="for 'blue', a factor must be a number from -100"):
        parse_weights(f"red: 1\nblue: {number}")
    assert parse_weights(f"blue: {WEIGHTS[1]}") == {"blue": WEIGHTS[1]}


@pytest.mark.parametrize(
    "line", ["nan", "blue: nan", "blue: inf", "blue: -inf", "((cat:2))", "blue: 1,5", "blue: 2 x"]
)
def test_what_is_no_weight_is_refused_with_the_range(line):
    with pytest.raises(PalimpsestError, match=r"a line must be .*, a number from -100 to 100, for"):
        parse_weights(line)


@pytest.mark.parametrize(
    "line", ["x" * 50_000, "x" + " " * 50_000 + "y", "x:" + "1" * 50_000 + "z", "(" * 50_000]
)
def test_a_long_line_is_refused_in_no_time_and_quoted_in_short(line):
    """A pattern that tries every split of 50,000 letters would take minutes."""
    with pytest.raises(PalimpsestError) as error:
        parse_weights(line)
    assert len(str(error.value)) < 300


def test_messages_quote_the_beginning_of_long_prompts():
    text = PromptTokens((0, 1), tuple(Word("x" * 90, (1,)) for _ in range(3)), 2)
    for call in (
        lambda: replace_words(text, tokens("a cat")),
        lambda: positions_of("y" * 500, text, role="target prompt"),
    ):
        with pytest.raises(PalimpsestError) as error:
            call()
        assert len(str(error.value)) < 400


def test_every_byte_has_the_letter_that_clip_spells_it_with():
    assert {letter: byte for byte, letter in bytes_to_unicode().items()} == _BYTES


@pytest.mark.parametrize(
    ("parts", "count"),
    [(["고양이"], 1), (["고", "양이"], 1), (["고양이", "cat"], 2), (["cat", "고양이"], 2)],
)
def test_korean_syllables_are_one_word_and_what_stands_beside_them_another(parts, count):
    cuts = tuple(Word(text, (n,), glued=n > 0) for n, text in enumerate(parts))
    assert Word("".join(parts), tuple(range(len(parts))), cuts).spoken == count


def test_the_first_part_of_a_word_hangs_on_nothing():
    word = cut_word("solo,smile", (4, 5, 6), ["solo</w>", ",</w>", "smile</w>"])
    assert [part.glued for part in word.parts] == [False, True, True]
