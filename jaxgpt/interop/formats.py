"""What each original's files look like: configuration, names, optimizer state."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxgpt.config import UserError
from jaxgpt.interop import rules, torch_file
from jaxgpt.interop.rules import shown
from jaxgpt.interop.torch_file import one_line

# Buffers that older programs saved beside the parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias")
# What torch.compile and DistributedDataParallel put before each name.
WRAPPERS = re.compile(r"(_orig_mod\.|module\.)*")
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
PLAIN_GPT2 = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
LARGEST_NUMBER = 2**31 - 1
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
LARGEST_HEADER = 100 << 20
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Format:
    """One original: the system it becomes, and how its weights lie."""

    system: str
    conv1d: bool = False


FORMATS = {
    "gpt2": Format("causal", conv1d=True),
    "nanogpt": Format("causal"),
    "sigma-gpt": Format("sigma"),
}


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
        if not isinstance(key, str) or not _is_numbers(value):
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


def _is_numbers(value: Any) -> bool:
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
        with np.load(path, allow_pickle=False) as file:
            names = [n for n in file.files if n.startswith("param/")] or file.files
            return {name.removeprefix("param/"): file[name] for name in names}
    except Exception as error:  # A damaged archive can fail in many ways.
        raise UserError(f"'{path}' is no readable .npz: {one_line(error)}") from None


def _plain_names(state: Mapping[str, np.ndarray], source: str) -> Arrays:
    """Strips wrappers' prefixes, drops buffers, and resolves the tied head."""
    result: Arrays = {}
    for name, array in state.items():
        plain = WRAPPERS.sub("", name, count=1)
        if plain.endswith(BUFFERS):
            continue
        if not plain.startswith(("transformer.", "lm_head.")):
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


def model_fields(name: str, source: Source) -> dict[str, Any]:
    """Returns our `model.*` fields for a source.

    Raises:
      UserError: naming a setting that is missing, or one that this core has not.
    """
    found = source.settings
    if name == "gpt2":
        keys: tuple[str, ...] = (
            "n_layer",
            "n_head",
            "n_embd",
            "n_positions",
            "vocab_size",
        )
        extra: dict[str, Any] = {"bias": True}
        _check(found, PLAIN_GPT2, source.path)
    else:
        keys = SIZES
        bias = "transformer.ln_f.bias" in source.state
        extra = {"bias": found.get("bias", bias), "activation": "gelu"}
        extra["dropout"] = _number(found, "dropout", 0.0, source.path)
        if not isinstance(extra["bias"], bool):
            raise UserError(
                f"'{source.path}' has bias {shown(extra['bias'])}: true or false it is"
            )
    missing = [key for key in keys if found.get(key) is None]
    if missing:
        raise UserError(
            f"'{source.path}' does not say its {', '.join(missing)}: give the "
            "original's configuration with --source_config=FILE.json, or its --format"
        )
    fields = {key: _size(found, key, source.path) for key in keys}
    _check_sizes(fields, source)
    if name == "gpt2":
        _check(found, {"n_inner": 4 * fields["n_embd"]}, source.path)
        extra["activation"] = _activation(found, source.path)
    if "n_positions" in fields:
        fields["block_size"] = fields.pop("n_positions")
    return {f"model.{key}": value for key, value in (fields | extra).items()}


def _size(settings: Mapping[str, Any], key: str, path: str) -> int:
    value = settings[key]
    if type(value) is not int or not 1 <= value <= LARGEST_NUMBER:
        raise UserError(
            f"'{path}' has {key} {shown(value)}: it is a whole number of at least 1"
        )
    return value


def _number(settings: Mapping[str, Any], key: str, default: float, path: str) -> float:
    value = settings.get(key, default)
    if type(value) not in (int, float) or not abs(value) <= LARGEST_NUMBER:
        raise UserError(f"'{path}' has {key} {shown(value)}: it is a number")
    return value


def _check_sizes(fields: Mapping[str, int], source: Source) -> None:
    """Refuses sizes that the weights have not, before a model is made of them."""
    parts = [name.split(".") for name in source.state]
    held = {"n_layer": len({p[2] for p in parts if p[1:2] == ["h"] and len(p) > 2})}
    table = source.state.get("transformer.wte.weight")
    positions = source.state.get("transformer.wpe.weight")
    if table is None or positions is None or table.ndim != 2 or positions.ndim != 2:
        lacking = "wte" if table is None or table.ndim != 2 else "wpe"
        raise UserError(
            f"'{source.path}' is of another architecture: it lacks a matrix "
            f"transformer.{lacking}.weight"
        )
    held |= {"vocab_size": table.shape[0], "n_embd": table.shape[1]}
    held["n_positions" if "n_positions" in fields else "block_size"] = len(positions)
    for key, size in held.items():
        if fields[key] != size:
            raise UserError(
                f"'{source.path}' has {key} {fields[key]} in its configuration and "
                f"{size} in its weights"
            )


