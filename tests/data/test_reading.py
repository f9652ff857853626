"""Text as editors, systems and scrapers leave it, in files and folders."""

import codecs
import os
import pathlib

import numpy as np
import pytest

from jaxgpt.config import base, override, validate
from jaxgpt.data import reading
from jaxgpt.data.documents import open_documents
from jaxgpt.errors import UserError
from tests import conftest
from tests.data import test_text
from tests.data.test_text import open_text, refusal, settings_of, text_file  # noqa: F401

# What no tokenizer may change: kinds of blanks and line ends, marks, controls, text
# that looks like a special token.
ODD = (
    "Zeile 1\r\nZeile 2\rZeile 3\n\n\tx\x0b\x0c\x1c\x1f\x85\u2028\u2029\xa0\u3000 "
    "\u200b\u200d\ufeff\x00\x1b[0m\x7f ▁▁ ▅ e\u0301 \u0301 \ufffd \ue000 \U0010ffff "
    "😀👩\u200d🚀 "
    "<s> </s> <unk> <pad> <0x0A> <|endoftext|> [MASK] \n  end  "
) * 30


def written(data):
    """All tokens of the splits as text: each split is a text of its own."""
    decode = data.tokenizer.decode
    return (
        decode(data.splits["train"])
        + decode(data.splits["val"])
        + decode(data.splits["test"])
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokenizer": "gpt2"},
        {"tokenizer": "sentencepiece", "vocab_size": 100, "sentencepiece_type": "bpe"},
        {"tokenizer": "sentencepiece", "vocab_size": 60},
    ],
    ids=["char", "gpt2", "bpe", "unigram"],
)
@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_odd_text_comes_back_as_it_was(text_file, monkeypatch, changes, chunk):  # noqa: F811
    monkeypatch.setattr(reading, "CHUNK", chunk)
    data = open_text(text_file(ODD), **changes)
    assert written(data) == ODD
    assert data.tokenizer.decode(data.tokenizer.encode(ODD)) == ODD


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("chunk", [1, 3, 1 << 22])
def test_a_mark_says_the_encoding_and_is_no_text(
    text_file,  # noqa: F811
    monkeypatch,
    capsys,
    encoding,
    chunk,
):
    monkeypatch.setattr(reading, "CHUNK", chunk)
    text = "ab é漢😀\ufeff\n" * 20
    data = open_text(text_file(("\ufeff" + text).encode(encoding)))
    assert written(data) == text
    shown = f"note: read as {encoding.upper()}, without the byte-order mark: 'text"
    assert shown in capsys.readouterr().err


def test_each_file_of_a_folder_has_its_own_encoding(text_file):  # noqa: F811
    text_file(codecs.BOM_UTF8 + b"aaaaaaaaaa", "a.txt")
    folder = text_file("\ufeffbbbbbbbbbb".encode("utf-16-be"), "b.txt").parent
    assert written(open_text(folder, length=1)) == "a" * 10 + "b" * 10


