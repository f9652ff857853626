import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgpt.config import base, override, shipped
from jaxgpt.data import cache, reading, tokenizer_files, tokenizers
from jaxgpt.data import text as texts
from jaxgpt.errors import UserError
from tests import conftest

SHAKESPEARE = shipped("data/shakespeare.txt")
# sha256 of train.bin and val.bin of nanoGPT's data/shakespeare_char/prepare.py.
NANOGPT = {
    "train": "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f",
    "val": "d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1",
}
SENTENCES = (
    "First Citizen:\n\n\n   Speak, 'tis  naïve — she's 12 €5;\r\n\tσ-GPT 😀!\n"
    "\n\u3000漢字  \u00a0x \n\n"
) * 5
TRICKY = " \n\t\r\x1c\x85\u00a0\u3000aé漢😀'st1²!-"


def settings_of(path, **changes):
    changes = {f"data.{name}": value for name, value in changes.items()}
    return override(base(), {"data.path": str(path)} | changes)


def open_text(path, length=8, **changes):
    return texts.open_text(settings_of(path, **changes), length)


@pytest.fixture(scope="module")
def shakespeare():
    return open_text(SHAKESPEARE)


@pytest.fixture
def text_file(tmp_path, own_cache):
    def write(content, name="text.txt"):
        file = tmp_path / "texts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


@pytest.fixture
def bins(tmp_path, own_cache):
    """Writes a nanoGPT data folder of the letters a, b, c and d."""

    def write(train=(0, 1, 2, 3) * 10, val=(3, 2, 1, 0) * 5, vocabulary="abcd"):
        folder = tmp_path / "bins"
        folder.mkdir()
        np.array(train, np.uint16).tofile(folder / "train.bin")
        np.array(val, np.uint16).tofile(folder / "val.bin")
        if vocabulary:
            (folder / "input.txt").write_text(vocabulary)
        return folder

    return write


def refusal(path, own_cache=None, **options):
    """The one line that opening says; it leaves nothing half-written."""
    message = conftest.refusal(open_text, path, **options)
    if own_cache:
        assert not own_cache.exists() or not list(own_cache.iterdir())
    return message


def test_shakespeare_is_the_published_file():
    assert hashlib.sha256(SHAKESPEARE.read_bytes()).hexdigest() == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )


def test_shakespeare_tokens_are_those_of_nanogpt(shakespeare):
    assert (len(shakespeare.splits["train"]), len(shakespeare.splits["val"])) == (
        1_003_854,
        111_540,
    )
    assert shakespeare.vocab_size == 65
    for split, expected in NANOGPT.items():
        tokens = np.asarray(shakespeare.splits[split])
        assert tokens.dtype == np.uint16
        assert hashlib.sha256(tokens.tobytes()).hexdigest() == expected


def test_shakespeare_in_gpt2_tokens_has_the_lengths_nanogpt_gives():
    data = open_text(SHAKESPEARE, tokenizer="gpt2")
    assert (len(data.splits["train"]), len(data.splits["val"])) == (301_966, 36_059)


def test_shipped_text_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(open_text("data/shakespeare.txt").splits["train"]) == 1_003_854


def test_batch_is_a_pure_function_of_seed_split_and_step(shakespeare):
    draw = lambda *key: shakespeare.batch_at(*key, 4, 16)
    first = draw(1, "train", 7)
    assert first.shape == (4, 16)
    assert first.dtype == np.int32
    draw(1, "train", 8)
    np.random.default_rng().random()
    np.testing.assert_array_equal(draw(1, "train", 7), first)
    np.testing.assert_array_equal(
        open_text(SHAKESPEARE).batch_at(1, "train", 7, 4, 16), first
    )
    for other in ((2, "train", 7), (1, "val", 7), (1, "train", 6), (7, "train", 1)):
        assert (draw(*other) != first).any()


def test_batch_rows_are_windows_of_their_split(shakespeare):
    text = SHAKESPEARE.read_text()
    for split, part in (("train", text[:1_003_854]), ("val", text[1_003_854:])):
        for row in shakespeare.batch_at(3, split, 0, 8, 100):
            assert shakespeare.tokenizer.decode(row) in part


