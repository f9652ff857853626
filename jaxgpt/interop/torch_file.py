"""Reads .pt and .bin files without PyTorch and without running what they hold.

A .pt file is a ZIP archive with a pickle that refers to raw storages beside it. The
pickle is interpreted with nothing but tensors and plain containers within reach: any
other name it asks for ends the reading.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.config import UserError

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


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any
) -> np.ndarray:
    """Stands for torch._utils._rebuild_tensor_v2: a view of a storage."""
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    plain = all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
    if not plain or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [s * storage.itemsize for s in stride]
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, steps, writeable=False
    )


def _rebuild_parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    """Stands for torch._utils._rebuild_parameter."""
    return data


ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _Reader(pickle.Unpickler):
    """The only unpickler here: it finds `ADMITTED` and storages, and no other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"), encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return _Storage(DTYPES[name])
        if (module, name) in ADMITTED:
            return ADMITTED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, storage, key, _, count = reference
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        if key not in self.storages:
            raw = self.archive.read(f"{self.root}/data/{key}")
            self.storages[key] = np.frombuffer(raw, storage.dtype, count)
        return self.storages[key]


def read(path: pathlib.Path) -> Any:
    """Returns what a .pt file holds, its tensors as numpy arrays.

    Raises:
      UserError: where the file is damaged, of PyTorch's old format, or holds
        anything but tensors and plain containers; nothing of it is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [
                n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")
            ]
            if len(pickles) != 1:
                raise UserError(f"'{path}' is no PyTorch file: it has no data.pkl")
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
            f"'{path}' is refused: {error}; only tensors and plain containers are read"
        ) from None
    except zipfile.BadZipFile:
        raise UserError(
            f"'{path}' is no PyTorch file of the ZIP kind, or it is truncated: save it "
            "again with a PyTorch of 1.6 or newer"
        ) from None
    except Exception as error:  # Hostile bytes can raise anything at all.
        raise UserError(
            f"'{path}' is damaged: {type(error).__name__}: {error}"[:300]
        ) from None
