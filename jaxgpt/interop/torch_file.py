"""Reads .pt and .bin files without PyTorch and without running what they hold.

A .pt file is a ZIP archive with a pickle that refers to raw storages beside it. The
pickle is interpreted with nothing but tensors and plain containers within reach: any
other name it asks for ends the reading.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgpt.data.arrays import check_members
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


# A pickle can set attributes of whatever it is given: tuples have none to set.
class _StorageKind(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    array: np.ndarray


class _OrderedDict(dict):
    """Stands for collections.OrderedDict, without the attributes put on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drops the `_metadata` of a state dict."""


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
    """Stands for torch._utils._rebuild_tensor_v2: a view of a storage."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor is not over a storage")
    array = storage.array
    plain = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
    if not plain:
        raise ValueError("a tensor has no plain sizes")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if 0 not in size and last >= len(array):
        raise ValueError("a tensor reaches beyond its storage")
    if math.prod(size) > max(len(array), LARGEST_REPEATED):
        raise ValueError("a tensor repeats its storage too often")
    steps = [s * array.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(array[offset:], size, steps, writeable=False)


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    """Stands for torch._utils._rebuild_parameter."""
    return data


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Reader(pickle.Unpickler):
    """The only unpickler here: it finds `ADMITTED` and storages, and no other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        index = archive.read(f"{root}/data.pkl")
        for opcode, argument, _ in pickletools.genops(index):
            # The memo is as long as the largest number in it: 9 bytes could ask for
            # 16 GB.
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
            return lambda *values: made(*values)  # Its own: see `_StorageKind`.
        raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:100]!r}")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage, key, _, count = reference
        if kind != "storage" or not isinstance(storage, _StorageKind):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in self.storages:
            raw = self.archive.read(f"{self.root}/data/{key}")
            self.storages[key] = _Storage(np.frombuffer(raw, storage.dtype, count))
        return self.storages[key]


def read(path: pathlib.Path) -> Any:
    """Returns what a .pt file holds, its tensors as numpy arrays.

    Raises:
      UserError: where the file is damaged, of PyTorch's old format, or holds
        anything but tensors and plain containers; nothing of it is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, str(path))
            names = archive.namelist()
            pickles = [
                n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")
            ]
            if len(pickles) != 1:
                raise UserError(
                    f"'{path}' is no PyTorch file: it has {len(pickles)} data.pkl"
                )
            claimed = sum(entry.file_size for entry in archive.infolist())
            if claimed > path.stat().st_size:
                raise UserError(
                    f"'{path}' is refused: it is compressed, to be {claimed} bytes: "
                    "save it again with torch.save"
                )
            if archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
                raise UserError(f"'{path}' is refused: its index is implausibly large")
            root = pickles[0].split("/")[0]
            if f"{root}/byteorder" in names:
                order = archive.read(f"{root}/byteorder").strip()
                if order != b"little":
                    raise UserError(f"'{path}' is big-endian: save it again")
            return _Reader(archive, root).load()
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is refused: {one_line(error)}; only tensors and plain "
            "containers are read"
        ) from None
    except zipfile.BadZipFile:
        raise UserError(
            f"'{path}' is no PyTorch file of the ZIP kind, or it is truncated: save it "
            "again with a PyTorch of 1.6 or newer"
        ) from None
    except Exception as error:  # Hostile bytes can raise anything at all.
        raise UserError(
            f"'{path}' is damaged: {type(error).__name__}: {one_line(error)}"
        ) from None


def one_line(error: Exception) -> str:
    """Returns the message of an error without line breaks, cut where it is long."""
    return " ".join(str(error).split())[:200]