def test_batch_reaches_both_ends(text_file):
    data = open_text(text_file("abcdefghij" * 2), length=2, val_fraction=0.5)
    rows = data.batch_at(0, "train", 0, 200, 9)
    assert set(rows[:, 0]) == {0, 1}
    np.testing.assert_array_equal(rows[0], np.arange(9) + rows[0, 0])


def test_fixed_windows_are_spread_from_end_to_end(shakespeare):
    windows = shakespeare.eval_windows("val", 64, 10)
    assert windows.shape == (10, 64)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows[0], shakespeare.splits["val"][:64])
    np.testing.assert_array_equal(windows[-1], shakespeare.splits["val"][-64:])
    np.testing.assert_array_equal(windows, shakespeare.eval_windows("val", 64, 10))


def test_fixed_windows_without_a_count_share_no_token(shakespeare):
    windows = shakespeare.eval_windows("val", 64)
    assert windows.shape == (111_540 // 64, 64)
    np.testing.assert_array_equal(
        windows.ravel(), shakespeare.splits["val"][: len(windows) * 64].astype(np.int32)
    )


def test_fixed_windows_of_a_split_of_one_window(text_file):
    data = open_text(text_file("abcdefgh" * 2), length=8, val_fraction=0.5)
    assert data.eval_windows("val", 8).tolist() == [list(range(8))]
    assert data.eval_windows("val", 8, 3).tolist() == [list(range(8))] * 3


@pytest.mark.parametrize("tokenizer", ["char", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 16, 61, 1 << 20])
def test_reading_in_chunks_changes_no_token(text_file, monkeypatch, tokenizer, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    data = open_text(text_file(SENTENCES), tokenizer=tokenizer)
    cut = int(len(SENTENCES) * 0.9)
    for tokens, part in (
        (data.splits["train"], SENTENCES[:cut]),
        (data.splits["val"], SENTENCES[cut:]),
    ):
        expected = data.tokenizer.encode(part)
        np.testing.assert_array_equal(tokens, expected)
        assert data.tokenizer.decode(tokens) == part


@settings(deadline=None, max_examples=300)
@given(st.text(TRICKY, max_size=60), st.integers(1, 9))
def test_pieces_of_any_text_change_no_gpt2_token(text, chunk):
    tokenizer = tokenizers.GPT2Tokenizer()
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        file.write(text.encode())
        file.flush()
        patch.setattr(reading, "CHUNK", chunk)
        pieces = list(reading.iter_chunks([file.name]))
    assert "".join(pieces) == text
    ids = [i for piece in pieces for i in tokenizer.encode(piece)]
    assert ids == tokenizer.encode(text).tolist()


def test_a_text_of_one_word_is_read_in_bounded_pieces(text_file, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 4)
    monkeypatch.setattr(reading, "LONGEST_WORD", 10)
    pieces = list(reading.iter_chunks([text_file("a" * 99)]))
    assert "".join(pieces) == "a" * 99
    assert max(map(len, pieces)) < 10 + 4 + 1


def test_folder_of_text_files_is_read_in_order_of_names(text_file):
    text_file("b" * 20, "b.txt")
    text_file("a" * 20, "a.txt")
    text_file("c" * 20, "sub/c.txt")
    folder = text_file("not text", "notes.md").parent
    data = open_text(folder, val_fraction=0.5)
    both = np.concatenate([data.splits["train"], data.splits["val"]])
    assert data.tokenizer.decode(both) == "a" * 20 + "b" * 20 + "c" * 20
    assert len(data.splits["train"]) == 30


def test_nanogpt_folder_is_read_and_its_pickle_is_not(bins, bomb):
    folder = bins()
    (folder / "meta.pkl").write_bytes(pickle.dumps(bomb))
    data = open_text(folder)
    assert data.splits["train"].tolist() == [0, 1, 2, 3] * 10
    assert data.splits["val"].tolist() == [3, 2, 1, 0] * 5
    assert data.tokenizer.decode(data.splits["train"][:4]) == "abcd"


def test_nanogpt_folder_with_only_a_pickled_vocabulary(bins, bomb):
    folder = bins(vocabulary="")
    (folder / "meta.pkl").write_bytes(pickle.dumps(bomb))
    message = refusal(folder)
    assert "has no vocabulary: put tokenizer.json, meta.json" in message
    assert (
        "gpt2" not in message
    )  # nanoGPT's folders of GPT-2's tokens have no meta.pkl.


def test_a_pickled_vocabulary_can_be_made_json(bins):
    folder = bins(vocabulary="")
    letters = dict(enumerate("dcab"))
    meta = {
        "vocab_size": 4,
        "itos": letters,
        "stoi": {letter: i for i, letter in letters.items()},
    }
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    message = refusal(folder)
    assert "meta.pkl is never read" in message
    code = re.search(r'python -c "(.*)"', message)[1]
    with contextlib.chdir(folder):
        exec(code)
    assert open_text(folder).tokenizer.characters == "dcab"


@pytest.mark.parametrize(
    "meta",
    [
        {"stoi": {"d": 0, "b": 2, "a": 1}},
        {"itos": {"2": "b", "1": "a", "0": "d"}},
        {"itos": ["d", "a", "b"], "vocab_size": 3},
        {"chars": "dab"},
        ["d", "a", "b"],
        {"d": 0, "b": 2, "a": 1},
    ],
)
def test_meta_as_json_is_a_vocabulary(bins, meta):
    folder = bins(train=[0, 1, 2] * 10, val=[0] * 20, vocabulary="xyz")
    text = json.dumps(meta)
    (folder / "meta.json").write_text(text, encoding="utf-8-sig")
    assert open_text(folder).tokenizer.characters == "dab"


@pytest.mark.parametrize(
    "meta, why",
    [
        ({"stoi": {"a": 0, "b": 1}, "itos": {"0": "b", "1": "a"}}, "contradict"),
        ({"stoi": {"a": 0, "b": 0, "c": 1}}, "its ids are not 0, 1, 2"),
        ({"stoi": {"a": 1, "b": 2}}, "its ids are not 0, 1, 2"),
        ({"itos": ["a", "b", "a"]}, "a character twice"),
        ({"itos": ["a", "the"]}, "not one character"),
        ({"chars": "ab", "vocab_size": 3}, "it has vocab_size 3 but 2 characters"),
        ({"stoi": {}}, "it is empty"),
        ({"stoi": {"a": None}}, "cannot be used"),
        ({"stoi": {"a": 0.5}}, "cannot be used"),
        ({"vocab_size": "many"}, "no tokenizer of kind"),
    ],
)
def test_meta_that_is_no_vocabulary(bins, meta, why):
    folder = bins()
    (folder / "meta.json").write_text(json.dumps(meta))
    message = refusal(folder)
    assert f"'{folder}/meta.json' cannot be used" in message
    assert why in message


def test_the_text_beside_bins_is_read_as_nanogpt_does(bins):
    folder = bins()
    (folder / "input.txt").write_bytes("\ufeffb\r\na\rc".encode())
    assert open_text(folder).tokenizer.characters == "\nabc\ufeff"


def test_a_text_beside_bins_that_they_were_not_made_of_is_said(bins, capsys):
    folder = bins()
    open_text(folder)
    assert capsys.readouterr().err == ""
    (folder / "input.txt").write_text("bcda")
    open_text(folder)
    assert f"note: '{folder}/train.bin' does not begin like input.txt" in (
        capsys.readouterr().err
    )
    (folder / "input.txt").write_bytes(b"\xff")
    assert f"'{folder}/input.txt' cannot be read" in refusal(folder)


def test_nanogpt_folder_with_a_tokenizer_file(bins):
    folder = bins(vocabulary="")
    tokenizer_files.save(tokenizers.CharTokenizer("wxyz"), folder / "tokenizer.json")
    data = open_text(folder)
    assert data.tokenizer.decode(data.splits["train"][:4]) == "wxyz"


def test_nanogpt_folder_of_gpt2_tokens(bins):
    data = open_text(bins((50256, 15496) * 9, vocabulary=""), tokenizer="gpt2")
    assert data.vocab_size == 50257
    assert data.tokenizer.decode(data.splits["train"][:2]) == "<|endoftext|>Hello"


@pytest.mark.parametrize("name", ["meta.pkl", "meta.json"])
def test_ids_of_another_vocabulary_as_gpt2_tokens_are_said(bins, capsys, name):
    folder = bins(vocabulary="")
    (folder / name).touch()
    open_text(folder, tokenizer="gpt2")
    assert f"note: '{folder}' has a vocabulary in {name}: data.tokenizer=gpt2" in (
        capsys.readouterr().err
    )


def test_tokens_are_cached_once(text_file, own_cache, monkeypatch):
    file = text_file("abcdefgh" * 30)
    first = open_text(file)
    folders = list(own_cache.iterdir())
    assert len(folders) == 1
    assert {path.name for path in folders[0].iterdir()} == {
        "train.bin",
        "val.bin",
        "test.bin",
        "tokenizer.json",
        "sha256.json",
    }
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_build", lambda *_: pytest.fail("tokenised twice"))
        again = open_text(file)
    np.testing.assert_array_equal(again.splits["train"], first.splits["train"])
    assert list(own_cache.iterdir()) == folders


@pytest.mark.parametrize("later_ns", [0, 1])
def test_another_text_is_tokenised_again(text_file, own_cache, later_ns):
    """Also one of the same size and time."""
    file = text_file("abcdefgh" * 30)
    open_text(file)
    stamp = file.stat()
    text_file("hgfedcba" * 30)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + later_ns))
    data = open_text(file)
    assert data.tokenizer.decode(data.splits["train"][:8]) == "hgfedcba"
    assert len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize(
    "kind, name",
    [
        ("text", "train.bin"),
        ("text", "tokenizer.json"),
        ("text", "sha256.json"),
        ("tokenizers", "tokenizer.json"),
        ("tokenizers", "sha256.json"),
    ],
)
def test_a_damaged_cache_is_made_again(text_file, own_cache, capsys, kind, name):
    file = text_file("abcdefgh" * 30)
    first = open_text(file)
    (folder,) = (own_cache.parent / kind).iterdir()
    content = (folder / name).read_bytes()
    for damaged in (content[:-1], content.replace(b"a", b"z"), b"", b"{}"):
        if damaged == content:
            continue
        (folder / name).write_bytes(damaged)
        again = open_text(file)
        np.testing.assert_array_equal(again.splits["train"], first.splits["train"])
        assert again.tokenizer.to_json() == first.tokenizer.to_json()
        assert f"'{folder}' in the cache is damaged" in capsys.readouterr().err
        assert (folder / name).read_bytes() == content