@pytest.mark.parametrize(
    "encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
def test_utf16_without_a_mark_is_refused(text_file, own_cache, encoding):  # noqa: F811
    name = encoding.upper().replace("-", "", 1).replace("-", "")
    name = f"UTF-{name[3:]}"
    message = refusal(text_file("Guten Tag\n".encode(encoding) * 9), own_cache)
    assert f"seems to be {name} without a byte-order mark" in message
    assert f"iconv -f {name} -t UTF-8" in message


@pytest.mark.parametrize(
    "content, place",
    [
        ("a\nb\nné".encode("cp1252"), "(near byte 5): line 3 has e9"),
        ("a\r\nb\r\nné".encode("cp1252") + b"x" * 9, "(near byte 7): line 3 has e9"),
        ("a\rb\rné".encode("mac-roman") + b"x", "(near byte 5): line 3 has 8e"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 9, "it is compressed, unpack it first"),
        (
            b"PAR1\x15\x04\xff" * 9,
            "it is a Parquet file: save the text in it as a .txt",
        ),
        (b"\x93NUMPY" + b"\x01\x00" * 99, "it is a NumPy array: save the text"),
        (
            "\ufeffab\ncd".encode("utf-16-le") + b"\x00\xdcx\x00",
            "UTF-16-LE (near byte 12)",
        ),
        (codecs.BOM_UTF16_LE + b"a\x00b", "UTF-16-LE: it ends within a character (62"),
    ],
)
def test_the_place_of_what_is_no_text(text_file, own_cache, content, place):  # noqa: F811
    if content.endswith(b"\xe9"):
        content += b"."
    assert place in refusal(text_file(content), own_cache)


def test_line_ends_are_kept_unless_asked(text_file, capsys):  # noqa: F811
    text = "a\r\nb\rc\n" * 20
    kept = open_text(text_file(text))
    assert written(kept) == text
    assert "20 Windows (CR LF) and 20 Mac (CR) line ends are kept" in (
        capsys.readouterr().err
    )
    made = open_text(text_file(text), normalize="newlines")
    assert written(made) == "a\nb\nc\n" * 20
    assert "data.normalize=newlines: 20 Windows (CR LF)" in capsys.readouterr().err


def test_fields_that_are_read_as_plain_text_are_said(text_file, capsys):  # noqa: F811
    open_text(text_file('{"text": "the cat"}\n' * 9, "cats.jsonl"))
    assert capsys.readouterr().err == (
        "note: read as plain text, field names and quotes included: 'cats.jsonl'\n"
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 22])
def test_characters_are_composed_if_asked(text_file, monkeypatch, capsys, chunk):  # noqa: F811
    monkeypatch.setattr(reading, "CHUNK", chunk)
    text = "cafe\u0301 \r\n \u0301x " * 9
    data = open_text(text_file(text), normalize="nfc")
    assert written(data) == "café \n \u0301x " * 9
    assert "data.normalize=nfc" in capsys.readouterr().err


def test_special_tokens_written_out(text_file, capsys):  # noqa: F811
    text = "One.<|endoftext|>\nTwo. \n<|endoftext|>Three. " * 9
    plain = open_text(text_file(text), tokenizer="gpt2")
    assert 50256 not in plain.splits["train"]
    assert "18 <|endoftext|> in the text are read as plain" in capsys.readouterr().err
    special = open_text(text_file(text), tokenizer="gpt2", special_tokens=True)
    assert (
        np.concatenate([special.splits["train"], special.splits["val"]]) == 50256
    ).sum() == 18
    assert written(plain) == written(special) == text
    assert "are read as the token" in capsys.readouterr().err


@pytest.mark.parametrize("tokenizer", ["char", "sentencepiece"])
def test_special_tokens_of_a_vocabulary_without_any(tokenizer):
    fields = {"data.special_tokens": True, "data.tokenizer": tokenizer}
    with pytest.raises(UserError, match="has no special tokens"):
        validate(override(base(), fields))


@pytest.fixture
def folder(tmp_path, own_cache):
    """Writes files of a folder; returns what is read of it."""

    def write(**files):
        for name, content in files.items():
            file = tmp_path / "texts" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return tmp_path / "texts"

    return write


def names(folder):
    return [str(file.relative_to(folder)) for file in reading.text_files(folder)]


def test_a_plain_folder_is_read_without_a_word(folder, capsys):
    path = folder(**{"b.txt": "b", "a/z.txt": "z", "a.txt": "a", "B.txt": "B"})
    assert names(path) == ["B.txt", "a/z.txt", "a.txt", "b.txt"]
    assert capsys.readouterr().err == ""


