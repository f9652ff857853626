"""Reads .pt and .bin files without PyTorch and without executing what they hold.

A .pt file is a ZIP archive: a pickle, and the raw storages that it refers to. The
pickle can make nothing but tensors and plain containers: any other name that it asks
for is an error.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
import stat
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgpt.errors import UserError

DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
LARGEST_PICKLE = 64 << 20
LARGEST_REPEATED = 1 << 20
MEMO_OPCODES = ("PUT", "BINPUT", "LONG_BINPUT")


# A pickle can set attributes of any object it gets: tuples have none to set.
class _StorageKind(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    array: np.ndarray


class _OrderedDict(dict):
    """Replaces collections.OrderedDict, without the attributes set on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drops the `_metadata` of a state dict."""


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
    """Replaces torch._utils._rebuild_tensor_v2: returns a view of a storage."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor is not over a storage")
    array = storage.array
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor's sizes are not integers >= 0")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= len(array):
        raise ValueError("a tensor reaches beyond its storage")
    if math.prod(size) > max(len(array), LARGEST_REPEATED):
        raise ValueError("a tensor repeats its storage too often")
    steps = [s * array.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(array[offset:], size, steps, writeable=False)


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}


class _Unpickler(pickle.Unpickler):
    """Finds `ADMITTED` and storages, and no other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        index = archive.read(f"{root}/data.pkl")
        for opcode, argument, _ in pickletools.genops(index):
            # The memo is allocated up to the largest index in it: 9 bytes could ask
            # for 16 GB.
            if opcode.name in MEMO_OPCODES and int(argument or 0) > len(index):
                raise pickle.UnpicklingError("its memo is implausibly large")
        super().__init__(io.BytesIO(index), encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return _StorageKind(DTYPES[name])
        if (module, name) in ADMITTED:
            made = ADMITTED[module, name]
            # A new one each time, so that attributes set on it do not stay.
            return lambda *values: made(*values)
        raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:100]!r}")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage, key, _, count = reference
        if kind != "storage" or not isinstance(storage, _StorageKind):
            raise pickle.UnpicklingError("it refers to something other than a storage")
        if key not in self.storages:
            raw = self.archive.read(f"{self.root}/data/{key}")
            self.storages[key] = _Storage(np.frombuffer(raw, storage.dtype, count))
        return self.storages[key]


def check_members(archive: zipfile.ZipFile, name: str) -> None:
    """Raises UserError for an archive with a member that would lie outside it.

    Nothing is ever unpacked to disk, but no honest program writes such names.
    """
    for entry in archive.infolist():
        parts = entry.filename.replace("\\", "/").split("/")
        link = stat.S_ISLNK(entry.external_attr >> 16)
        if link or ".." in parts or parts[0] == "" or ":" in parts[0]:
            kind = "a link" if link else "a path outside it"
            raise UserError(
                f"'{name}' is unsafe: its member {entry.filename[:80]!r} is {kind}"
            )


def read_torch_file(path: pathlib.Path) -> Any:
    """Returns what a .pt file holds, its tensors as read-only numpy arrays.

    Raises:
      UserError: for a file that is damaged, has PyTorch's old format, or holds
        anything but tensors and plain containers; nothing of it is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is unsafe: {one_line(error)}; only tensors and plain containers "
            "are read"
        ) from None
    except zipfile.BadZipFile:
        raise UserError(
            f"'{path}' is not a PyTorch file: it is truncated, or older than PyTorch "
            "1.6: save it again with a newer PyTorch"
        ) from None
    except Exception as error:  # Hostile bytes can raise anything at all.
        raise UserError(
            f"'{path}' is damaged: {type(error).__name__}: {one_line(error)}"
        ) from None


def _read_archive(archive: zipfile.ZipFile, path: pathlib.Path) -> Any:
    check_members(archive, str(path))
    names = archive.namelist()
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(
            f"'{path}' is not a PyTorch file: it has {len(pickles)} data.pkl"
        )
    # PyTorch never compresses: a small file cannot ask for much memory.
    claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size:
        raise UserError(
            f"'{path}' is unsafe: it is compressed, {claimed} bytes unpacked: save it "
            "again with torch.save"
        )
    if archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
        raise UserError(f"'{path}' is unsafe: its index is implausibly large")
    root = pickles[0].split("/")[0]
    order = f"{root}/byteorder"
    if order in names and archive.read(order).strip() != b"little":
        raise UserError(
            f"'{path}' is big-endian: save it again on a little-endian machine"
        )
    return _Unpickler(archive, root).load()


def one_line(error: Exception) -> str:
    """Returns an error's message without line breaks, shortened if long."""
    return " ".join(str(error).split())[:200]
