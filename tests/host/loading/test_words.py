"""Words in ComfyUI's own CLIP vocabulary, weights and embeddings, under Prompt-to-Prompt."""

from types import SimpleNamespace

import pytest
from comfy.sd1_clip import SD1Tokenizer
from comfy.sdxl_clip import SDXLTokenizer
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.hosts.diffusers.prompt import prompt_tokens as diffusers_prompt_tokens
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.tokens import find_word
from palimpsest.pipelines.errors import PalimpsestError


@pytest.fixture(scope="module", params=[SD1Tokenizer, SDXLTokenizer])
def clip(request):
    """The vocabulary of a CLIP without its encoder, which no word asks for."""
    tokenizer = request.param()
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)


def parts(clip, text):
    return [part.text for part in prompt_tokens(clip, text).parts]


CUT = {
    "1girl,solo,smile": ["1", "girl", ",", "solo", ",", "smile"],
    "a Girl's t-shirt": ["a", "Girl", "'s", "t", "-", "shirt"],
    "don't 'quote' “me”": ["don", "'t", "'", "quote", "'", "“", "me", "”"],
    "cat/dog|bird": ["cat", "/", "dog", "|", "bird"],
    "[cat] \\(dog\\)": ["[", "cat", "]", "(", "dog", ")"],
    "(red:1.2),cat": ["red", ",", "cat"],
    "tokyo 2024": ["tokyo", "2", "0", "2", "4"],
    "一只猫坐在垫子上": list("一只猫坐在垫子上"),
    "猫が座る": list("猫が座る"),
    "고양이가 앉아": list("고양이가앉아"),
    "naïve café": ["naïve", "café"],
}


@pytest.mark.parametrize("text", CUT)
def test_words_are_cut_as_clip_cuts_them(text, clip):
    prompt = prompt_tokens(clip, text)
    assert parts(clip, text) == CUT[text]
    positions = [p for part in prompt.parts for p in part.positions]
    assert positions == list(range(1, prompt.length - 1))


@pytest.mark.parametrize("text", [text for text in CUT if "(" not in text])
def test_both_hosts_cut_alike(text, clip):
    """Brackets aside, which diffusers reads as they are."""
    tokenizer = clip.tokenizer.clip_l.tokenizer
    assert diffusers_prompt_tokens(tokenizer, text).words == prompt_tokens(clip, text).words


def one_to_one(clip, source, target):
    """How many of the target's tokens read one token of the source, start and end not counted."""
    read = prompt_tokens(clip, target)
    made = rewrite_prompt(prompt_tokens(clip, source), read).alignment.mapping
    columns = made[:, 1 : read.length - 1].T
    return sum(float(c.max()) == float(c.sum()) == 1 for c in columns), len(columns)


TAGS = (
    ["1girl", "solo", "smile", "red dress", "outdoors", "sky"],
    ["1girl", "solo", "frown", "red dress", "indoors", "sky"],
    ["1girl", "solo", "red dress", "long hair", "outdoors", "sky"],
)


@pytest.mark.parametrize("target", TAGS[1:])
def test_tags_align_alike_with_spaces_and_without(target, clip):
    close, wide = (
        one_to_one(clip, comma.join(TAGS[0]), comma.join(target)) for comma in (",", ", ")
    )
    assert close == wide
    assert close[0] >= close[1] - 3  # a new tag of two words and its comma


def test_only_a_tag_that_gets_longer_is_spread(clip):
    """`frown` has two tokens where `smile` has one: all of the others read their own."""
    assert one_to_one(clip, "1girl,solo,smile", "1girl,solo,laugh") == (6, 6)
    assert one_to_one(clip, "1girl,solo,smile", "1girl,solo,frown") == (5, 7)


NAMED = ["cat,dog", "t-shirt", "girl's", "cat", "dog", "shirt", "girl", "a girl's t-shirt"]


@pytest.mark.parametrize("word", NAMED)
def test_a_word_is_found_by_the_name_it_is_written_with(word, clip):
    text = "a girl's t-shirt with cat,dog"
    prompt = prompt_tokens(clip, text)
    inside = "".join(
        clip.tokenizer.clip_l.inv_vocab[prompt.ids[p]] for p in find_word(word, prompt)
    )
    assert inside.replace("</w>", "") == word.replace(" ", "")


@pytest.mark.parametrize("weight", ["inf", "-inf", "nan", "1e999"])
def test_a_weight_that_is_no_number_is_refused(weight, clip):
    with pytest.raises(
        PalimpsestError, match=r"gives 'red cat' the weight (-?inf|nan), which must"
    ):
        prompt_tokens(clip, f"a (red cat:{weight}) on grass")


def test_a_thousand_characters_are_cut_in_no_time(clip):
    prompt = prompt_tokens(clip, "猫" * 2000 + "x" * 2000)
    assert len(prompt.parts) == 2001
