"""Prompts without a tokenizer: each word has the tokens its letters say."""

from palimpsest.pipelines.attention.tokens import PromptTokens, Word

START, END = 49406, 49407


def prompt(text, length=77, **sizes):
    """A prompt of one token a word, or of as many as `sizes` says for it."""
    ids, words = [START], []
    for word in text.split():
        count = sizes.get(word.strip(".,!?").lower(), 1)
        words.append(Word(word, tuple(range(len(ids), len(ids) + count))))
        ids += [hash_of(word) + part for part in range(count)]
    ids.append(END)
    return PromptTokens(tuple(ids + [END] * (length - len(ids))), tuple(words), len(ids))


def hash_of(word):
    """A token id that depends on the word alone, the same in every run."""
    return sum(ord(letter) * 131**place for place, letter in enumerate(word)) % 40000
