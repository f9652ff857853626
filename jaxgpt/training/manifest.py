"""A manifest: the size and SHA-256 of every file of a checkpoint.

It is written before a checkpoint gets its name, and read without JAX or NumPy, as fast
as the disk allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxgpt.errors import atomic_write

NAME = "manifest.json"
# Orbax's item of digests, which says whether a manifest was written (checkpoint.py).
DIGESTS = pathlib.PurePath("digests", "metadata")


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a folder, ascending."""
    names = [path.name for path in folder.glob("[0-9]*") if path.is_dir()]
    return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)


def write(folder: pathlib.Path) -> None:
    """Writes the manifest of all files that lie in a folder."""
    files = {}
    for name in _names(folder):
        with open(folder / name, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[name] = [stream.tell(), digest]
    with atomic_write(folder / NAME) as stream:
        stream.write(_text(files))


def belongs_to(folder: pathlib.Path) -> bool:
    """Returns whether a checkpoint was saved with a manifest; old ones were not."""
    if (folder / NAME).exists():
        return True
    try:
        return bool(json.loads((folder / DIGESTS).read_bytes()).get("manifest"))
    except (OSError, ValueError, RecursionError, AttributeError):
        return False  # It is damaged, which is found when its digests are read.


def differences(folder: pathlib.Path, extra: bool = True) -> list[str]:
    """Returns a line for each file that is not what was saved: name, and what it is.

    Args:
      extra: name the files that were not there, too.
    """
    try:
        text = (folder / NAME).read_bytes()
        files = json.loads(text)["files"]
        # Compared as text: JSON also hides changes, such as a space or a repeated key.
        if _text(files).encode() != text:
            raise ValueError
    except FileNotFoundError:
        return [f"{NAME} is missing"]
    except OSError as error:
        return [f"{NAME} cannot be read: {error.strerror}"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return [f"{NAME} is changed"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib frees the GIL.
        found = pool.map(lambda name: _difference(folder / name, *files[name]), files)
        lines = [f"{name} {what}" for name, what in zip(files, found, strict=True)]
    lines = [line for line in lines if not line.endswith(" ")]
    if extra:
        more = set(_names(folder)) - {*files, NAME}
        lines += [f"{name} is an extra file" for name in sorted(more)]
    return lines


def _names(folder: pathlib.Path) -> list[str]:
    """Returns the paths of all files in a folder, relative to it, with slashes."""
    found = (
        pathlib.Path(root, name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for name in names
    )
    return sorted(found)


def _text(files: Any) -> str:
    """Returns the manifest of {name: [bytes, sha256]}, with a digest of its own."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "digest": digest}, indent=1) + "\n"


def _difference(path: pathlib.Path, size: int, digest: str) -> str:
    """Returns what a file is, if not what was saved."""
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                return "is not a file"
            if status.st_size < size:
                return f"is truncated: {status.st_size} of {size} bytes"
            if status.st_size > size:
                return f"has {status.st_size} bytes, not {size}"
            same = hashlib.file_digest(stream, "sha256").hexdigest() == digest
            return "" if same else "is changed"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
