"""The files that weights come in and go out as: .pt, .npz, safetensors, folders."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.data.arrays import check_members
from jaxgpt.errors import UserError
from jaxgpt.interop import torch_file
from jaxgpt.interop.rules import shown
from jaxgpt.interop.torch_file import one_line

# Buffers that older programs saved beside the parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias", "rope_modulator")
# What torch.compile and DistributedDataParallel put before each name.
WRAPPERS = re.compile(r"(_orig_mod\.|module\.)*")
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# How the names of a GPT-2 begin where they are saved without "transformer.".
BARE = ("wte.", "wpe.", "h.", "ln_f.")
LARGEST_HEADER = 100 << 20
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
    """What was found at a path: arrays by name, and all else that came with them."""

    path: str
    state: Arrays
    settings: dict[str, Any]
    checkpoint: dict[str, Any]


def read(name: str, settings_file: str | None) -> Source:
    """Reads .pt, .bin, .npz, .safetensors, or a Hugging Face folder.

    Args:
      name: the path.
      settings_file: JSON with the original's configuration, where the file does not
        hold it.

    Raises:
      UserError: where the path is none of these, damaged, or refused.
    """
    from jaxgpt.config import user_path

    path = hub_folder(name) if name in HUB_NAMES else user_path(name)
    if not path.exists():
        raise UserError(f"--source '{name}' does not exist")
    settings = _read_json(user_path(settings_file)) if settings_file else {}
    checkpoint: dict[str, Any] = {}
    if path.is_dir():
        settings = _read_json(path / "config.json") | settings
        state = _read_folder(path)
    else:
        held = _read_file(path)
        state = held
        if isinstance(held.get("model"), Mapping):
            checkpoint, state = held, held["model"]
            arguments = held.get("model_args", {})
            if not isinstance(arguments, Mapping):
                raise UserError(f"'{name}' has model_args {shown(arguments)}: no dict")
            settings = dict(arguments) | settings
    for key, value in state.items():
        if not isinstance(key, str) or not is_numbers(value):
            raise UserError(
                f"'{name}' holds no state dict: {shown(key)} is no array of numbers"
            )
    if not state:
        raise UserError(f"'{name}' holds no state dict: it is empty")
    return Source(name, _plain_names(state, name), settings, checkpoint)


def hub_folder(name: str) -> pathlib.Path:
    """Returns the folder of a GPT-2 by name: from the local cache, or downloaded."""
    if pathlib.Path(name).exists():
        return pathlib.Path(name)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"'{name}' by name needs huggingface_hub (pip install huggingface_hub): or "
            "give a folder"
        ) from None
    repository = name if "/" in name else f"openai-community/{name}"
    files = ["config.json", "model.safetensors"]
    for local in (True, False):
        try:
            return pathlib.Path(
                snapshot_download(
                    repository, allow_patterns=files, local_files_only=local
                )
            )
        except Exception:  # Offline, proxied, unknown: each raises its own kind.
            continue
    raise UserError(
        f"'{name}' is not in the local Hugging Face cache and cannot be downloaded: "
        "download its folder where there is a network and give that"
    )


def is_numbers(value: Any) -> bool:
    """Whether a value is an array of real numbers (or the truths of a buffer)."""
    return isinstance(value, np.ndarray) and (
        value.dtype.kind in "fiub" or value.dtype == ml_dtypes.bfloat16
    )


def _read_json(path: pathlib.Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is no JSON object")
    return value


def _read_folder(folder: pathlib.Path) -> Arrays:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).exists():
            return _read_file(folder / single)
        if index.exists():
            weight_map = _read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"'{index}' has no weight_map: fetch it again")
            shards = dict.fromkeys(map(str, weight_map.values()))
            state: Arrays = {}
            for shard in shards:
                if pathlib.PurePath(shard).name != shard:
                    raise UserError(f"'{index}' names '{shown(shard)}': not beside it")
                state |= _read_file(folder / shard)
            return state
    raise UserError(f"'{folder}' has neither model.safetensors nor pytorch_model.bin")


def _read_file(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"'{path}' does not exist")
    if path.suffix in (".pt", ".pth", ".bin"):
        held = torch_file.read(path)
        if not isinstance(held, Mapping):
            raise UserError(f"'{path}' holds no state dict")
        return dict(held)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    raise UserError(f"'{path}' is no .pt, .bin, .safetensors, .npz file or folder")


def _read_safetensors(path: pathlib.Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
        if size > min(LARGEST_HEADER, path.stat().st_size):
            raise UserError(f"'{path}' is damaged: its header claims {size} bytes")
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"'{path}' is damaged: {one_line(error)}") from None


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, str(path))
        with np.load(path, allow_pickle=False) as file:
            names = [n for n in file.files if n.startswith("param/")] or file.files
            return {name.removeprefix("param/"): file[name] for name in names}
    except UserError:
        raise
    except Exception as error:  # A damaged archive can fail in many ways.
        raise UserError(f"'{path}' is no readable .npz: {one_line(error)}") from None


def _plain_names(state: Mapping[str, np.ndarray], source: str) -> Arrays:
    """Strips wrappers' prefixes, drops buffers, and resolves the tied head."""
    result: Arrays = {}
    for name, array in state.items():
        plain = WRAPPERS.sub("", name, count=1)
        if plain.endswith(BUFFERS):
            continue
        if plain.startswith(BARE):
            plain = f"transformer.{plain}"
        if plain in result:
            raise UserError(f"'{source}' holds {shown(plain)} under two names")
        result[plain] = array
    head = result.pop("lm_head.weight", None)
    table = result.get("transformer.wte.weight")
    tied = head is None or table is None or np.array_equal(head, table, equal_nan=True)
    if not tied:
        raise UserError(
            f"'{source}' has a head of its own: lm_head.weight is not wte.weight"
        )
    return result


