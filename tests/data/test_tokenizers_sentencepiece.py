import base64

import numpy as np
import pytest

from jaxgpt.data import cache, tokenizers
from jaxgpt.errors import UserError
from tests.data.test_text import open_text, refusal

SHAKESPEARE = cache.REPOSITORY / "data" / "shakespeare.txt"
TEXT = SHAKESPEARE.read_text()
CHOSEN = {"tokenizer": "sentencepiece", "vocab_size": 200}


@pytest.fixture(scope="module")
def data():
    return open_text(SHAKESPEARE, **CHOSEN)


@pytest.fixture
def model_file(data, tmp_path):
    path = tmp_path / "words.model"
    path.write_bytes(data.tokenizer.model)
    return path


def test_the_text_comes_back_unchanged(data):
    assert data.vocab_size == 200
    whole = np.concatenate([data.train, data.val])
    assert len(whole) < 0.75 * len(TEXT)
    assert data.tokenizer.decode(whole) == TEXT
    odd = "  two  spaces\n\n \n: "
    assert data.tokenizer.decode(data.tokenizer.encode(odd)) == odd


def test_the_same_text_makes_the_same_model(data):
    lines = TEXT.split("\n")
    again = tokenizers.train_sentencepiece(lines, set(TEXT), 200)
    assert again.to_json() == data.tokenizer.to_json()


def test_tokens_do_not_depend_on_where_the_text_is_cut(data, monkeypatch, own_cache):
    monkeypatch.setattr(cache, "CHUNK", 997)
    cut = open_text(SHAKESPEARE, **CHOSEN)
    np.testing.assert_array_equal(cut.train, data.train)


def test_a_given_model_is_used(data, model_file, own_cache):
    options = {"tokenizer": "sentencepiece", "sentencepiece_model": str(model_file)}
    again = open_text(SHAKESPEARE, **options)
    np.testing.assert_array_equal(again.val, data.val)


def test_saved_with_the_run(data, tmp_path):
    tokenizers.save_tokenizer(data.tokenizer, tmp_path / "tokenizer.json")
    loaded = tokenizers.load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.to_json() == data.tokenizer.to_json()
    assert loaded.decode(loaded.encode("to be")) == "to be"


@pytest.mark.parametrize("text, shown", [("naïve", "ï"), ("漢字", "漢字")])
def test_text_without_a_piece(data, text, shown):
    with pytest.raises(UserError, match=f"'{shown}' is not in the vocabulary of 200"):
        data.tokenizer.encode(text)


def test_models_that_cannot_be(model_file, own_cache):
    refused = lambda **changes: refusal(
        SHAKESPEARE, own_cache, tokenizer="sentencepiece", **changes
    )
    missing = f"{model_file}.none"
    assert f"'{missing}' does not exist" in refused(sentencepiece_model=missing)
    path = str(model_file)
    message = refused(sentencepiece_model=path, vocab_size=512)
    assert f"'{path}' has 200 tokens, not data.vocab_size=512" in message
    model_file.write_bytes(b"no model")
    assert "cannot be used: not a Sentence" in refused(sentencepiece_model=path)
    assert "data.vocab_size must be > 65" in refused()
    assert "different characters, got 65" in refused(vocab_size=65)
    assert "Vocabulary size too high (99999)" in refused(vocab_size=99999)


@pytest.mark.parametrize("model", ["", "%", base64.b64encode(b"x" * 99).decode()])
def test_a_damaged_model_in_a_tokenizer_file(model):
    with pytest.raises(UserError, match="its SentencePiece model is damaged"):
        tokenizers.from_json({"kind": "sentencepiece", "model": model})
