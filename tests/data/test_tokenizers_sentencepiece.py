import base64
import io
import json
import re

import numpy as np
import pytest
import sentencepiece

from jaxgpt.config import shipped
from jaxgpt.data import reading, tokenizer_files, tokenizers
from jaxgpt.data.sentencepiece import SentencePieceTokenizer, read, train
from jaxgpt.errors import UserError
from tests import conftest
from tests.data.test_text import open_text, refusal

SHAKESPEARE = shipped("data/shakespeare.txt")
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
    whole = np.concatenate([data.splits["train"], data.splits["val"]])
    assert len(whole) < 0.75 * len(TEXT)
    assert data.tokenizer.decode(whole) == TEXT
    odd = "  two  spaces\n\n \n: "
    assert data.tokenizer.decode(data.tokenizer.encode(odd)) == odd


def test_the_same_text_makes_the_same_model(data):
    lines = TEXT.split("\n")
    again = train(lines, set(TEXT), 200)
    assert again.to_json() == data.tokenizer.to_json()


def test_tokens_do_not_depend_on_where_the_text_is_cut(data, monkeypatch, own_cache):
    monkeypatch.setattr(reading, "CHUNK", 997)
    cut = open_text(SHAKESPEARE, **CHOSEN)
    np.testing.assert_array_equal(cut.splits["train"], data.splits["train"])


def test_a_given_model_is_used(data, model_file, own_cache):
    options = {"tokenizer": "sentencepiece", "sentencepiece_model": str(model_file)}
    again = open_text(SHAKESPEARE, **options)
    np.testing.assert_array_equal(again.splits["val"], data.splits["val"])
    found, notes = tokenizer_files.read_any(model_file)  # As convert --tokenizer does.
    assert found.to_json() == data.tokenizer.to_json() and not notes


