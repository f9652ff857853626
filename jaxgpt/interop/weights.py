"""Files of weights, read and written: .pt, .npz, safetensors, folders."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # Its import also makes NumPy know bfloat16 by name.
import numpy as np
from safetensors import safe_open

from jaxgpt.config import user_path
from jaxgpt.data.arrays import read_json_object, why_not_loaded
from jaxgpt.errors import (
    UserError,
    atomic_write,
    import_optional,
    listed,
    one_line,
    os_errors,
)
from jaxgpt.interop import mapped
from jaxgpt.interop.rules import shown
from jaxgpt.interop.torch_file import (
    check_members,
    opaque_name,
    read_torch_file,
    without_opaque,
)

LFS = b"version https://git-lfs.github.com/spec/"
# Models from before names had an owner.
HUB_NAMES = {
    **{f"gpt2{size}": "openai-community" for size in ("", "-medium", "-large", "-xl")},
    "distilgpt2": "distilbert",
}
HUB_NAME = re.compile(r"([\w.-]+/)?([\w.-]+)(@[\w.-]+)?")
HUB_FILES = ["*.json", "merges.txt", "*.safetensors"]
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (*TORCH_SUFFIXES, ".npz", ".safetensors")
# A checkpoint's keys of its state dict, and of its configuration: those of nanoGPT and
# build-nanogpt, teenyGPT, PyTorch Lightning, and DeepSpeed.
STATES = ("model", "model_state_dict", "state_dict", "module")
CONFIGURATIONS = ("model_args", "config", "hyper_parameters")
Arrays = dict[str, np.ndarray]
SAFETENSORS_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    "BOOL": "bool",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The content of a file or folder of weights.

    Attributes:
      path: as the user typed it.
      state: the state dict, with the names of the file.
      settings: the original's configuration, untrusted.
      checkpoint: the rest of a checkpoint, untrusted.
      held: the settings in the source itself, not just in the user's file.
      notes: for the user, on what was not read.
      folder: of the source.
    """

    path: str
    state: Arrays
    settings: dict[str, Any]
    checkpoint: dict[str, Any]
    held: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    folder: pathlib.Path = pathlib.Path()


def read_source(name: str, settings_file: str | None) -> Source:
    """Reads .pt, .bin, .npz, .safetensors, or a Hugging Face folder.

    Args:
      name: the path, or a name on the Hugging Face hub: OWNER/NAME, perhaps with
        @REVISION, or one of `HUB_NAMES`.
      settings_file: JSON with the original's configuration, if the file does not
        contain it.

    Raises:
      UserError: for a path that is none of these, damaged, or unsafe.
    """
    path = user_path(name)
    if not path.exists() and _is_hub_name(name):
        path = download_folder(name)
    if not path.exists():
        raise UserError(f"'{name}' does not exist")
    settings = read_json_object(user_path(settings_file)) if settings_file else {}
    checkpoint: dict[str, Any] = {}
    own: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if path.is_dir():
        own = _read_config(path)
    held = state = _read_folder(path) if path.is_dir() else _read_file(path)
    inside = [key for key in STATES if isinstance(held.get(key), Mapping)]
    if inside:
        state = held[inside[0]]
        checkpoint, notes = _read_besides(held, inside[0], name)
    if inside and not path.is_dir():
        if not isinstance(checkpoint.get("model_args", {}), Mapping):
            raise UserError(f"'{name}': model_args must be a dict")
        found = [v for k in CONFIGURATIONS if (v := checkpoint.get(k)) is not None]
        found = [value for value in found if isinstance(value, Mapping)]
        own = dict(*found[:1])
    for key, value in state.items():
        if not isinstance(key, str) or not is_numbers(value):
            kind = opaque_name(value)
            raise UserError(
                f"'{name}' holds no state dict: {shown(key)} is not an array of numbers"
                + (f" but of class {kind}" if kind else "")
            )
    if not state:
        raise UserError(f"'{name}' holds no state dict: it is empty")
    settings = own | settings
    folder = path if path.is_dir() else path.parent
    return Source(
        name, dict(state), settings, checkpoint, frozenset(own), notes, folder
    )


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the configuration in a Hugging Face folder."""
    path = folder / "config.json"
    if not path.exists():
        # As in the output folders of nanoGPT and of Hugging Face's Trainer.
        inside = [file.parent for file in folder.glob("*/config.json")]
        inside = sorted([*inside, *folder.glob("*.pt")])
        raise UserError(
            f"'{folder}' holds no config.json: name a folder that does, or a file of "
            "weights" + (f", such as '{inside[-1]}'" if inside else "")
        )
    return read_json_object(path)


def _read_besides(
    held: Mapping[str, Any], state_key: str, name: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the rest of a checkpoint, without its state dict, and notes on it."""
    skipped: list[str] = []
    besides = {key: value for key, value in held.items() if key != state_key}
    try:
        plain = without_opaque(besides, "", skipped)
    except RecursionError:
        raise UserError(f"'{name}' is damaged: it is nested too deeply") from None
    line = f"skipped: {listed([*map(shown, skipped)], 5)}"
    return plain, (line,) if skipped else ()