def write_gpt2(folder: pathlib.Path, state: Arrays, config: Mapping[str, Any]) -> None:
    """Writes a folder that transformers' GPT2LMHeadModel loads."""
    from safetensors.numpy import save_file

    activation = {"gelu_tanh": "gelu_new", "gelu": "gelu"}[config["activation"]]
    settings = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": activation,
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "n_embd": config["n_embd"],
        "n_positions": config["block_size"],
        "n_ctx": config["block_size"],
        "vocab_size": config["vocab_size"],
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": config["dropout"],
        "embd_pdrop": config["dropout"],
        "resid_pdrop": config["dropout"],
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_state_dict(path: pathlib.Path, state: Arrays) -> None:
    """Writes a .pt file that load_state_dict(torch.load(path)) reads."""
    _save(_tensors(state), path)


def _tensors(state: Arrays) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing .pt files needs PyTorch (pip install torch): or name an .npz file"
        ) from None
    return {name: torch.tensor(array) for name, array in state.items()}


def _save(value: dict[str, Any], path: pathlib.Path) -> None:
    import torch

    temporary = path.with_name(path.name + ".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def write_npz(path: pathlib.Path, state: Arrays) -> None:
    """Writes the state dict under param/, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as stream:
        arrays: dict[str, Any] = {f"param/{name}": a for name, a in state.items()}
        np.savez(stream, **arrays)
    temporary.replace(path)


def write_checkpoint(
    path: pathlib.Path, state: Arrays, config: Mapping[str, Any], step: int
) -> None:
    """Writes a ckpt.pt as nanoGPT's train.py does, for its sample.py to read."""
    tensors = _tensors(state)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    checkpoint = {
        "model": tensors,
        "model_args": {key: config[key] for key in (*SIZES, "bias", "dropout")},
        "iter_num": step,
        "best_val_loss": float("inf"),
        "config": {"dataset": "shakespeare_char"},
    }
    _save(checkpoint, path)
