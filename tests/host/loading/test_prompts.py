"""Words and the positions of their tokens, under all of ComfyUI's prompt syntax."""

from types import SimpleNamespace

import comfy.sd
import pytest
import torch
from comfy.text_encoders.anima import AnimaTokenizer
from comfy.text_encoders.flux import FluxTokenizer, KleinTokenizer, KleinTokenizer8B
from comfy.text_encoders.longcat_image import LongCatImageTokenizer
from comfy.text_encoders.pixart_t5 import PixArtTokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from comfy.text_encoders.z_image import ZImageTokenizer
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.tokens import find_word
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from safetensors.torch import save_file


@pytest.fixture(scope="module", params=["sd1_folder", "sd2_folder", "sdxl_folder"])
def clip(request):
    return agree.in_comfyui(request.getfixturevalue(request.param)).clip


@pytest.fixture(scope="module")
def sd1_clip(sd1_folder):
    return agree.in_comfyui(sd1_folder).clip


@pytest.fixture
def embeddings(tmp_path, sd1_clip, monkeypatch):
    """Embeddings that only this test's CLIP knows: two vectors, one vector, and one too wide."""
    for name, rows, width in (("two", 2, 32), ("one", 1, 32), ("wide", 1, 48)):
        save_file({"clip_l": torch.randn(rows, width)}, tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(sd1_clip.tokenizer.clip_l, "embedding_directory", [str(tmp_path)])


def core_ids(clip, text):
    """The ids core feeds the first encoder, vectors as None, chunk after chunk."""
    chunks_of = clip.tokenize(text)
    chunks = chunks_of.get("l", chunks_of.get("h"))
    return [t if isinstance(t, int) else None for chunk in chunks for t, _ in chunk]


def words(clip, text):
    return [(word.text, word.positions) for word in prompt_tokens(clip, text).words]


def spelled(clip, prompt, word):
    """What the tokens of a word spell, in the first encoder's vocabulary."""
    key = "clip_h" if hasattr(clip.tokenizer, "clip_h") else "clip_l"
    vocabulary = getattr(clip.tokenizer, key).inv_vocab
    pieces = "".join(vocabulary[prompt.ids[p]] for p in word.positions)
    return pieces.replace("</w>", "")


def test_every_word_knows_its_tokens(clip):
    assert words(clip, "a cat on the sofa") == [
        ("a", (1,)),
        ("cat", (2,)),
        ("on", (3,)),
        ("the", (4,)),
        ("sofa", (5,)),
    ]


def test_a_word_of_many_tokens_has_many_positions(clip):
    assert words(clip, "a tiger on") == [("a", (1,)), ("tiger", (2, 3, 4, 5, 6)), ("on", (7,))]


def test_the_ids_are_those_of_the_conditioning(clip):
    text = "a (red:1.3) tiger, on the mat"
    prompt = prompt_tokens(clip, text)
    assert list(prompt.ids) == core_ids(clip, text)
    assert len(prompt.ids) == clip.encode_from_tokens(clip.tokenize(text)).shape[1]


def test_length_counts_start_and_end(clip):
    assert prompt_tokens(clip, "a red cat").length == 5
    prompt = prompt_tokens(clip, "")
    assert (prompt.words, prompt.length, len(prompt.ids)) == ((), 2, 77)


WEIGHTED = {
    "a (red:1.2) cat": "a red cat",
    "a (red cat:0.8) on": "a red cat on",
    "(a (red:1.2) (blue (cat:1.3)))": "a red blue cat",
    "a ((red)) (cat)": "a red cat",
    "a (red:1.2) (cat:1.1)": "a red cat",
    "a (red:1.2)(cat:1.1) on": "a redcat on",
    "a (red:1.2), cat": "a red, cat",
    "a re(d c:1.2)at": "a red cat",
    "a \\(red\\) cat": "a (red) cat",
    "a (\\(red\\):1.5) cat": "a (red) cat",
    "(a:1.0) : cat": "a : cat",
    "A CAT's  \n mat.": "A CAT's mat.",
}


@pytest.mark.parametrize(("written", "read"), WEIGHTED.items())
def test_weights_do_not_break_the_alignment(clip, written, read):
    prompt = prompt_tokens(clip, written)
    assert prompt.text == read
    for word in prompt.words:
        assert spelled(clip, prompt, word) == word.text.lower()
    positions = [p for word in prompt.words for p in word.positions]
    assert positions == list(range(1, prompt.length - 1))


@pytest.mark.parametrize(
    "text", ["café 猫🐈 naïve", "don't 50% #a_b", "a\u00a0cat\u3000x", "-- ... 's"]
)
def test_words_of_any_script_are_told_apart(clip, text):
    prompt = prompt_tokens(clip, text)
    assert [word.text for word in prompt.words] == text.split()
    positions = [p for word in prompt.words for p in word.positions]
    assert positions == list(range(1, prompt.length - 1))


def test_punctuation_belongs_to_its_word(clip):
    assert words(clip, "a cat, on") == [("a", (1,)), ("cat,", (2, 3)), ("on", (4,))]


def test_a_weight_changes_no_position(clip):
    plain, weighted = (prompt_tokens(clip, t) for t in ("a red cat", "a (red:1.4) cat"))
    assert plain == weighted


def test_a_long_prompt_goes_on_in_the_next_chunk(clip):
    text = " ".join(["cat"] * 76)
    prompt = prompt_tokens(clip, text)
    assert [word.positions for word in prompt.words] == [(p,) for p in (*range(1, 76), 78)]
    assert (len(prompt.ids), prompt.length) == (154, 80)
    assert list(prompt.ids) == core_ids(clip, text)


def test_a_short_group_moves_to_the_next_chunk_whole(clip):
    text = " ".join(["cat"] * 73) + " (tiger:1.2)"
    prompt = prompt_tokens(clip, text)
    assert prompt.words[-1].positions == (78, 79, 80, 81, 82)
    assert prompt.length == 84
    assert list(prompt.ids) == core_ids(clip, text)


def test_a_word_may_be_cut_by_the_end_of_a_chunk(clip):
    """Core keeps only short groups whole, and a sentence is one group."""
    prompt = prompt_tokens(clip, " ".join(["cat"] * 73) + " tiger")
    assert prompt.words[-1].positions == (74, 75, 78, 79, 80)
    assert spelled(clip, prompt, prompt.words[-1]) == "tiger"


def test_a_full_chunk_leaves_no_padding(clip):
    prompt = prompt_tokens(clip, " ".join(["cat"] * 75))
    assert (len(prompt.ids), prompt.length) == (77, 77)


# --- embeddings


def test_an_embedding_is_one_word(sd1_clip, embeddings):
    prompt = prompt_tokens(sd1_clip, "a embedding:two cat")
    assert [(w.text, w.positions) for w in prompt.words] == [
        ("a", (1,)),
        ("embedding:two", (2, 3)),
        ("cat", (4,)),
    ]
    assert prompt.ids[2] != prompt.ids[3]
    assert max(prompt.ids[2:4]) < 0


def test_an_embedding_has_the_same_ids_in_every_prompt(sd1_clip, embeddings):
    first = prompt_tokens(sd1_clip, "embedding:two cat")
    second = prompt_tokens(sd1_clip, "a red (embedding:two:1.3) cat")
    assert first.ids[1:3] == second.ids[3:5]
    assert first.ids[1:3] != prompt_tokens(sd1_clip, "embedding:one cat").ids[1:3]


EMBEDDED = {
    "a embedding:one, cat": [("a", 1), ("embedding:one,", 2), ("cat", 1)],
    "(a embedding:two:1.2) cat": [("a", 1), ("embedding:two", 2), ("cat", 1)],
    "embedding:one embedding:two": [("embedding:one", 1), ("embedding:two", 2)],
    "embedding:missing embedding:two cat": [("embedding:two", 2), ("cat", 1)],
    "a embedding:missing, cat": [("a", 1), (",", 1), ("cat", 1)],
    "embedding:one[red] cat": [("embedding:one[red]", 4), ("cat", 1)],
    "(embedding:one:1.1), cat": [("embedding:one,", 2), ("cat", 1)],
    "a:embedding:one": [("a:embedding:one", 15)],
}


@pytest.mark.parametrize(("text", "expected"), EMBEDDED.items())
def test_words_around_an_embedding(sd1_clip, embeddings, text, expected):
    prompt = prompt_tokens(sd1_clip, text)
    assert [(word.text, len(word.positions)) for word in prompt.words] == expected
    positions = [p for word in prompt.words for p in word.positions]
    assert positions == list(range(1, prompt.length - 1))


def test_an_embedding_for_another_model_is_refused(sd1_clip, embeddings):
    with pytest.raises(PalimpsestError, match=r"embedding:wide' has 48 numbers a token, .* 32"):
        prompt_tokens(sd1_clip, "a embedding:wide cat")


# --- the encoders of transformers


def clip_with(tokenizer, **encoders):
    """Core's CLIP with a tokenizer of core's, and no weights: what it reads, not what it makes."""
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options = tokenizer, {}
    clip.cond_stage_model = SimpleNamespace(**encoders)
    return clip


@pytest.fixture(scope="module")
def sd3():
    return SD3Tokenizer()


def lengths_of(tokenizer, word):
    """How many tokens a word has in a sentence, by the tokenizer's own places of letters."""
    shown = tokenizer(f"so {word} so", return_offsets_mapping=True)["offset_mapping"]
    return sum(start >= 3 and end <= 3 + len(word) and end > start for start, end in shown)


TEXT = "a photo of an extraordinary tyrannosaurus, on the (wet:1.3) grass"


@pytest.mark.parametrize(("make", "least"), [(FluxTokenizer, 256), (PixArtTokenizer, 1)])
def test_flux_and_chroma_attend_to_the_words_of_t5(make, least):
    clip = clip_with(make())
    every = clip.tokenizer
    tokenizer = getattr(every, "clip_t5xxl", None) or every.t5xxl
    prompt, at = prompt_tokens(clip, TEXT), 0
    for word, plain in zip(
        prompt.words, TEXT.replace("(", "").replace(":1.3)", "").split(), strict=True
    ):
        count = lengths_of(tokenizer.tokenizer, plain)
        assert (word.text, word.positions) == (plain, tuple(range(at, at + count)))
        at += count
    assert prompt.length == at + 1  # an end, and no start
    assert len(prompt.ids) == max(least, at + 1)
    assert prompt.text == " ".join(word.text for word in prompt.words)


def test_sd3_attends_to_the_words_of_its_clips_and_to_those_of_t5_behind_them(sd3):
    clip = clip_with(sd3, clip_l="there", clip_g="there", t5xxl="there")
    prompt = prompt_tokens(clip, TEXT)
    alone = prompt_tokens(clip_with(sd3, clip_l="there", clip_g="there", t5xxl=None), TEXT)
    t5 = prompt_tokens(clip_with(sd3, clip_l=None, clip_g=None, t5xxl="there"), TEXT)
    assert (len(alone.ids), len(t5.ids)) == (77, 77)
    assert prompt.ids == alone.ids + t5.ids
    count = len(alone.words)
    assert prompt.words[:count] == alone.words
    for word, own in zip(prompt.words[count:], t5.words, strict=True):
        assert word.text == own.text
        assert word.positions == tuple(77 + position for position in own.positions)
    assert prompt.text == alone.text == t5.text
    assert prompt.length == 77 + t5.length
    assert find_word("wet", prompt) == (*find_word("wet", alone), *prompt.words[-2].positions)


def test_one_of_its_clips_alone_is_read_as_core_reads_it(sd3):
    for there in ("clip_l", "clip_g"):
        encoders = {"clip_l": None, "clip_g": None, "t5xxl": None} | {there: "there"}
        prompt = prompt_tokens(clip_with(sd3, **encoders), "a red cat")
        assert [word.positions for word in prompt.words] == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    "texts", [("a red cat on grass", "a blue tiger on grass"), ("a red cat", "a big red cat")]
)
def test_a_rewritten_prompt_reads_each_encoder_in_itself(sd3, texts):
    clip = clip_with(sd3, clip_l="there", clip_g="there", t5xxl="there")
    control = rewrite_prompt(*(prompt_tokens(clip, text) for text in texts))
    mapping = control.alignment.mapping
    assert mapping.shape == (154, 154)
    assert not mapping[:77, 77:].any() and not mapping[77:, :77].any()
    for part, encoders in (
        (slice(0, 77), {"clip_l": "there", "clip_g": "there", "t5xxl": None}),
        (slice(77, 154), {"clip_l": None, "clip_g": None, "t5xxl": "there"}),
    ):
        alone = clip_with(sd3, **encoders)
        own = rewrite_prompt(*(prompt_tokens(alone, text) for text in texts)).alignment
        wanted = [n for n, text in enumerate(own.aligned.tolist()) if text]
        words = [n for n in wanted if n < prompt_tokens(alone, texts[1]).length - 1]
        assert torch.equal(mapping[part, part][:, words], own.mapping[:, words])


