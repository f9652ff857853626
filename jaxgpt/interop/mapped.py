"""Arrays that stay in their file until they are read, so that memory holds few."""

from __future__ import annotations

import mmap
import pathlib
import zipfile
from typing import Any

PIECE = 1 << 20


def map_file(path: pathlib.Path) -> mmap.mmap:
    """Returns the bytes of a file, which are read as they are used."""
    with open(path, "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: mmap.mmap
) -> memoryview | bytes:
    """Returns what a ZIP archive holds under a name, mapped if it is not compressed.

    Raises:
      zipfile.BadZipFile: for a wrong checksum; all of it is read once to see that.
    """
    with archive.open(entry) as stream:
        if entry.compress_type != zipfile.ZIP_STORED:
            return stream.read()
        size = sum(len(piece) for piece in iter(lambda: stream.read(PIECE), b""))
    # The archive's index has no length of the names in front of the data.
    begin = entry.header_offset + 30
    for place in (26, 28):
        field = entry.header_offset + place
        begin += int.from_bytes(file[field : field + 2], "little")
    return memoryview(file)[begin : begin + size]


def release(array: Any) -> None:
    """Frees the memory of the file that an array is a view of, if of one.

    What was read of it counts as this process's memory; it is read again if used again.
    """
    owner = array
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = getattr(owner, "obj" if isinstance(owner, memoryview) else "base", None)
    if owner is not None and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
