"""The files of a text: found in a folder, decoded, and normalized."""

from __future__ import annotations

import codecs
import collections
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxgpt.data.tokenizers import END_OF_TEXT_TOKEN
from jaxgpt.errors import UserError, listed, log, os_errors

CHUNK = 1 << 22  # Bytes read at a time.
LONGEST_WORD = 1 << 24  # Characters.
LAST_WORD_END = re.compile(r".*\S(?=[ \n])", re.DOTALL)
# How file managers and browsers name a copy; the groups are the original's name.
COPY = re.compile(
    r"(?:copy of (?P<of>.+)|(?P<stem>.+?)(?: - copy| copy| \((?:\w+ )?copy\d*\))?"
    r"(?: \d+| ?\(\d+\))?)",
    re.IGNORECASE,
)
# In this order, because UTF-32's mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Which of four bytes are 0 for Latin letters in these encodings.
ZEROS = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}
# Suffixes of files whose text is in fields.
TABLES = (".csv", ".tsv", ".json", ".jsonl")
COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd", b"7z\xbc")
# How some files begin that are not plain text.
BINARY = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow file",  # As the package datasets saves them.
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "a document of an office program",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
}


class Contents(NamedTuple):
    """The contents of a text, and notes for the user."""

    characters: set[str]
    length: int
    end_marks: int  # How often <|endoftext|> is written out.
    notes: list[str]


def text_files(
    path: pathlib.Path, suffixes: tuple[str, ...] = (".txt",), what: str = "data.path "
) -> list[pathlib.Path]:
    """Returns a text file, or the text files in a folder and those below it.

    Logs what it skips: other suffixes, hidden files, empty ones, copies, and linked
    folders.

    Args:
      suffixes: of text files.
      what: names the path in messages.

    Raises:
      UserError: if there are none.
    """
    if path.name in ("train.bin", "val.bin", "test.bin"):
        raise UserError(f"data.path '{path}' holds tokens: name the folder it is in")
    if not path.is_dir():
        if not path.is_file():
            raise UserError(
                f"{what}'{path}' is a pipe or device, not a regular file, and cannot "
                "be read twice: save its content in a file"
            )
        return [path]
    endings = " or ".join(suffixes)
    found: list[pathlib.Path] = []
    passed: dict[str, list[pathlib.Path]] = collections.defaultdict(list)

    def unreadable(error: OSError) -> None:
        passed["unreadable"].append(pathlib.Path(error.filename))

    for folder, below, names in os.walk(path, onerror=unreadable):
        here = pathlib.Path(folder)
        below.sort()
        for name in [*below]:
            why = "hidden" if _hidden(name) else "linked folder"
            if _hidden(name) or (here / name).is_symlink():
                passed[why].append(here / name)
                below.remove(name)
        for file in sorted(here / name for name in names):
            if _hidden(file.name):
                passed["hidden"].append(file)
            elif file.suffix.lower() not in suffixes:
                passed[f"not {endings}"].append(file)
            elif not file.is_file():
                passed["not a file"].append(file)
            elif not file.stat().st_size:
                passed["empty"].append(file)
            else:
                found.append(file)
    found = _without_copies(path, sorted(found), passed) or passed.pop("empty", [])
    said = "; ".join(
        f"{len(files)} {why} ({some(file.relative_to(path) for file in files)})"
        for why, files in passed.items()
    )
    if not found:
        end = f": it has {said}" if said else ""
        also = (
            f"neither {endings} files nor train.bin" if what else f"no {endings} files"
        )
        raise UserError(f"{what}'{path}' holds {also}{end}")
    if said:
        log(f"note: '{path}': {len(found)} {endings} read; skipped: {said}")
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def some(names: Iterable[object]) -> str:
    """Returns the first names in quotes, and how many more there are."""
    return listed([f"'{name}'" for name in names])


def _without_copies(
    folder: pathlib.Path,
    files: list[pathlib.Path],
    passed: dict[str, list[pathlib.Path]],
) -> list[pathlib.Path]:
    """Returns the files without copies, by name and content."""
    sizes = collections.defaultdict(list)
    for file in files:
        sizes[file.stat().st_size].append(file)
    twins = collections.defaultdict(list)
    for same in sizes.values():
        for file in same if len(same) > 1 else []:
            twins[file_digest(file)].append(file)
    copies = {f for same in twins.values() for f in same if _original(f) in same}
    if copies:
        passed["copies"] = sorted(copies)
    again = [
        file.relative_to(folder)
        for same in twins.values()
        for file in [file for file in same if file not in copies][1:]
    ]
    if again:
        log(
            f"note: '{folder}': {len(again)} read though others have the same content: "
            + some(again)
        )
    return [file for file in files if file not in copies]


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file; UserError if it cannot be read."""
    with os_errors(f"'{path}' cannot be read"), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _original(file: pathlib.Path) -> pathlib.Path | None:
    """Returns the file that this one's name says it is a copy of."""
    name = COPY.fullmatch(file.stem)
    stem = name and (name["of"] or name["stem"])
    return file.with_stem(stem) if stem and stem != file.stem else None


