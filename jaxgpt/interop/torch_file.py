"""Reads .pt and .bin files without PyTorch, and without executing their content.

A .pt file is a ZIP archive: a pickle, and the raw storages that it refers to. The
pickle can make only tensors, numbers and plain containers. No other name in it is ever
looked up: if it can be that of an object stored with the weights, such as a
configuration or an enum, it becomes an `Opaque`, else the file is refused.
"""

from __future__ import annotations

import _compat_pickle  # The names that pickle itself translates.
import io
import math
import mmap
import pathlib
import pickle
import pickletools
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxgpt.errors import UserError, one_line
from jaxgpt.interop import mapped
from jaxgpt.interop.rules import shown

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
LONGEST_NAME = 200
# An `Opaque` calls nothing, whatever it stands for. Yet names of the standard library,
# PyTorch, NumPy and this package are refused, as a warning: no honest checkpoint names
# os.system, and the user should know of one that does. These, of values, are open.
OPEN_MODULES = re.compile(
    r"(datetime|decimal|enum|fractions|ipaddress|numbers|pathlib(\._local)?|typing|uuid"
    r"|zoneinfo|torch\.(nn|optim)\..+|torch\.torch_version|numpy\.(dtypes|random\..+))"
)
OPEN_NAMES = {
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict float int list object range slice "
    "str tuple type",
    "collections": "deque",
    "functools": "partial",
    "numpy": "ndarray bool bool_ float16 float32 float64 int8 int16 int32 int64 uint8 "
    "uint16 uint32 uint64 str_",
    "random": "Random",
    "torch": "device Generator Tensor bfloat16 bool float16 float32 float64 int8 int16 "
    "int32 int64 uint8 channels_last contiguous_format preserve_format strided",
    "types": "MappingProxyType SimpleNamespace",
}
NUMBER_KINDS = re.compile("[fiu][1248]|b1")


# Tuples, because a pickle can set attributes of any object, and they have none.
class _StorageKind(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    array: np.ndarray


class _OrderedDict(dict):
    """Replaces collections.OrderedDict, without the attributes set on it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Drops the `_metadata` of a state dict."""


class Opaque:
    """Stands for an object, or a class, that is never made.

    Attributes:
      name: of the class, in the pickle.
      state: what the object's attributes would be set from, or None.
    """

    __slots__ = ("state",)
    name = ""
    state: Any

    def __new__(cls, *arguments: Any, **keywords: Any) -> Opaque:
        """Drops the arguments."""
        del arguments, keywords
        self = object.__new__(cls)
        self.state = None
        return self

    def __init__(self, *arguments: Any, **keywords: Any):
        del arguments, keywords

    def __setstate__(self, state: Any) -> None:
        """Keeps the state that attributes would be set from."""
        self.state = state

    def extend(self, items: Any) -> None:
        """Drops the items of a list subclass."""

    append = add = extend

    def __setitem__(self, key: Any, value: Any) -> None:
        """Drops an item of a dict subclass."""


def opaque_name(value: Any) -> str | None:
    """Returns the name of the class that an `Opaque` stands for, else None."""
    kind = value if isinstance(value, type) else type(value)
    return kind.name if issubclass(kind, Opaque) else None


def _opaque_kind(module: str, name: str) -> type[Opaque]:
    return type("Opaque", (Opaque,), {"name": f"{module}.{name}", "__slots__": ()})


def _is_open(module: str, name: str) -> bool:
    """Returns whether a name can be that of an object stored with the weights."""
    words = f"{module}.{name}".split(".")
    if len(module) + len(name) > LONGEST_NAME or not all(map(str.isidentifier, words)):
        return False
    top = words[0]
    closed = top in sys.stdlib_module_names or top in ("jaxgpt", "numpy", "torch")
    if not closed or top == "__main__":
        return True
    open_name = name in OPEN_NAMES.get(module, "").split()
    return open_name or ("." not in name and bool(OPEN_MODULES.fullmatch(module)))


def _attributes(state: Any) -> Mapping[Any, Any]:
    """Returns an object's attributes, also those of __slots__, from its state."""
    parts = state if isinstance(state, tuple) else (state,)
    return {
        k: v for part in parts if isinstance(part, Mapping) for k, v in part.items()
    }


def without_opaque(value: Any, path: str, skipped: list[str]) -> Any:
    """Returns a value with plain containers only, and None in place of what is opaque.

    Objects with attributes, such as dataclasses and Namespaces, become dicts of them.

    Args:
      value: a part of what `read_torch_file` returns.
      path: the name of that part; "" is the whole.
      skipped: gets "PATH (CLASS)" of everything that is left out.
    """
    # A hostile file can nest a list in itself, or twice in each of a thousand others.
    made: dict[int, Any] = {}

    def plain(value: Any, path: str) -> Any:
        if id(value) in made:
            return made[id(value)]
        source, name = value, opaque_name(value)
        if isinstance(value, Opaque):
            source = _attributes(value.state)
            if value.name.startswith("omegaconf."):  # Its nodes wrap their values.
                inner = source.get("_content", source.get("_val"))
                if inner is not None:
                    return plain(inner, path)
                source = None
        if name is not None and not (isinstance(source, Mapping) and source):
            skipped.append(f"{path} ({name})")
            return None
        if isinstance(source, Mapping):
            copied = made[id(value)] = {}
            for key, item in source.items():
                inner = plain(item, f"{path}.{shown(key)}".lstrip("."))
                if opaque_name(key) is None and (inner is not None or item is None):
                    copied[key] = inner
            return copied
        if isinstance(source, list):
            items = made[id(value)] = []
            items.extend(plain(item, path) for item in source)
            return items
        if isinstance(source, tuple):
            made[id(value)] = tuple(plain(item, path) for item in source)
            return made[id(value)]
        return value

    return plain(value, path)


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


class _Kind:
    """Replaces numpy.dtype."""

    __slots__ = ("name", "order")

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple) -> None:
        """Sets the order of bytes: state is (version, order, ...)."""
        self.order = state[1]