def test_a_file_in_the_cache_where_a_folder_should_be(text_file, own_cache, capsys):
    file = text_file("abcdefgh" * 30)
    first = open_text(file)
    (folder,) = own_cache.iterdir()
    shutil.rmtree(folder)
    folder.touch()
    np.testing.assert_array_equal(
        open_text(file).splits["train"], first.splits["train"]
    )
    assert f"'{folder}' in the cache is damaged" in capsys.readouterr().err


def test_a_tokenizer_that_is_given_encodes(text_file, own_cache):
    given = tokenizers.CharTokenizer("zyxabc")
    data = texts.open_text(settings_of(text_file("abc" * 30)), 8, given)
    assert data.splits["train"][:3].tolist() == [3, 4, 5]
    file = text_file("abc\n" * 30 + "abd\n")
    newline = tokenizers.CharTokenizer("\nabc")
    with pytest.raises(UserError, match="line 31, column 3: character 'd'"):
        texts.open_text(settings_of(file), 8, newline)


def test_tokenizer_and_split_have_caches_of_their_own(text_file, own_cache):
    file = text_file("abc def " * 30)
    for changes in ({}, {"tokenizer": "gpt2"}, {"val_fraction": 0.5}):
        open_text(file, **changes)
    assert len(list(own_cache.iterdir())) == 3