CHAT = "a photo of an extraordinary cat, on  (wet:1.3) 草地 grass"


@pytest.mark.parametrize(
    ("make", "cut"),
    [(QwenImageTokenizer, 34), (ZImageTokenizer, 0), (KleinTokenizer, 0), (KleinTokenizer8B, 0)],
)
def test_of_a_chat_the_words_of_the_prompt_are_known(make, cut):
    """Beside the places of letters that the tokenizer itself tells, in core's whole chat."""
    clip = clip_with(make())
    every = clip.tokenizer
    tokenizer = getattr(every, every.clip).tokenizer
    whole = every.llama_template.format(CHAT)
    letters = tokenizer(whole, return_offsets_mapping=True)["offset_mapping"]
    prompt, at = prompt_tokens(clip, CHAT), whole.index(CHAT)
    assert [word.text for word in prompt.words] == CHAT.split()
    for word in prompt.words:
        at = whole.index(word.text, at)
        end = at + len(word.text)
        mine = [n for n, (a, b) in enumerate(letters) if a < end and b > at and b > a]
        assert word.positions == tuple(n - cut for n in mine)
        at = end
    assert prompt.length == len(letters) - cut
    (chunks,) = clip.tokenize(CHAT).values()
    assert len(prompt.ids) == len(chunks[0]) - cut