def given_model(**options):
    """A model that somebody trained elsewhere, with SentencePiece's defaults."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT[:100_000].split("\n")),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": 500, "num_threads": 1} | options,
    )
    return model.getvalue()


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
BYTES = {"byte_fallback": True, **IDENTITY}
GIVEN = {
    "llama": {"model_type": "bpe", "split_digits": True, **BYTES},
    "unigram": BYTES,
    "no space": {"add_dummy_prefix": False, **BYTES},
    "over words": {"split_by_whitespace": False, **BYTES},
    "suffix": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": False, **BYTES},
    "symbols": {"user_defined_symbols": ["\n\n", "  ", "<sep>"], **BYTES},
}
SPOKEN = "ka batu  <sep>, 12 menu\n\n \n  <s> </s> <unk> <0x0A>\r\n\té漢😀\0\u200b.. \n"


@pytest.fixture(scope="module", params=GIVEN)
def given(request):
    return SentencePieceTokenizer(given_model(**GIVEN[request.param]))


@pytest.mark.parametrize("text", [SPOKEN, f" {SPOKEN}", "", " ", "\n", "x", "  x"])
def test_ids_are_those_of_sentencepiece_and_the_text_comes_back(given, text):
    own = sentencepiece.SentencePieceProcessor(model_proto=given.model)
    ids = given.encode(text)
    assert ids.tolist() == own.encode(text)
    assert given.decode(ids) == text
    for cut in range(0, len(text), 7):
        rest = given.encode_rest(text[cut:])
        assert given.decode_rest(rest) == text[cut:]
        both = np.concatenate([given.encode(text[:cut] or "x"), rest])
        assert given.decode(both) == (text[:cut] or "x") + text[cut:]


def test_long_texts_are_cut_where_no_token_is(given, monkeypatch):
    own = sentencepiece.SentencePieceProcessor(model_proto=given.model)
    monkeypatch.setattr("jaxgpt.data.sentencepiece.LONGEST_PART", 100)
    text = TEXT[:20_000]
    assert given.encode(text).tolist() == own.encode(text)
    pieces = [text[i : i + 61] for i in range(0, len(text), 61)]
    ids = np.concatenate(list(given.encode_pieces(pieces)))
    np.testing.assert_array_equal(ids, given.encode(text))


def test_a_given_model_is_used_on_a_whole_text(tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 99)
    file, model = tmp_path / "text.txt", tmp_path / "llama.model"
    file.write_text(TEXT[:3000], newline="")
    model.write_bytes(given_model(**GIVEN["llama"]))
    made = open_text(file, tokenizer="sentencepiece", sentencepiece_model=str(model))
    own = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert made.splits["train"].tolist() == own.encode(TEXT[:2700])
    assert made.splits["val"].tolist() == own.encode(TEXT[2700:3000])
    saved = tokenizer_files.from_json(made.tokenizer.to_json())
    assert saved.encode("a b").tolist() == own.encode("a b")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, "its normalization rule nmt_nfkc changes characters, and it removes"),
        ({"normalization_rule_name": "nfkc"}, "rule nfkc changes"),
        ({"remove_extra_whitespaces": True}, "it removes repeated spaces"),
        ({"treat_whitespace_as_suffix": True}, "adds a space at the end"),
    ],
)
def test_a_model_that_would_change_texts_is_refused(tmp_path, options, reason):
    file = tmp_path / "lossy.model"
    file.write_bytes(given_model(**BYTES | options if options else {}))
    message = conftest.refusal(read, file)
    assert f"'{file}' would change the text: " in message
    assert reason in message
    assert "--normalization_rule_name=identity" in message


def test_what_a_given_model_cannot_hold_is_named():
    llama = SentencePieceTokenizer(given_model(**GIVEN["llama"]))
    with pytest.raises(UserError, match=r"character '▁' \(at 3\) is not in the"):
        llama.encode("a b▁c")
    lines = SentencePieceTokenizer(given_model(**IDENTITY, vocab_size=200))
    with pytest.raises(UserError, match=r"U\+000A '\\n' \(at 3\) .*--byte_fallback$"):
        lines.encode("a b\nc")
    with pytest.raises(UserError, match=r"'漢' \(at 40001\) is not in the"):
        lines.encode("ab cd" * 8000 + " 漢")


@pytest.mark.parametrize("text", ["漢", "a漢", " 漢字", "ab 漢", "  x漢", "a b c\td"])
def test_where_an_unknown_character_is(text):
    known = SentencePieceTokenizer(given_model(**IDENTITY, vocab_size=200))
    at = next(i for i, letter in enumerate(text) if letter in "漢\t")
    for encode in (known.encode, known.encode_rest):
        with pytest.raises(tokenizers.UnknownCharacterError) as caught:
            encode(text)
        assert (caught.value.at, caught.value.character) == (at, text[at])


def test_a_run_of_before_says_that_its_spaces_were_doubled(capsys):
    llama = SentencePieceTokenizer(given_model(**GIVEN["llama"]))
    saved = llama.to_json()
    tokenizer_files.from_json(saved)
    assert capsys.readouterr().err == ""
    del saved["adds_a_space"]
    assert tokenizer_files.from_json(saved).encode("a b").tolist() == (
        llama.encode("a b").tolist()
    )
    assert "an extra space before every word" in capsys.readouterr().err


def test_stand_ins_are_not_in_the_vocabulary(tmp_path):
    lines = ["k\0a ▁ba▅\r", "<unk> in line", "ka ba in a line"] * 9
    made = train(lines, {*"\n".join(lines)}, 30, "bpe")
    text = "\n".join(lines)
    again = tokenizer_files.from_json(json.loads(json.dumps(made.to_json())))
    assert again.decode(again.encode(text)) == text
    assert not {*made.stand_ins} & {*text}
    with pytest.raises(UserError, match=r"U\+F0000 '\\U000f0000' \(at 1\) is not in"):
        again.encode("k\U000f0000")


def test_saved_with_the_run(data, tmp_path):
    tokenizer_files.save(data.tokenizer, tmp_path / "tokenizer.json")
    loaded = tokenizer_files.load(tmp_path / "tokenizer.json")
    assert loaded.to_json() == data.tokenizer.to_json()
    assert loaded.decode(loaded.encode("to be")) == "to be"


@pytest.mark.parametrize(
    "text, shown",
    [("naïve", "'ï' (at 2)"), ("a 漢字", "'漢' (at 2)"), ("\t", "U+0009 '\\t' (at 0)")],
)
def test_text_without_a_piece(data, text, shown):
    named = re.escape(f"character {shown} is not in the vocabulary of 200")
    with pytest.raises(UserError, match=named):
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
    message = refusal(SHAKESPEARE, own_cache, sentencepiece_model=path)
    assert message.endswith("model needs data.tokenizer=sentencepiece, got 'char'")
    model_file.write_bytes(b"no model")
    assert "cannot be used: not a Sentence" in refused(sentencepiece_model=path)
    assert "data.vocab_size must be > 65" in refused()
    assert "different characters, got 65" in refused(vocab_size=65)
    assert "Vocabulary size too high (99999)" in refused(vocab_size=99999)


@pytest.mark.parametrize("model", ["", "%", base64.b64encode(b"x" * 99).decode()])
def test_a_damaged_model_in_a_tokenizer_file(model):
    with pytest.raises(UserError, match="its SentencePiece model is damaged"):
        tokenizer_files.from_json({"kind": "sentencepiece", "model": model})