def test_a_vocabulary_size_that_is_not_used_is_said(text_file, capsys):
    open_text(text_file("the cat sat\n" * 9), vocab_size=300)
    assert "note: data.vocab_size=300 is not used: data.tokenizer=char has its own" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_leaves_nothing(text_file, own_cache, monkeypatch, error):
    file = text_file("abcdefgh" * 30)

    def fail(files, data, tokenizer, train, folder):
        (folder / "train.bin").write_bytes(b"half")
        assert list(own_cache.iterdir()) == [folder]
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(texts, "_encode", fail)
        with pytest.raises(error):
            open_text(file)
    assert list(own_cache.iterdir()) == []
    assert len(open_text(file).splits["train"]) == 216


def test_a_full_disk_is_one_line(text_file, own_cache, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(texts, "_encode", fail)
    assert "No space left on device" in refusal(text_file("abc" * 30), own_cache)


def test_a_cache_that_cannot_be_written_names_the_variable(text_file, monkeypatch):
    file = text_file("abcdefgh" * 30)
    monkeypatch.setenv("JAXGPT_CACHE", str(file / "cache"))
    assert "set JAXGPT_CACHE" in refusal(file)


def test_missing_text(tmp_path, own_cache):
    message = refusal(tmp_path / "none.txt", own_cache)
    assert f"data.path '{tmp_path}/none.txt' does not exist" in message
    assert "data.path '' does not exist" in refusal("", own_cache)


def test_empty_text(text_file, own_cache):
    file = text_file("")
    assert f"'{file}' is empty" in refusal(file, own_cache)


@pytest.mark.parametrize(
    "length, split", [(30, "val split has 10 tokens"), (91, "train split has 90")]
)
def test_text_shorter_than_a_window(text_file, length, split):
    message = refusal(text_file("ab" * 50), length=length)
    assert split in message
    assert f"a window needs {length}" in message
    assert "model.block_size" in message


def test_text_as_long_as_its_windows(text_file):
    data = open_text(text_file("ab" * 50), length=10)
    assert data.batch_at(0, "val", 0, 2, 10).shape == (2, 10)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_text_that_is_not_utf8(text_file, own_cache, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    file = text_file(b"a\r\n\n".ljust(100) + b"\xff" + b"b" * 100)
    message = refusal(file, own_cache)
    assert f"'{file}' is not UTF-8 (near byte 100): line 3 has ff" in message


@pytest.mark.parametrize("chunk", [1, 7, 1 << 22])
def test_text_cut_off_within_a_character(text_file, own_cache, monkeypatch, chunk):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    file = text_file("text 😀".encode()[:-1])
    message = refusal(file, own_cache)
    assert f"'{file}' is not UTF-8: it ends within a character (f0 9f 98" in message


def test_folder_without_text(tmp_path, own_cache):
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / "empty", own_cache)
    assert "holds neither .txt files nor train.bin" in message


def test_folder_of_empty_texts(text_file, own_cache):
    assert "is empty" in refusal(text_file("").parent, own_cache)


def test_bin_of_odd_length(bins):
    folder = bins()
    with open(folder / "val.bin", "ab") as stream:
        stream.write(b"\0")
    message = refusal(folder)
    assert f"'{folder}/val.bin' has 41 bytes" in message
    assert "uint16" in message


def test_bin_with_ids_outside_the_vocabulary(bins):
    message = refusal(bins(val=(0, 1, 9, 1) * 5))
    assert "val.bin' holds id 9 at token 2" in message
    assert "its vocabulary has 4" in message


def test_bin_ids_are_checked_to_the_end(bins, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 3)
    assert "id 4 at token 20" in refusal(bins(val=[*(0, 1, 2, 3) * 5, 4]))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_bin_of_wider_ids(bins, dtype):
    folder = bins(vocabulary="")
    for split in ("train", "val"):
        np.arange(5, 105, dtype=dtype).tofile(folder / f"{split}.bin")
    message = refusal(folder, tokenizer="gpt2")
    assert "seems to hold ids of more than 16 bits: save them as uint16" in message


def test_bin_of_wide_ids_of_characters(bins):
    folder = bins()
    np.array([0, 1, 2, 3] * 10).tofile(folder / "train.bin")
    assert "seems to hold ids of more than 16 bits" in refusal(folder)


def test_bin_of_characters_with_a_space_after_each(bins):
    folder = bins(train=[1, 0] * 40, val=[1, 0] * 40)
    assert open_text(folder).splits["train"].tolist() == [1, 0] * 40


def test_a_bin_itself_is_no_text(bins):
    assert "name the folder it is in" in refusal(bins() / "train.bin")


def test_bin_missing(bins):
    folder = bins()
    (folder / "val.bin").unlink()
    assert f"'{folder}' has no val.bin" in refusal(folder)


def test_bin_empty(bins):
    assert "its val split has 0 tokens" in refusal(bins(val=()))


def test_bin_with_a_damaged_tokenizer_file(bins):
    folder = bins()
    (folder / "tokenizer.json").write_text('{"kind": "char"')
    message = refusal(folder)
    assert f"tokenizer file '{folder}/tokenizer.json' cannot be used" in message
