"""The words of the embedded model: new ones come after the old, and change nothing of them."""

import shutil

import pytest
import torch
from palimpsest.demo import train_text
from palimpsest.demo.layouts import KINDS, scene_of
from palimpsest.demo.model_files import WEIGHTS, token_ids
from palimpsest.demo.scenes import PLACES, caption, every_content, training_content
from transformers import CLIPTokenizer

NEW = ("and", *PLACES)
OLD = tuple(caption(content) for content in training_content())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer of the old captions alone, and the same with the new words."""
    old, new = (tmp_path_factory.mktemp(name) for name in ("old", "new"))
    train_text.write_tokenizer(old, OLD)
    shutil.copytree(old, new, dirs_exist_ok=True)
    train_text.extend_tokenizer(new, NEW)
    return old, new


@pytest.fixture(scope="module")
def tokenizers(folders):
    return [CLIPTokenizer.from_pretrained(folder) for folder in folders]


def test_old_captions_keep_their_tokens(tokenizers):
    old, new = tokenizers
    captions = ["", *(caption(content) for content in every_content())]
    assert torch.equal(token_ids(old, captions), token_ids(new, captions))
    assert len(new) > len(old) == 601


def test_every_word_of_every_kind_is_one_token(tokenizers):
    _, tokenizer = tokenizers
    for kind in KINDS:
        for seed in range(30):
            text = caption(scene_of(kind, seed, every_content()))
            ids = tokenizer(text).input_ids
            assert len(ids) == len(text.split()) + 2, text
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_new_tokens_come_after_all_old_ones(tokenizers):
    old, new = (tokenizer.get_vocab() for tokenizer in tokenizers)
    assert {token: new[token] for token in old} == old
    assert min(number for token, number in new.items() if token not in old) == len(old)
    assert sorted(new.values()) == list(range(len(new)))


def test_words_that_are_known_already_add_nothing(folders):
    _, new = folders
    before = {path.name: path.read_bytes() for path in new.iterdir()}
    train_text.extend_tokenizer(new, (*NEW, *OLD))
    assert {path.name: path.read_bytes() for path in new.iterdir()} == before


def test_training_on_gives_the_words_of_a_training_from_nothing(folders, tmp_path):
    shutil.copytree(WEIGHTS / "tokenizer", tmp_path, dirs_exist_ok=True)
    train_text.extend_tokenizer(tmp_path, NEW)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_text() == (folders[1] / name).read_text()


def test_a_wider_vocabulary_changes_nothing_of_old_captions(tokenizers):
    torch.manual_seed(0)
    narrow = train_text.make_text_encoder(tokenizers[0]).eval()
    wide = train_text.with_more_tokens(narrow, len(tokenizers[1])).eval()
    ids = token_ids(tokenizers[0], list(OLD[:3]))
    with torch.no_grad():
        assert torch.equal(narrow(ids).last_hidden_state, wide(ids).last_hidden_state)
    assert wide.config.vocab_size == len(tokenizers[1])
    assert wide.get_input_embeddings().weight.shape == (len(tokenizers[1]), 96)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_tells_what_was_said_of_the_object_named_last(kind):
    for seed in range(10):
        scene = scene_of(kind, seed, every_content())
        words = ["", *caption(scene).split()]
        labels = train_text._labels(scene)
        for thing in scene.things:
            at = words.index(thing.shape)
            assert list(train_text.COLORS)[labels[0, at]] == thing.color
            assert list(train_text.SHAPES)[labels[1, at]] == thing.shape
            assert train_text.TEXTURES[labels[2, at]] == thing.texture
        last = labels[:, len(words) - 1].tolist()
        assert list(train_text.BACKGROUNDS)[last[4]] == scene.background
        place = PLACES[scene.place] if scene.place and scene.other else scene.place
        assert (*PLACES, None)[last[3]] == place
        assert (labels[:5, [0, *range(len(words), 77)]] == -100).all()
        assert {(*PLACES, None)[i] for i in labels[5, len(words) :]} == {scene.place}
