"""What each original means: configuration, names, optimizer state."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.interop import nanollama, rules, teenygpt, weights
from jaxgpt.interop.rules import shown
from jaxgpt.interop.weights import SIZES, Arrays, Source
from jaxgpt.systems.registry import build_system, system_class

PLAIN_GPT2 = {
    "model_type": "gpt2",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# The fields of `config.model` that GPT-2's family leaves no choice in.
PLAIN_BLOCKS = {
    "positions": "learned",
    "norm": "layer",
    "norm_epsilon": 1e-5,
    "final_norm": True,
    "attention_bias": True,
    "feed_forward_width": 0,
    "tied_head": True,
    "qk_norm": False,
}
LARGEST_NUMBER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Format:
    """One original: the system it becomes, and how its weights lie."""

    system: str
    conv1d: bool = False
    module: ModuleType | None = None
    activations: tuple[str, ...] = ("gelu",)

    def rules(self, model: ConfigDict) -> list[rules.Rule]:
        """Returns the table of names for a model of this format."""
        if self.module:
            return self.module.rules(model)
        return rules.gpt_rules(model.n_layer, model.bias, self.conv1d)

    def check(self, config: ConfigDict) -> None:
        """Raises UserError where a run is another model than the original can be."""
        if not issubclass(system_class(config.system), system_class(self.system)):
            raise UserError(f"is a {config.system} run")
        if config.system == "sigma" and config.sigma.begin_token:
            raise UserError("has a beginning token (sigma.begin_token)")
        fields = self.module.quirks(config.model) if self.module else PLAIN_BLOCKS
        for key, value in fields.items():
            if config.model[key] != value:
                raise UserError(
                    f"has model.{key}={config.model[key]}: the original has {value}"
                )


FORMATS = {
    "gpt2": Format("causal", conv1d=True, activations=("gelu", "gelu_tanh")),
    "nanogpt": Format("causal"),
    "sigma-gpt": Format("sigma"),
    "teenygpt": Format("causal", module=teenygpt, activations=("relu", "swiglu")),
    "nanollama": Format("causal", module=nanollama, activations=("swiglu",)),
}


def model_fields(name: str, source: Source) -> dict[str, Any]:
    """Returns our `model.*` fields for a source.

    Raises:
      UserError: naming a setting that is missing, or one that this core has not.
    """
    found = source.settings
    if name == "teenygpt":
        return _teeny_fields(source)
    if name == "nanollama":
        return _nanollama_fields(source)
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
    _check_present(keys, source)
    fields = {key: _size(found, key, source.path) for key in keys}
    _check_sizes(fields, source)
    if name == "gpt2":
        _check(found, {"n_inner": 4 * fields["n_embd"]}, source.path)
        extra["activation"] = _activation(found, source.path)
    if "n_positions" in fields:
        fields["block_size"] = fields.pop("n_positions")
    return {f"model.{key}": value for key, value in (fields | extra).items()}


def _check_present(keys: Iterable[str], source: Source) -> None:
    missing = [key for key in keys if source.settings.get(key) is None]
    if missing:
        raise UserError(
            f"'{source.path}' does not say its {', '.join(missing)}: give the "
            "original's configuration with --source_config=FILE.json, or its --format"
        )


def _teeny_fields(source: Source) -> dict[str, Any]:
    settings = source.settings
    _check_present((*teenygpt.SIZES, *teenygpt.KINDS), source)
    sizes = {key: _size(settings, key, source.path) for key in teenygpt.SIZES}
    _check_held(sizes, teenygpt.sizes_held(source.state), source)
    fields: dict[str, Any] = {teenygpt.SIZES[key]: n for key, n in sizes.items()}
    fields |= teenygpt.choices(settings, source.path)
    fields |= teenygpt.quirks(fields)
    fields["dropout"] = _number(settings, "p_dropout", 0.0, source.path)
    return {f"model.{key}": value for key, value in fields.items()}


def _nanollama_fields(source: Source) -> dict[str, Any]:
    settings = source.settings
    _check_present(nanollama.SIZES, source)
    _check(settings, nanollama.KNOWN, source.path)
    sizes = {key: _size(settings, key, source.path) for key in nanollama.SIZES}
    _check_held(sizes, nanollama.sizes_held(source.state), source)
    fields: dict[str, Any] = {nanollama.SIZES[key]: n for key, n in sizes.items()}
    for key, (field, default) in nanollama.NUMBERS.items():
        fields[field] = _number(settings, key, default, source.path)
    fields |= nanollama.quirks(fields)
    return {f"model.{key}": value for key, value in fields.items()}


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
    _check_held(fields, held, source)


def _check_held(
    fields: Mapping[str, int], held: Mapping[str, int], source: Source
) -> None:
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
        entry = held[i] if isinstance(held[i], Mapping) else {}
        for key in ("exp_avg", "exp_avg_sq"):
            if not weights.is_numbers(entry.get(key)):
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


@dataclasses.dataclass(frozen=True)
class Original:
    """An original's weights in our layout, and where its training stood."""

    config: ConfigDict
    params: dict
    moments: dict[str, dict] | None
    count: int
    step: int


def read_original(
    name: str, source_path: str, settings_file: str | None = None
) -> Original:
    """Reads an original's weights into our layout; writes nothing.

    Args:
      name: a key of `FORMATS`.
      source_path: .pt, .bin, .npz, .safetensors, a Hugging Face folder or GPT-2 name.
      settings_file: JSON with the original's configuration.

    Raises:
      UserError: for a source that is missing, damaged or does not fit.
    """
    form = FORMATS[name]
    source = weights.read(source_path, settings_file)
    fields = {"system": form.system} | training_fields(source)
    fields |= model_fields(name, source)
    try:
        config = configs.validate(configs.override(configs.base(), fields))
        system = build_system(config)
    except UserError as error:
        raise UserError(f"'{source_path}': {error}") from None
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    table = form.rules(config.model)
    to_jax = lambda arrays: rules.to_jax(arrays, table, abstract, source_path)
    params = to_jax(source.state)
    held = moments(source, table)
    if held is None:
        return Original(config, params, None, 0, 0)
    first, second, count, step = held
    both = {"mu": to_jax(first), "nu": to_jax(second)}
    return Original(config, params, both, count, step)