def _is_hub_name(name: str) -> bool:
    """Returns whether a path that does not exist can be a name on the hub."""
    found = HUB_NAME.fullmatch(name)
    if not found or name.endswith(SUFFIXES):
        return False
    owner = found[1]
    return not user_path(owner).exists() if owner else found[2] in HUB_NAMES


def download_folder(name: str) -> pathlib.Path:
    """Returns the folder of a model from the hub's local cache, or downloads it."""
    hub = import_optional(
        "huggingface_hub",
        f"'{name}' is not a file or folder, and loading it by name needs "
        "huggingface_hub (pip install huggingface_hub)",
    )
    plain, _, revision = name.partition("@")
    full = plain if "/" in plain else f"{HUB_NAMES[plain]}/{plain}"
    # Old caches hold the names without an owner.
    for repository, local in ((full, True), (plain, True), (full, False)):
        try:
            folder = pathlib.Path(
                hub.snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=HUB_FILES,
                    local_files_only=local,
                )
            )
        except Exception:  # Offline, behind a proxy, unknown: there are many types.
            continue
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        if weights and (folder / "config.json").exists():
            return folder
    raise UserError(
        f"'{name}' is not a file or folder, not in the local Hugging Face cache and "
        "cannot be downloaded: download its folder on a machine with network access "
        "and name that"
    )


def is_numbers(value: Any) -> bool:
    """Returns whether a value is an array of real numbers (or bools, of a buffer)."""
    return isinstance(value, np.ndarray) and (
        value.dtype.kind in "fiub" or value.dtype == ml_dtypes.bfloat16
    )


def _read_folder(folder: pathlib.Path) -> dict[str, Any]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).exists():
            return _read_file(folder / single)
        if index.exists():
            weight_map = read_json_object(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"'{index}' has no weight_map: download it again")
            state: Arrays = {}
            for shard in dict.fromkeys(map(str, weight_map.values())):
                # An index must not make us read other files of this machine.
                if pathlib.PurePath(shard).name != shard:
                    raise UserError(
                        f"'{index}' names '{shown(shard)}': only files in its folder "
                        "are read"
                    )
                state |= _read_file(folder / shard)
            return state
    raise UserError(f"'{folder}' has neither model.safetensors nor pytorch_model.bin")


def _read_file(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"'{path}' does not exist")
    with os_errors(f"'{path}' cannot be read"), open(path, "rb") as file:
        pointer = file.read(len(LFS)) == LFS
    if pointer:
        raise UserError(f"'{path}' is a pointer of Git LFS: fetch it with git lfs pull")
    if path.suffix in TORCH_SUFFIXES:
        value = read_torch_file(path)
        if not isinstance(value, Mapping):
            kind = opaque_name(value)
            raise UserError(
                f"'{path}' holds no state dict"
                + (f" but a {kind}: save its state_dict()" if kind else "")
            )
        return dict(value)
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(
            f"'{path}' is not a .pt, .ckpt, .bin, .safetensors or .npz file or a folder"
        )
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except UserError:
        raise
    except Exception as error:  # A damaged file can fail in many ways.
        raise UserError(f"'{path}' is damaged: {one_line(error)}") from None


def _read_safetensors(path: pathlib.Path) -> Arrays:
    with safe_open(path, "np"):
        pass  # Checks the header: its length, and that the arrays fill the file.
    file = mapped.map_file(path)
    begin = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:begin])
    header.pop("__metadata__", None)
    state = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(f"'{path}': {shown(name)} has dtype {entry['dtype']}")
        dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
        offset = begin + entry["data_offsets"][0]
        state[name] = np.ndarray(entry["shape"], dtype, file, offset)
    return state


def _read_npz(path: pathlib.Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        check_members(archive, str(path))
    with np.load(path, allow_pickle=False) as file:
        names = [n for n in file.files if n.startswith("param/")] or file.files
        try:
            return {name.removeprefix("param/"): file[name] for name in names}
        except ValueError as error:
            raise ValueError(why_not_loaded(error)) from None


def write_safetensors(path: pathlib.Path, state: Arrays) -> None:
    """Writes a state dict array by array: safetensors' own writer copies all of it."""
    names = {np.dtype(ours): theirs for theirs, ours in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in state.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # So that arrays begin at a multiple of 8.
    with atomic_write(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in state.values():
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def write_torch(path: pathlib.Path, value: Any) -> None:
    """Writes arrays in plain containers as a .pt file, the arrays as tensors.

    Raises:
      UserError: if PyTorch is not installed.
    """
    torch = import_optional(
        "torch",
        "writing .pt files needs PyTorch (pip install torch); otherwise name an .npz "
        "file",
    )
    made: dict[int, Any] = {}  # An array under two names is one tensor.

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        if id(value) not in made:
            made[id(value)] = torch.from_numpy(value)
        return made[id(value)]

    with warnings.catch_warnings(action="ignore"):  # About read-only arrays.
        converted = tensors(value)
    with atomic_write(path, "wb") as stream:
        torch.save(converted, stream)


def write_npz(path: pathlib.Path, state: Arrays) -> None:
    """Writes a state dict under param/."""
    arrays: dict[str, Any] = {f"param/{name}": a for name, a in state.items()}
    with atomic_write(path, "wb") as stream:
        np.savez(stream, **arrays)
