"""The header of a memory's file, read without loading NumPy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

from jaxgpt.errors import UserError

VERSION = 2
LONGEST = 1 << 28  # Bytes of a header, of which each text that was read takes a few.


@dataclasses.dataclass(frozen=True)
class Header:
    """All that a memory's file holds besides its arrays.

    Attributes:
      names: of the documents.
      entries: how many each has.
      reads: [document, tokens] of every text that was read, in order.
      settings: those that must agree with a model's.
      index: settings of the index.
      memory_size: how many entries there is room for.
      written_by: `Run.fingerprint` of the model that wrote it.
      evicted: whether entries were evicted that a document still lacks.
      dtype: of keys and values in the file.
      digest: of the arrays.
      version: of the format.
    """

    names: list[str]
    entries: list[int]
    reads: list[list[int]]
    settings: dict[str, Any]
    index: dict[str, Any]
    memory_size: int
    written_by: dict[str, Any] | None
    evicted: bool
    dtype: str
    digest: str
    version: int = VERSION

    def documents(self) -> list[Document]:
        """Returns the documents, in the order in which they were first read."""
        tokens, reads = [0] * len(self.names), [0] * len(self.names)
        for number, count in self.reads:
            tokens[number] += count
            reads[number] += 1
        found = []
        for number, (name, entries) in enumerate(
            zip(self.names, self.entries, strict=True)
        ):
            # Nothing has followed the last token of a text yet.
            ends = reads[number] if self.settings["stores_next"] else 0
            kept = entries / max(tokens[number] - ends, 1)
            found.append(Document(name, entries, tokens[number], kept))
        return found


class Document(NamedTuple):
    """A document of a memory.

    Attributes:
      name: its name.
      entries: how many the memory has of it.
      tokens: how many were read.
      kept: entries as a share of those that its tokens can have.
    """

    name: str
    entries: int
    tokens: int
    kept: float


def sha256(text: str) -> str:
    """Returns the digest of a header as text."""
    return hashlib.sha256(text.encode()).hexdigest()


def damaged(path: pathlib.Path) -> UserError:
    """Returns the error for a file that is not a memory, or not whole."""
    return UserError(
        f"--memory='{path}' is not a memory, or damaged: restore a copy, or name a "
        "file that does not exist yet"
    )


def peek(path: pathlib.Path) -> Header:
    """Returns the header of a file.

    Raises:
      UserError: if it cannot be read, is not a memory, or is of another format.
    """
    try:
        with open(path, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            head = stream.read(size) if size < LONGEST else b""
            end = stream.seek(0, os.SEEK_END)
        arrays = json.loads(head)
        digest, _, text = arrays.pop("__metadata__")["memory"].partition(" ")
        # A copy that was cut off has a whole header.
        if end != 8 + size + max(array["data_offsets"][1] for array in arrays.values()):
            raise ValueError
        if digest.startswith("{"):
            version = 1
        elif digest != sha256(text):
            raise ValueError
        else:
            fields = json.loads(text)
            version = fields["version"]
        header = Header(**fields) if version == VERSION else None
    except OSError as error:
        raise UserError(f"--memory='{path}': {error.strerror}") from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise damaged(path) from None
    if header is None:
        raise UserError(
            f"--memory='{path}' has format {version}, this version of jaxgpt reads "
            f"{VERSION}: ingest its documents into a new file"
        )
    return header
