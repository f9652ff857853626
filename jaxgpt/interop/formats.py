"""What each original's files look like: configuration, names, optimizer state."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgpt.config import UserError
from jaxgpt.interop import rules, torch_file

# Buffers that older programs saved beside the parameters.
BUFFERS = (".attn.bias", ".attn.masked_bias")
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
            settings = dict(held.get("model_args") or {}) | settings
    bad = [k for k, v in state.items() if not isinstance(v, np.ndarray)]
    if bad or not state:
        raise UserError(f"'{name}' holds no state dict: {bad[:1] or 'it is empty'}")
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


def _read_json(path: pathlib.Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
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
            shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
            state: Arrays = {}
            for shard in shards:
                if not isinstance(shard, str) or pathlib.PurePath(shard).name != shard:
                    raise UserError(f"'{index}' names a shard outside its folder")
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

    with open(path, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > min(LARGEST_HEADER, path.stat().st_size):
        raise UserError(f"'{path}' is refused: its header claims {size} bytes")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"'{path}' is damaged: {error}"[:300]) from None


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [n for n in file.files if n.startswith("param/")] or file.files
            return {name.removeprefix("param/"): file[name] for name in names}
    except Exception as error:  # A damaged archive can fail in many ways.
        raise UserError(f"'{path}' is no readable .npz: {error}"[:300]) from None


def _plain_names(state: Mapping[str, np.ndarray], source: str) -> Arrays:
    """Strips wrappers' prefixes, drops buffers, and resolves the tied head."""
    result: Arrays = {}
    for name, array in state.items():
        plain = name.removeprefix("_orig_mod.").removeprefix("module.")
        if plain.endswith(BUFFERS):
            continue
        if not plain.startswith(("transformer.", "lm_head.")):
            plain = f"transformer.{plain}"
        result[plain] = array
    head = result.pop("lm_head.weight", None)
    table = result.get("transformer.wte.weight")
    if head is not None and table is not None and not np.array_equal(head, table):
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
        _check_gpt2(found, source.path)
        keys = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        extra = {"bias": True, "activation": _activation(found, source.path)}
    else:
        keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        bias = "transformer.ln_f.bias" in source.state
        extra = {"bias": bool(found.get("bias", bias)), "activation": "gelu"}
        extra["dropout"] = float(found.get("dropout", 0.0))
    missing = [key for key in keys if not isinstance(found.get(key), int)]
    if missing:
        raise UserError(
            f"'{source.path}' does not say its {', '.join(missing)}: give the "
            "original's configuration with --source_config=FILE.json"
        )
    fields = {key: found[key] for key in keys}
    if "n_positions" in fields:
        fields["block_size"] = fields.pop("n_positions")
    return {f"model.{key}": value for key, value in (fields | extra).items()}


def _activation(settings: Mapping[str, Any], path: str) -> str:
    kind = settings.get("activation_function", "gelu_new")
    known = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    if kind not in known:
        raise UserError(f"'{path}' has activation_function '{kind}': GELU is known")
    return known[kind]


def _check_gpt2(settings: Mapping[str, Any], path: str) -> None:
    """Refuses what would silently change numbers."""
    width = 4 * settings.get("n_embd", 0)
    for key, plain in {
        "model_type": "gpt2",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "n_inner": width,
    }.items():
        value = settings.get(key)
        if value is not None and value != plain:
            raise UserError(f"'{path}' has {key} {value!r}: only {plain!r} is known")


def training_fields(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the training fields of a nanoGPT (or σ-GPT) train.py checkpoint."""
    config = checkpoint.get("config")
    if not isinstance(config, Mapping):
        return {}
    parts = config.get("gradient_accumulation_steps", 1)
    decays = config.get("decay_lr", True)
    rate = config.get("learning_rate", 6e-4)
    return {
        "batch_size": config.get("batch_size", 12) * parts,
        "accumulation": parts,
        "steps": config.get("max_iters", 600000),
        "optimizer.learning_rate": rate,
        "optimizer.min_learning_rate": config.get("min_lr", 6e-5) if decays else rate,
        "optimizer.warmup_steps": config.get("warmup_iters", 2000) if decays else 0,
        "optimizer.decay_steps": config.get("lr_decay_iters", 600000),
        "optimizer.beta1": config.get("beta1", 0.9),
        "optimizer.beta2": config.get("beta2", 0.95),
        "optimizer.weight_decay": config.get("weight_decay", 0.1),
        "optimizer.grad_clip": config.get("grad_clip", 1.0),
        "eval_interval": config.get("eval_interval", 2000),
        "checkpoint_interval": config.get("eval_interval", 2000),
    }


def moments(
    checkpoint: Mapping[str, Any], table: list[rules.Rule], state: Arrays
) -> tuple[Arrays, Arrays, int] | None:
    """Returns AdamW's two moments by the original's names, and the step count.

    nanoGPT numbers parameters as PyTorch lists them: matrices first, then the rest,
    each in the order of the model.
    """
    optimizer = checkpoint.get("optimizer")
    if not isinstance(optimizer, Mapping) or not optimizer.get("state"):
        return None
    names = [rule.name for rule in table]
    order = [n for n in names if state[n].ndim >= 2]
    order += [n for n in names if state[n].ndim < 2]
    held = optimizer["state"]
    if sorted(held) != list(range(len(order))):
        raise UserError(
            f"the optimizer state has {len(held)} entries for {len(order)} parameters"
        )
    first = {name: held[i]["exp_avg"] for i, name in enumerate(order)}
    second = {name: held[i]["exp_avg_sq"] for i, name in enumerate(order)}
    return first, second, int(np.asarray(held[0]["step"]))


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
    keys = (
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "bias",
        "vocab_size",
        "dropout",
    )
    checkpoint = {
        "model": tensors,
        "model_args": {key: config[key] for key in keys},
        "iter_num": step,
        "best_val_loss": float("inf"),
        "config": {"dataset": "shakespeare_char"},
    }
    temporary = path.with_name(path.name + ".tmp")
    torch.save(checkpoint, temporary)
    temporary.replace(path)
