"""Arrays mapped from files, so that few of them are in memory at a time."""

from __future__ import annotations

import mmap
import pathlib
import zipfile
from typing import Any

PIECE = 1 << 20


def map_file(path: pathlib.Path) -> mmap.mmap:
    """Returns the bytes of a file, read when they are used."""
    with open(path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: mmap.mmap
) -> memoryview | bytes:
    """Returns the content of a ZIP archive's entry, mapped if it is not compressed.

    Raises:
      zipfile.BadZipFile: for a wrong checksum, for which it is read once.
    """
    with archive.open(entry) as stream:
        if entry.compress_type != zipfile.ZIP_STORED:
            return stream.read()
        size = sum(len(piece) for piece in iter(lambda: stream.read(PIECE), b""))
    # Only the local header has the length of the fields between it and the data.
    begin = entry.header_offset + 30
    for place in (26, 28):
        field = entry.header_offset + place
        begin += int.from_bytes(file[field : field + 2], "little")
    return memoryview(file)[begin : begin + size]


def release(array: Any) -> None:
    """Frees the memory of the mapped file, if any, that an array is a view of.

    Pages that were read count as this process's memory; they are read again if needed.
    """
    owner = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "obj" if isinstance(owner, memoryview) else "base", None)
    if owner is not None and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