def _activation(settings: Mapping[str, Any], path: str) -> str:
    kind = settings.get("activation_function", "gelu_new")
    known = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"'{path}' has activation_function {shown(kind)}: only "
            f"{', '.join(known)} are known"
        )
    return known[kind]


def _check(settings: Mapping[str, Any], known: Mapping[str, Any], path: str) -> None:
    """Refuses what would silently change numbers."""
    for key, plain in known.items():
        value = settings.get(key)
        if value is not None and value != plain:
            raise UserError(
                f"'{path}' has {key} {shown(value)}: only {plain!r} is known"
            )


def training_fields(source: Source) -> dict[str, Any]:
    """Returns the training fields of a nanoGPT (or σ-GPT) train.py checkpoint.

    Raises:
      UserError: naming a setting that is no number.
    """
    config = source.checkpoint.get("config")
    if not isinstance(config, Mapping):
        return {}

    def get(key: str, default: float) -> float:
        return _number(config, key, default, source.path)

    parts = get("gradient_accumulation_steps", 1)
    decays = config.get("decay_lr", True)
    rate = get("learning_rate", 6e-4)
    return {
        "batch_size": get("batch_size", 12) * parts,
        "accumulation": parts,
        "steps": get("max_iters", 600000),
        "optimizer.learning_rate": rate,
        "optimizer.min_learning_rate": get("min_lr", 6e-5) if decays else rate,
        "optimizer.warmup_steps": get("warmup_iters", 2000) if decays else 0,
        "optimizer.decay_steps": get("lr_decay_iters", 600000),
        "optimizer.beta1": get("beta1", 0.9),
        "optimizer.beta2": get("beta2", 0.95),
        "optimizer.weight_decay": get("weight_decay", 0.1),
        "optimizer.grad_clip": get("grad_clip", 1.0),
        "eval_interval": get("eval_interval", 2000),
        "checkpoint_interval": get("eval_interval", 2000),
    }


def moments(
    source: Source, table: list[rules.Rule]
) -> tuple[Arrays, Arrays, int, int] | None:
    """Returns AdamW's two moments by the original's names, its count, and the step.

    nanoGPT numbers parameters as PyTorch lists them: matrices first, then the rest,
    each in the order of the model.

    Raises:
      UserError: where the optimizer is another one.
    """
    state, optimizer = source.state, source.checkpoint.get("optimizer")
    if not isinstance(optimizer, Mapping) or not optimizer.get("state"):
        return None
    names = [rule.name for rule in table]
    order = [n for n in names if state[n].ndim >= 2]
    order += [n for n in names if state[n].ndim < 2]
    held = optimizer["state"]
    if not isinstance(held, Mapping) or set(held) != set(range(len(order))):
        raise UserError(
            f"'{source.path}' is of another optimizer: its state is not of the "
            f"{len(order)} parameters"
        )
    for i, name in enumerate(order):
        for key in ("exp_avg", "exp_avg_sq"):
            if not isinstance(held[i], Mapping) or not _is_numbers(held[i].get(key)):
                raise UserError(
                    f"'{source.path}' is of another optimizer: {name} has no {key}"
                )
    first = {name: held[i]["exp_avg"] for i, name in enumerate(order)}
    second = {name: held[i]["exp_avg_sq"] for i, name in enumerate(order)}
    count = _steps("step", held[0].get("step"), source.path)
    step = _steps("iter_num", source.checkpoint.get("iter_num", count), source.path)
    return first, second, count, step


def _steps(key: str, value: Any, path: str) -> int:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()  # PyTorch counts in a float32 tensor.
    plain = type(value) in (int, float) and 0 <= value <= LARGEST_NUMBER
    if not plain or value != int(value):
        raise UserError(f"'{path}' has {key} {shown(value)}: it counts steps")
    return int(value)


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
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing .pt files needs PyTorch (pip install torch): or name an .npz file"
        ) from None
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    checkpoint = {
        "model": tensors,
        "model_args": {key: config[key] for key in (*SIZES, "bias", "dropout")},
        "iter_num": step,
        "best_val_loss": float("inf"),
        "config": {"dataset": "shakespeare_char"},
    }
    temporary = path.with_name(path.name + ".tmp")
    torch.save(checkpoint, temporary)
    temporary.replace(path)
