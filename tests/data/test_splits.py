"""Chunked splits, and the test split beside either way of splitting."""

import numpy as np
import pytest

from jaxgpt.config import base, override, validate
from jaxgpt.data import text as texts
from jaxgpt.errors import UserError
from tests.data.test_text import open_text, refusal, settings_of, text_file  # noqa: F401

LETTERS = "".join(chr(97 + i % 26) * 10 for i in range(23)) + "tail"
CHUNKS = {"split": "chunks", "chunk_tokens": 10, "test_fraction": 0.2}


@pytest.fixture
def letters(text_file):  # noqa: F811
    """A text of 23 chunks of 10 equal letters each, and a tail."""
    return text_file(LETTERS)


def rows(tokens):
    return np.asarray(tokens).reshape(-1, 10)


def test_every_chunk_is_in_one_split_whole(letters):
    data = open_text(letters, **CHUNKS)
    sizes = [len(data.splits[split]) for split in texts.SPLITS]
    assert sizes == [160, 20, 50]
    found = np.concatenate([rows(data.splits[split]) for split in texts.SPLITS])
    assert (found == found[:, :1]).all()
    assert sorted(found[:, 0]) == sorted(data.tokenizer.encode(LETTERS[:230:10]))


def test_another_seed_is_another_split(letters):
    one = open_text(letters, **CHUNKS)
    other = open_text(letters, **CHUNKS, split_seed=1)
    assert sorted(one.splits["val"]) != sorted(other.splits["val"])
    np.testing.assert_array_equal(
        one.splits["val"], open_text(letters, **CHUNKS).splits["val"]
    )


def test_no_window_reaches_from_one_chunk_into_the_next(letters):
    data = open_text(letters, **CHUNKS)
    drawn = data.batch_at(0, "train", 0, 500, 7)
    assert (drawn == drawn[:, :1]).all()
    starts = {int(row[0]) for row in drawn}
    assert len(starts) == 16
    for count in (None, 9):
        fixed = data.eval_windows("test", 4, count)
        assert (fixed == fixed[:, :1]).all()
        assert len(fixed) == (count or 5 * 2)
    assert data.num_windows("test", 4) == 5 * 7


def test_text_end_holds_validation_and_test(text_file):  # noqa: F811
    data = open_text(text_file("abcdefghij" * 10), test_fraction=0.2, val_fraction=0.3)
    whole = np.concatenate([data.splits[split] for split in texts.SPLITS])
    assert [len(data.splits[s]) for s in texts.SPLITS] == [50, 30, 20]
    assert data.tokenizer.decode(whole) == "abcdefghij" * 10


def test_tenths_are_tenths(text_file):  # noqa: F811
    # 1 - 0.1 - 0.1 times 10 is a little less than 8 in floating point.
    data = open_text(
        text_file("ab" * 50), **{**CHUNKS, "test_fraction": 0.1}, val_fraction=0.1
    )
    assert [len(data.splits[s]) for s in texts.SPLITS] == [80, 10, 10]


def test_without_a_test_split_there_is_nothing_to_take_from_it(letters):
    data = open_text(letters)
    with pytest.raises(UserError, match=r"set data.test_fraction to have one"):
        data.eval_windows("test", 8)
    with pytest.raises(UserError, match="the val split has no window of 99 tokens"):
        data.eval_windows("val", 99)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"chunk_tokens": 100}, "its val split is empty, of 2 chunks of"),
        ({"chunk_tokens": 1000}, "its train split is empty, of 0 chunks of"),
        ({"val_fraction": 0.04}, "its val split is empty, of 23 chunks"),
        ({"chunk_tokens": 7}, "has 7 tokens per chunk, a window needs 8: use larger"),
    ],
)
def test_splits_that_would_be_empty(letters, changes, expected):
    assert expected in refusal(letters, **(CHUNKS | changes))


@pytest.mark.parametrize("val, test", [(0.5, 0.5), (0.9, 0.2)])
def test_fractions_that_leave_nothing_to_train_on(val, test):
    config = override(base(), {"data.val_fraction": val, "data.test_fraction": test})
    with pytest.raises(UserError, match="leave nothing to train on"):
        validate(config)


@pytest.mark.parametrize("fraction", [0.1, 0.14, 0.18, 0.22, 0.26])
def test_a_split_of_words_ends_with_one(text_file, fraction):  # noqa: F811
    text = "the king, of night; sings to no queen who speaks\n" * 4
    data = open_text(
        text_file(text), tokenizer="word", val_fraction=fraction, test_fraction=0.1
    )
    parts = [data.tokenizer.decode(data.splits[split]) for split in texts.SPLITS]
    assert "".join(parts) == text
    assert set(data.tokenizer.words) == {*text.replace(",", " , ").replace(";", " ; ")
                                         .split(), " ", "\n"}  # fmt: skip


def test_an_unknown_word_is_located(text_file):  # noqa: F811
    own = open_text(text_file("no king sings\n" * 19), tokenizer="word").tokenizer
    other = settings_of(text_file("no king sings\n" * 18 + "no queen sings\n"))
    with pytest.raises(UserError, match=r"line 19, column 4: word 'queen' is not in"):
        texts.open_text(other, 8, own)
