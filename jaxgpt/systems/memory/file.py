"""The file of a memory: its entries, the index over them, and the documents' tokens.

A safetensors file holds what is stored, not the room there is:

  entries/NAME [n, ...]     of n entries, in the order in which they were written
  entries/slot [n]          int32, where each stands
  index/ROW.HEAD.NAME       what the index holds in addition to the keys
  texts/N [T]               int32, the tokens of document N

and in its metadata as "memory" a `Header` in JSON, after the SHA-256 of that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxgpt.errors import UserError, atomic_path
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.header import Header, damaged, peek, sha256
from jaxgpt.systems.memory.store import with_prefix

DTYPES = ("float32", "float16")
COUNTERS = ("next_id", "clock", "refused")  # Of a row: numbers, not entries.


def write(path: pathlib.Path, header: Header, arrays: dict[str, np.ndarray]) -> Header:
    """Writes the file, atomically; returns the header with its digest.

    Raises:
      UserError: if it cannot be written.
    """
    header = dataclasses.replace(header, digest=_digest(arrays))
    text = json.dumps(dataclasses.asdict(header))
    try:
        # Of a link it is the file that is replaced: what is forgotten is gone there.
        with atomic_path(path.resolve()) as temporary:
            temporary.touch()
            usual = temporary.stat().st_mode
            save_file(arrays, temporary, {"memory": f"{sha256(text)} {text}"})
            temporary.chmod(usual)  # save_file lets nobody else read it.
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--memory='{path}' cannot be written: {why}") from None
    return header


def read(path: pathlib.Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Returns header and arrays.

    Raises:
      UserError: see `peek`, or if it is damaged.
    """
    header = peek(path)
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        raise damaged(path) from None
    if header.digest != _digest(arrays):
        raise UserError(
            f"--memory='{path}' is damaged (its digest differs): restore a copy"
        )
    return header, arrays


def pack(entries: Entries, dtype: str) -> dict[str, np.ndarray]:
    """Returns the arrays of the entries of one row, keys and values in a dtype."""
    rows = {
        name: np.asarray(array)[0]
        for name, array in flatten_dict(entries, sep=".").items()
        if name != "version"
    }
    slot_N = np.flatnonzero(rows["id"] >= 0)
    slot_N = slot_N[np.argsort(rows["id"][slot_N])].astype(np.int32)
    arrays = {"entries/slot": slot_N}
    for name, array in rows.items():
        if name in COUNTERS:
            arrays[f"entries/{name}"] = array.reshape(1)
        elif name == "key" or name.startswith("values."):
            arrays[f"entries/{name}"] = array[slot_N].astype(dtype)
        else:
            arrays[f"entries/{name}"] = array[slot_N]
    return arrays


def unpack(arrays: dict[str, np.ndarray], size: int) -> tuple[Entries, bool]:
    """Returns the entries of one row of this many slots, on the device.

    Returns:
      (entries, whether they stand elsewhere, since they would not fit.)
    """
    slot_N = arrays["entries/slot"]
    moved = bool((slot_N >= size).any())
    slot_N = np.arange(len(slot_N)) if moved else slot_N
    rows = {"version": jnp.zeros(2, jnp.int32)}
    for name, found in with_prefix(arrays, "entries/").items():
        if name in COUNTERS:
            rows[name] = jnp.asarray(found)
        elif name != "slot":
            free = -1 if name in ("id", "stamp") else 0
            dtype = np.float32 if found.dtype == np.float16 else found.dtype
            array = np.full((1, size, *found.shape[1:]), free, dtype)
            array[0, slot_N] = found
            rows[name] = jnp.asarray(array)
    return {"values": {}} | unflatten_dict(rows, sep="."), moved


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