def iter_chunks(files: list[pathlib.Path], normalize: str = "none") -> Iterator[str]:
    """Yields the text in pieces that end with a word, before the space or newline.

    Such cuts change none of GPT-2's tokens, which neither span them nor depend on what
    follows (a cut after a newline would join blank lines into another token). Memory is
    bounded whatever the size of the text: a word longer than `LONGEST_WORD` is cut.

    A byte-order mark of UTF-8, UTF-16 or UTF-32 at the start of a file sets its
    encoding, and is not part of the text; the default is UTF-8.

    Args:
      files: of the text, in order.
      normalize: see `data.normalize`.

    Raises:
      UserError: for a file that is not text, naming the line and the byte.
    """
    for file in files:
        rest = ""
        for text in _decoded(file):
            rest += text
            word = LAST_WORD_END.match(rest)
            if word or len(rest) > LONGEST_WORD:
                cut = word.end() if word else len(rest)
                yield normalized(rest[:cut], normalize)
                rest = rest[cut:]
        if rest:
            yield normalized(rest, normalize)


def normalized(text: str, how: str) -> str:
    """Returns a text after `data.normalize`."""
    if how != "none":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text) if how == "nfc" else text


def _decoded(file: pathlib.Path) -> Iterator[str]:
    """Yields the text of a file, a chunk of bytes at a time."""
    encoding, mark = _encoding(file)
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = returns = 0
    with open(file, "rb") as stream:
        at = stream.seek(len(mark))
        while True:
            raw = stream.read(CHUNK)
            at -= len(decoder.getstate()[0])
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding)
                newlines += before.count("\n")
                returns += before.count("\r")
                line = 1 + (newlines or returns)
                wrong = error.object[error.start : error.end].hex(" ")
                what = f"'{file}' is not {encoding.upper()}"
                if not raw:
                    raise UserError(
                        f"{what}: it ends within a character ({wrong}, in line {line}):"
                        " is it complete?"
                    ) from None
                raise UserError(
                    f"{what} (near byte {at + error.start}): line {line} has {wrong}: "
                    + _remedy(file, encoding)
                ) from None
            if not raw:
                return
            newlines += text.count("\n")
            returns += text.count("\r")
            at = stream.tell()
            yield text


def _encoding(file: pathlib.Path) -> tuple[str, bytes]:
    """Returns the encoding of a file and its byte-order mark.

    Raises:
      UserError: for UTF-16 or UTF-32 without a mark, most of which is valid UTF-8.
    """
    with open(file, "rb") as stream:
        head = stream.read(4096)
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding, mark
    every = [head[place::4] for place in range(4)]
    zeros = tuple(part.count(0) > len(part) / 2 for part in every)
    if len(head) >= 8 and zeros in ZEROS and not head.startswith((*BINARY,)):
        raise UserError(
            f"'{file}' seems to be {ZEROS[zeros]} without a byte-order mark: convert "
            f"it first (iconv -f {ZEROS[zeros]} -t UTF-8)"
        )
    return "utf-8", b""


def _remedy(file: pathlib.Path, encoding: str) -> str:
    with open(file, "rb") as stream:
        head = stream.read(16)
    if head.startswith(COMPRESSED):
        return "it is compressed, unpack it first"
    for beginning, kind in BINARY.items():
        if head.startswith(beginning):
            return f"it is {kind}: save the text in it as a .txt file"
    if encoding == "utf-8":
        return "convert it first (iconv -f ITS_ENCODING -t UTF-8)"
    return "is it damaged?"


def iter_lines(files: list[pathlib.Path], normalize: str = "none") -> Iterator[str]:
    """Yields the lines of the text, independent of the cuts of `iter_chunks`."""
    rest = ""
    for text in iter_chunks(files, normalize):
        *whole, rest = (rest + text).split("\n")
        yield from whole
    yield rest


def scan(files: list[pathlib.Path], normalize: str = "none") -> Contents:
    """Returns the contents of a text; UserError if it is empty."""
    characters: set[str] = set()
    length = windows = macs = end_marks = 0
    for raw in iter_chunks(files):
        windows += (pairs := raw.count("\r\n"))
        macs += raw.count("\r") - pairs
        end_marks += raw.count(END_OF_TEXT_TOKEN)
        text = normalized(raw, normalize)
        characters |= set(text)
        length += len(text)
    if not length:
        raise UserError(f"'{files[0]}' is empty: there is no text to learn from")
    notes = _notes_on_marks(files)
    tables = [file.name for file in files if file.suffix.lower() in TABLES]
    if tables:
        notes.append(
            f"note: read as plain text, field names and quotes included: {some(tables)}"
        )
    if windows or macs:
        ends = f"{windows:,} Windows (CR LF) and {macs:,} Mac (CR) line ends"
        notes.append(
            f"data.normalize={normalize}: {ends} are read as newlines"
            if normalize != "none"
            else f"note: {ends} are kept: data.normalize=newlines makes them newlines"
        )
    if normalize == "nfc":
        notes.append("data.normalize=nfc: characters are composed (Unicode's NFC)")
    return Contents(characters, length, end_marks, notes)


def _notes_on_marks(files: list[pathlib.Path]) -> list[str]:
    marked = collections.defaultdict(list)
    for file in files:
        encoding, mark = _encoding(file)
        if mark:
            marked[encoding].append(file.name)
    return [
        f"note: read as {encoding.upper()}, without the byte-order mark: {some(names)}"
        for encoding, names in marked.items()
    ]


def locate(files: list[pathlib.Path], at: int, normalize: str = "none") -> str:
    """Returns file, line and column of the character at this place of the text."""
    for file in files:
        newlines = returns = 0
        line = ""
        for text in iter_chunks([file], normalize):
            before = text[:at]
            newlines += before.count("\n")
            returns += before.count("\r")
            line += before
            line = line[max(line.rfind("\n"), line.rfind("\r")) + 1 :]
            if at < len(text):
                number = 1 + (newlines or returns)
                return f"'{file}', line {number}, column {len(line) + 1}"
            at -= len(text)
    raise IndexError(at)
