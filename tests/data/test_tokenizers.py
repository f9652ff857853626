import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.data import tokenizer_files, tokenizers
from tests.conftest import refusal


@pytest.fixture
def no_encoding_yet():
    """GPT-2's encoding is built anew in the test, and after it."""
    tokenizers._gpt2_encoding.cache_clear()
    yield
    tokenizers._gpt2_encoding.cache_clear()


def test_char_ids_follow_code_points():
    tokenizer = tokenizers.CharTokenizer("".join(sorted("hé😀\n ")))
    ids = tokenizer.encode("\n hé😀")
    assert tokenizer.vocab_size == 5
    assert ids.dtype == np.int32
    assert ids.tolist() == [0, 1, 2, 3, 4]
    assert tokenizer.decode(ids) == "\n hé😀"


@settings(deadline=None)
@given(st.text(min_size=1))
def test_char_round_trip(text):
    tokenizer = tokenizers.CharTokenizer("".join(sorted(set(text))))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_char_decodes_no_ids_of_a_padded_vocabulary():
    assert tokenizers.CharTokenizer("ab").decode(np.array([1, 2, 99, 0])) == "ba"


def test_char_of_nothing():
    tokenizer = tokenizers.CharTokenizer("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode(np.zeros(0, np.int32)) == ""


@pytest.mark.parametrize(
    "text, named",
    [("abz", "'z' (at 2)"), ("aé", "'é' (at 1)"), ("😀", "'😀' (at 0)")],
)
def test_char_outside_the_vocabulary_is_named(text, named):
    message = refusal(tokenizers.CharTokenizer("ab").encode, text)
    assert f"character {named} is not in the vocabulary of 2" in message


@settings(deadline=None)
@given(st.text(min_size=1))
def test_word_round_trip(text):
    tokenizer = tokenizers.WordTokenizer(sorted(set(tokenizers.WORD.findall(text))))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) <= len(text)
    saved = json.loads(json.dumps(tokenizer.to_json()))
    assert tokenizer_files.from_json(saved).decode(ids) == text


def test_words_and_what_stands_between_them():
    tokenizer = tokenizers.WordTokenizer(sorted({*"', .\n", "don", "t", "go", "not"}))
    ids = tokenizer.encode("go, don't\n\ngo.")
    words = [tokenizer.words[i] for i in ids]
    assert words == ["go", ",", " ", "don", "'", "t", "\n", "\n", "go", "."]
    assert tokenizer.decode(np.array([99])) == ""
    message = refusal(tokenizer.encode, "go, gone don")
    assert message == (
        "word 'gone' (at 4) is not in the vocabulary of 9 words: leave it out"
    )
    assert "character 'x' (at 3)" in refusal(tokenizer.encode, "go x")
    assert "words have no special tokens" in refusal(tokenizer.encode, "go", True)


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], [], [3]])
def test_a_damaged_vocabulary_of_words_is_refused(words):
    saved = {"kind": "word", "words": words}
    assert "holds no tokenizer" in refusal(tokenizer_files.from_json, saved)


def test_byte_of_the_command_line_that_is_not_utf8():
    assert "'\\udcff' (at 0)" in refusal(
        tokenizers.CharTokenizer("ab").encode, "\udcff"
    )


def test_gpt2_known_ids():
    tokenizer = tokenizers.GPT2Tokenizer()
    ids = tokenizer.encode("Hello, world!")
    assert ids.dtype == np.int32
    assert ids.tolist() == [15496, 11, 995, 0]
    assert tokenizer.decode(ids) == "Hello, world!"
    assert tokenizer.encode("a\n\nb").tolist() == [64, 198, 198, 65]
    assert tokenizer.encode("a\n\n").tolist() == [64, 628]
    assert tokenizer.encode("").tolist() == []


def test_gpt2_vocabulary():
    tokenizer = tokenizers.GPT2Tokenizer()
    assert tokenizer.vocab_size == 50257 == tokenizer._encoding.n_vocab
    assert tokenizer.decode(np.array([tokenizers.END_OF_TEXT])) == "<|endoftext|>"


def test_gpt2_reads_special_tokens_as_text():
    tokenizer = tokenizers.GPT2Tokenizer()
    ids = tokenizer.encode("<|endoftext|>")
    assert tokenizers.END_OF_TEXT not in ids
    assert tokenizer.decode(ids) == "<|endoftext|>"


@settings(deadline=None)
@given(st.text())
def test_gpt2_round_trip(text):
    tokenizer = tokenizers.GPT2Tokenizer()
    ids = tokenizer.encode(text)
    assert ((ids >= 0) & (ids < tokenizers.END_OF_TEXT)).all()
    assert tokenizer.decode(ids) == text


def test_gpt2_decodes_half_a_character():
    tokenizer = tokenizers.GPT2Tokenizer()
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    assert "\ufffd" in tokenizer.decode(ids[:1])


def test_gpt2_merges_of_another_sha_are_refused(tmp_path, monkeypatch, no_encoding_yet):
    merges = tmp_path / "vocab.bpe"
    merges.write_bytes(tokenizers.MERGES.read_bytes() + b"\n")
    monkeypatch.setattr(tokenizers, "MERGES", merges)
    message = refusal(tokenizers.GPT2Tokenizer)
    assert str(merges) in message
    assert "sha256" in message


def test_gpt2_merges_missing(tmp_path, monkeypatch, no_encoding_yet):
    monkeypatch.setattr(tokenizers, "MERGES", tmp_path / "none.bpe")
    assert str(tmp_path / "none.bpe") in refusal(tokenizers.GPT2Tokenizer)


def test_json_round_trip(tmp_path):
    file = tmp_path / "tokenizer.json"
    for tokenizer in (
        tokenizers.CharTokenizer('\n"\\aéσ😀'),
        tokenizers.GPT2Tokenizer(),
    ):
        tokenizer_files.save(tokenizer, file)
        loaded = tokenizer_files.load(file)
        assert type(loaded) is type(tokenizer)
        assert loaded.to_json() == tokenizer.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_tokenizer_file_that_is_not_json_is_said_to_be_none(tmp_path):
    for content in (b"plain text", b"\n\x80\xb4"):
        file = tmp_path / "tokenizer.model"
        file.write_bytes(content)
        assert "it is not JSON" in refusal(tokenizer_files.load, file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"kind": "word"}',
        b'{"kind": "char"}',
        b'{"kind": "char", "characters": ""}',
        b'{"kind": "char", "characters": ["a"]}',
        json.dumps({"kind": "char", "characters": "\ud800"}).encode(),
    ],
)
def test_damaged_tokenizer_file_is_named(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    assert f"tokenizer file '{file}' cannot be used" in refusal(
        tokenizer_files.load, file
    )


def test_missing_tokenizer_file_is_named(tmp_path):
    for read in (tokenizer_files.load, tokenizer_files.read_any):
        assert str(tmp_path / "none.json") in refusal(read, tmp_path / "none.json")
    message = refusal(tokenizer_files.read_any, tmp_path)
    assert f"'{tmp_path}' holds no tokenizer" in message
