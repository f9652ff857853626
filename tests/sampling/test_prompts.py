import numpy as np
import pytest

from jaxgpt.data.sentencepiece import SentencePieceTokenizer as SentencePiece
from jaxgpt.data.tokenizers import END_OF_TEXT, CharTokenizer, GPT2Tokenizer
from jaxgpt.errors import UserError
from jaxgpt.sampling import prompts
from tests.sampling.test_display import spaced_model


def test_special_tokens_are_text_unless_asked():
    tokenizer, text = GPT2Tokenizer(), "a<|endoftext|>b"
    assert END_OF_TEXT not in prompts.encode(text, tokenizer)
    assert prompts.encode(text, tokenizer, True).tolist() == [64, END_OF_TEXT, 65]
    tokens, known = prompts.read_template(f"{text}<missing:2>", tokenizer, 8, True)
    assert tokens.tolist() == [64, END_OF_TEXT, 65, 0, 0]
    assert known.tolist() == [True] * 3 + [False] * 2


def test_a_prompt_is_changed_as_the_text_of_the_run_was(capsys):
    text = "e\u0301\r\n"
    assert prompts.normalize(text, "none") == text
    assert capsys.readouterr().err == ""
    assert prompts.normalize(text, "nfc") == "é\n"
    assert "data.normalize=nfc" in capsys.readouterr().err


def test_text_after_a_gap_gets_no_space_of_its_own():
    tokenizer = SentencePiece(spaced_model())
    tokens, known = prompts.read_template("ka<missing:1> b<missing:1>a", tokenizer, 9)
    kept = tokenizer.decode(tokens[known])
    assert kept == "ka ba"
    tokens, known = prompts.read_template("<missing:1>ka", tokenizer, 9)
    assert tokenizer.decode_rest(tokens[known]) == "ka"


def test_a_text_begins_after_a_newline():
    tokenizer = SentencePiece(spaced_model())
    assert tokenizer.decode(np.array([prompts.start_token(tokenizer)])) == "\n"
    assert prompts.start_token(CharTokenizer("ab")) == 0


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab"), GPT2Tokenizer()])
def test_a_prompt_that_is_not_utf8_is_refused(tokenizer):
    expected = r"\(at 1\) is not a character but the byte 0xe9"
    with pytest.raises(UserError, match=expected):
        prompts.encode("a\udce9", tokenizer)
    with pytest.raises(UserError, match="not a character but half of a surrogate pair"):
        prompts.encode("a\ud800", tokenizer)


def test_places_count_from_the_beginning_of_a_template():
    with pytest.raises(UserError, match=r"'c' \(at 14\) is not in the vocabulary"):
        prompts.read_template("ab<missing:2>acb", CharTokenizer("ab"), 9)


@pytest.mark.parametrize("text", ["missing:3", "<missing person>", "a < missing", "<<"])
def test_text_that_only_resembles_a_gap(text):
    tokens, known = prompts.read_template(text, GPT2Tokenizer(), 99)
    assert known.all()
    assert GPT2Tokenizer().decode(tokens) == text