LEFT = {
    "._a.txt": "hidden",
    ".hidden.txt": "hidden",
    ".a.txt.swp": "hidden",
    ".git/x.txt": "hidden ('.git')",
    ".ipynb_checkpoints/a.txt": "hidden",
    "__MACOSX/a.txt": "hidden",
    "a.txt~": "not .txt",
    "#a.txt#": "not .txt",
    "a.txt.bak": "not .txt",
    "a.txt.gz": "not .txt",
    "notes.md": "not .txt",
    "README": "not .txt",
    "a (copy).txt": "copies",
    "a - Copy.txt": "copies",
    "a - Copy (2).txt": "copies",
    "Copy of a.txt": "copies",
    "a copy.txt": "copies",
    "a copy 2.txt": "copies",
    "a (another copy).txt": "copies",
    "a (1).txt": "copies",
    "a(1).txt": "copies",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_programs_leave_is_passed_over_and_said(folder, capsys, name):
    path = folder(**{"a.txt": "text", name: "text"})
    assert names(path) == ["a.txt"]
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"note: '{path}': 1 .txt read; skipped: 1 {LEFT[name]}" in message


def test_what_is_read_though_it_looks_odd(folder, capsys):
    path = folder(
        **{"A.TXT": "1", "a (copy).txt": "22", "Copy.txt": "3", "x (1).txt": "4"},
        **{"twin.txt": "same", "other.txt": "same"},
    )
    assert names(path) == sorted(
        ["A.TXT", "Copy.txt", "a (copy).txt", "other.txt", "twin.txt", "x (1).txt"]
    )
    assert capsys.readouterr().err == (
        f"note: '{path}': 1 read though others have the same content: 'twin.txt'\n"
    )


def test_links_and_what_is_no_file(folder, capsys):
    path = folder(**{"a.txt": "a", "sub/b.txt": "b"})
    (path / "sub" / "loop").symlink_to(path)
    (path / "self.txt").symlink_to(path / "self.txt")
    (path / "gone.txt").symlink_to(path / "nowhere")
    (path / "other.txt").symlink_to(__file__)
    (path / "empty.txt").touch()
    (path / "empty").mkdir()
    assert names(path) == ["a.txt", "other.txt", "sub/b.txt"]
    message = capsys.readouterr().err
    assert "2 not a file ('gone.txt', 'self.txt')" in message
    assert "1 linked folder ('sub/loop')" in message
    assert "1 empty ('empty.txt')" in message


def test_a_pipe_cannot_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", pathlib.Path("/dev/zero")):
        with pytest.raises(UserError, match=f"'{path}' is a pipe or device"):
            reading.text_files(path)


def test_what_is_beside_the_splits_of_documents_is_said(folder, capsys):
    path = folder(
        **{f"{split}/a.txt": "the cat sat\n" * 9 for split in ("train", "val")},
        **{"extra/b.txt": "b", "more.txt": "more"},
    )
    open_documents(settings_of(path), 8)
    assert capsys.readouterr().err == (
        f"note: '{path}': skipped, in no split: 'extra', 'more.txt'\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads anything")
def test_files_that_cannot_be_read(folder):
    path = folder(**{"a.txt": "same", "b.txt": "size"})
    (path / "b.txt").chmod(0)
    with pytest.raises(UserError, match=r"b.txt' cannot be read: Permission denied"):
        reading.text_files(path)


def test_a_folder_of_other_files_says_what_it_has(folder):
    path = folder(**{f"{i}.md": "text" for i in range(5)})
    with pytest.raises(UserError, match=r"it has 5 not .txt \('0.md', .* and 2 more\)"):
        reading.text_files(path)


def test_the_place_of_a_character_in_files(folder):
    path = folder(**{"a.txt": "one\ntwo\n", "b.txt": "th\r\nré", "c.txt": "x\ry€"})
    files, text = reading.text_files(path), "one\ntwo\nth\r\nréx\ry€"
    place = lambda letter: reading.locate(files, text.index(letter))
    assert place("w") == f"'{path}/a.txt', line 2, column 2"
    assert place("é") == f"'{path}/b.txt', line 2, column 2"
    assert place("€") == f"'{path}/c.txt', line 2, column 2"


@pytest.mark.parametrize(
    "opened", [test_text.texts.open_text, open_documents], ids=["text", "documents"]
)
def test_a_character_without_a_token_is_named_with_its_place(
    folder, monkeypatch, opened
):
    monkeypatch.setattr(reading, "CHUNK", 16)
    files = {f"{i}.txt": "the cat sat\n" * 30 for i in range(20)}
    path = folder(**files)
    monkeypatch.setattr(
        reading, "scan", lambda *_: reading.Contents(set("the casti\n"), 7200, 0, [])
    )
    pathlib.Path(path / "19.txt").write_text("the cat\nsat \u200b\n" * 30)
    assert conftest.refusal(opened, settings_of(path, val_fraction=0.2), 8) == (
        f"'{path}/19.txt', line 2, column 5: character U+200B ZERO WIDTH SPACE is not "
        "in the vocabulary of 9 characters: leave it out"
    )