def _numpy_scalar(kind: _Kind, content: bytes) -> Any:
    """Replaces numpy's `scalar`: returns a Python number, if it is one."""
    if not NUMBER_KINDS.fullmatch(kind.name):
        return _opaque_kind("numpy", "generic")()
    dtype = np.dtype(kind.name).newbyteorder(">" if kind.order == ">" else "<")
    if len(content) != dtype.itemsize:
        raise ValueError("a NumPy number has another length")
    return np.frombuffer(content, dtype)[0].item()


def _latin_bytes(text: str, encoding: str) -> bytes:
    """Replaces codecs.encode, with which old protocols write bytes."""
    if encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return text.encode("latin1")


def _reconstructor(kind: type, *_: Any) -> Opaque:
    """Replaces copyreg's and NumPy's functions that make an object of a class."""
    if not (isinstance(kind, type) and issubclass(kind, Opaque)):
        raise ValueError("an object is built from something other than a class")
    return kind()


def _mapping(*items: Any) -> _OrderedDict:
    """Replaces kinds of dicts, without the factory of a defaultdict."""
    return _OrderedDict(*[item for item in items if isinstance(item, Mapping)])


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _latin_bytes,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("collections", "Counter"): _mapping,
    ("collections", "OrderedDict"): _OrderedDict,
    ("collections", "defaultdict"): _mapping,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("numpy", "dtype"): _Kind,
    ("numpy._core.multiarray", "_reconstruct"): _reconstructor,
    ("numpy.core.multiarray", "_reconstruct"): _reconstructor,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
}


class _Unpickler(pickle.Unpickler):
    """Finds `ADMITTED` and storages; other names are never looked up."""

    def __init__(self, archive: zipfile.ZipFile, root: str, file: mmap.mmap):
        index = archive.read(f"{root}/data.pkl")
        for opcode, argument, _ in pickletools.genops(index):
            # The memo is allocated up to its largest index: 9 bytes can demand 16 GB.
            if opcode.name in MEMO_OPCODES and int(argument or 0) > len(index):
                raise pickle.UnpicklingError("its memo is implausibly large")
        super().__init__(io.BytesIO(index), encoding="utf-8")
        self.archive, self.root, self.file = archive, root, file
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return _StorageKind(DTYPES[name])
        # Protocol 2 has the names of Python 2.
        renamed = _compat_pickle.IMPORT_MAPPING.get(module, module), name
        known = _compat_pickle.NAME_MAPPING.get((module, name), renamed)
        if known in ADMITTED:
            made = ADMITTED[known]
            # A new function each time, so that attributes set on it do not persist.
            return lambda *values: made(*values)
        if _is_open(*known):
            return _opaque_kind(*known)
        raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:100]!r}")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage, key, _, count = reference
        if kind != "storage" or not isinstance(storage, _StorageKind):
            raise pickle.UnpicklingError("it refers to something other than a storage")
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.root}/data/{key}")
            raw = mapped.member(self.archive, entry, self.file)
            self.storages[key] = _Storage(np.frombuffer(raw, storage.dtype, count))
        return self.storages[key]


def check_members(archive: zipfile.ZipFile, name: str) -> None:
    """Raises UserError for an archive with a link or a path that leaves it.

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
    """Returns the content of a .pt file, its tensors as read-only views of the file.

    Objects of other classes become `Opaque`; nothing is executed.

    Raises:
      UserError: for a file that is damaged, has PyTorch's old format, or names what no
        checkpoint needs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"'{path}' is unsafe: {one_line(error)}; only tensors and plain containers "
            "are read: save the weights alone, torch.save(model.state_dict(), FILE)"
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
    # PyTorch never compresses: a small file must not take a lot of memory.
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
    return _Unpickler(archive, root, mapped.map_file(path)).load()