@pytest.mark.parametrize("make", [QwenImageTokenizer, ZImageTokenizer])
def test_an_empty_prompt_of_a_chat_has_no_words(make):
    assert prompt_tokens(clip_with(make()), "").words == ()


@pytest.mark.parametrize("make", [QwenImageTokenizer, ZImageTokenizer, KleinTokenizer])
def test_rewritten_words_of_a_chat_stay_in_their_places(make):
    clip = clip_with(make())
    texts = ("a red cat on grass", "a blue extraordinarily tiny cat on grass")
    prompts = [prompt_tokens(clip, text) for text in texts]
    mapping = rewrite_prompt(*prompts).alignment.mapping
    for word in ("cat", "grass"):
        of, to = (find_word(word, prompt) for prompt in prompts)
        assert mapping[:, list(to)].argmax(0).tolist() == list(of)
    ends = [prompt.length - 1 for prompt in prompts]
    assert mapping[ends[0], ends[1]] == 1


def test_a_chat_of_another_template_is_refused():
    with pytest.raises(PalimpsestError, match="reads with qwen25_7b: words can be told apart"):
        prompt_tokens(clip_with(LongCatImageTokenizer()), "a red cat")


def test_a_chat_whose_tokens_are_not_its_words_is_refused(monkeypatch):
    clip = clip_with(QwenImageTokenizer())
    tokenize = clip.tokenizer.qwen25_7b.tokenizer
    monkeypatch.setattr(
        clip.tokenizer.qwen25_7b,
        "tokenizer",
        lambda text, **more: tokenize(text if "<|" in text else text.upper(), **more),
    )
    with pytest.raises(PalimpsestError, match="cannot be told apart"):
        prompt_tokens(clip, "a red cat")


# --- what cannot be read


def test_an_embedding_without_a_name_is_refused(sd1_clip, embeddings):
    with pytest.raises(PalimpsestError, match="must be followed by a name"):
        prompt_tokens(sd1_clip, "a cat embedding:")


def test_a_clip_of_another_kind_is_refused():
    clip = clip_with(AnimaTokenizer())
    with pytest.raises(PalimpsestError, match=r"reads with qwen3_06b, t5xxl: .*SD 1\.x"):
        prompt_tokens(clip, "a cat")


def test_tokens_that_do_not_match_are_refused(sd1_clip, monkeypatch):
    tokenize = sd1_clip.tokenizer.clip_l.tokenizer
    monkeypatch.setattr(
        sd1_clip.tokenizer.clip_l, "tokenizer", lambda text: tokenize(text.replace(" ", "-"))
    )
    with pytest.raises(PalimpsestError, match="cannot be told apart"):
        prompt_tokens(sd1_clip, "a red cat")


def test_two_tokenizers_that_disagree_are_refused(sdxl_folder, monkeypatch):
    clip = agree.in_comfyui(sdxl_folder).clip
    tokenize = clip.tokenizer.clip_g.tokenizer
    monkeypatch.setattr(
        clip.tokenizer.clip_g, "tokenizer", lambda text: tokenize(text.replace("cat", "tiger"))
    )
    with pytest.raises(PalimpsestError, match="two tokenizers of this CLIP cut the prompt"):
        prompt_tokens(clip, "a cat")
