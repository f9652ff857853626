"""Configurations: read, changed, checked, frozen. `fields.py` has every field.

A config file in configs/ holds one experiment: a function `get_config(variant)` that
returns `base()` with its differences. A run freezes the resolved config as
`config.json`; everything after training reads that file and executes nothing.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.fields import FIELDS, MAX_SEED, Field


def user_path(name: str) -> pathlib.Path:
    """Returns the path a user named, "~" expanded; UserError where it cannot be one."""
    try:
        path = pathlib.Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"'{name[:80]}' is no path: {error}"[:300]) from None
    return path


def base() -> ConfigDict:
    """Returns the default config, locked: every field of `FIELDS` and no other."""
    config = ConfigDict()
    for key, field in FIELDS.items():
        *groups, name = key.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[name] = field.default
    return config.lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} for a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Sets dotted keys in place; strings are read as the field's type.

    Raises:
      UserError: for an unknown key (naming the nearest known one) or a value that
        the field cannot hold.
    """
    for key, value in changes.items():
        check_key(key)
        config.update_from_flattened_dict({key: _parse(key, FIELDS[key], value)})
    return config


def check_key(key: str) -> None:
    """Raises UserError for an unknown key, naming the nearest known one."""
    if key not in FIELDS:
        near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.0)
        raise UserError(f"unknown config key '{key}': did you mean '{near[0]}'?")


def with_variant(
    config: ConfigDict, variant: str, variants: Mapping[str, Mapping[str, Any]]
) -> ConfigDict:
    """Applies the named variant of a config file; "" changes nothing."""
    if variant and variant not in variants:
        raise UserError(
            f"unknown variant ':{variant}': this config has {_listed(variants)}"
        )
    return override(config, variants.get(variant, {}))


def _listed(variants: Iterable[str]) -> str:
    """Returns names to read; endings that all of them have, once."""
    sizes: dict[str, list[str]] = {}
    for name in variants:
        stem, _, size = name.rpartition("-")
        if stem in sizes:
            sizes[stem].append(f"-{size}")
        else:
            sizes[name] = []
    ends = list(sizes.values())
    if len(ends) > 1 and ends[0] and all(end == ends[0] for end in ends):
        stems = ", ".join(f":{stem}" for stem in sizes)
        return f"{stems}, each of them also with {', '.join(ends[0])}"
    return ", ".join(f":{name}" for name in variants) or "none"


def _parse(key: str, field: Field, value: Any) -> Any:
    kind = type(field.default)
    try:
        if kind is bool and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        elif kind is int and float(value) != int(float(value)):
            raise ValueError
        elif kind is int:
            value = (
                int(value) if str(value).lstrip("+-").isdigit() else int(float(value))
            )
        elif kind is bool and not isinstance(value, bool):
            raise ValueError
        value = kind(value)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError, TypeError, OverflowError):
        raise UserError(
            f"config key '{key}' holds {_KINDS[kind]}: '{value}' is none"
        ) from None
    if field.choices and value not in field.choices:
        raise UserError(
            f"config key '{key}' is one of {', '.join(field.choices)}: not '{value}'"
        )
    if field.minimum is not None and not value >= field.minimum:
        raise UserError(
            f"config key '{key}' is at least {field.minimum:g}: not {value}"
        )
    return value


_KINDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
}


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes --config.a.b=value (or two words) out of a command line.

    Returns:
      (the other arguments, {"a.b": "value"}).
    """
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        overrides[key] = value if equals else next(words, "")
    return rest, overrides


def memory_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes --config.memory.X=value out of a command line that reads a run.

    A memory is what a trained model may be given another of: with system=memory and
    memory.mode=output even one that had none.

    Raises:
      UserError: for other fields, which are the run's.
    """
    rest, overrides = split_overrides(argv)
    for key in overrides:
        if not key.startswith("memory.") and key != "system":
            raise UserError(
                f"--config.{key} is for training: here only --config.memory.* and "
                "--config.system=memory change a run"
            )
    return rest, overrides


def describe_fields(prefix: str = "") -> str:
    """Returns the help text of every field, for --help, or of those of a group."""
    lines = ["config fields, set by --config.NAME=VALUE (default):"]
    fields = {key: f for key, f in FIELDS.items() if key.startswith(prefix)}
    for key, field in fields.items():
        choices = f" [{'|'.join(field.choices)}]" if field.choices else ""
        lines.append(f"  {key} ({field.default!r})\n      {field.help}{choices}")
    return "\n".join(lines)


def load(spec: str, overrides: Mapping[str, str]) -> ConfigDict:
    """Executes a config file, "path.py" or "path.py:variant", and applies overrides.

    Raises:
      UserError: for a missing file, one without get_config, or a bad override.
    """
    path, _, variant = spec.partition(":")
    file = user_path(path)
    if not file.is_file():
        known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        hint = f": there are {', '.join(known)}" if known else ""
        raise UserError(f"no config file '{path}'{hint}")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file '{path}' is not Python: its name ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(variant)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(
            f"config file '{path}' cannot be read: {_one_line(error)}"
        ) from None
    if (
        not isinstance(config, ConfigDict)
        or not FIELDS.keys() <= flatten(config).keys()
    ):
        raise UserError(f"'{path}': get_config must return base() with its differences")
    return validate(override(config, overrides))


def _one_line(error: Exception) -> str:
    """Returns kind and message; of a long one (a locked config's) the two ends."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-100:]}"


def validate(config: ConfigDict) -> ConfigDict:
    """Checks every value and the relations between fields; returns the config.

    Raises:
      UserError: naming the first field that cannot be.
    """
    override(config, flatten(config))
    for name, seed in (
        ("seed", config.seed),
        ("gssm.graph_seed", config.gssm.graph_seed),
        ("task.data_seed", config.task.data_seed),
    ):
        if seed > MAX_SEED:
            raise UserError(f"{name} is at most {MAX_SEED}: not {seed}")
    if config.gssm.clip >= 1:
        raise UserError(f"gssm.clip is below 1: not {config.gssm.clip}")
    if config.batch_size % config.accumulation:
        raise UserError(
            f"batch_size {config.batch_size} does not divide into accumulation "
            f"{config.accumulation} micro-batches"
        )
    profiled_steps(config.profile)
    rows, groups = config.batch_size, config.deterministic_groups
    if config.deterministic and rows % groups:
        raise UserError(
            f"batch_size {rows} does not divide into deterministic_groups {groups}"
        )
    if not 0 <= config.model.dropout < 1:
        raise UserError(f"model.dropout is below 1: not {config.model.dropout}")
    if not 0 < config.data.val_fraction < 1:
        raise UserError(
            f"data.val_fraction is between 0 and 1: not {config.data.val_fraction}"
        )
    if config.data.val_fraction + config.data.test_fraction >= 1:
        raise UserError(
            f"data.val_fraction {config.data.val_fraction} and data.test_fraction "
            f"{config.data.test_fraction} leave nothing to train on: lower one"
        )
    double = config.model.positions in ("learned", "sinusoidal")
    if config.system.startswith("sigma") and not double:
        raise UserError(
            f"model.positions={config.model.positions} is for causal models: σ-GPT has "
            "double positions, learned or sinusoidal"
        )
    rate_steps(config.optimizer.rates)
    for name in ("order_start", "left_to_right_share"):
        if config.sigma[name] > 1:
            raise UserError(f"sigma.{name} is at most 1: not {config.sigma[name]}")
    if config.system == "memory":
        _validate_memory(config)
    if config.optimizer.ema_decay >= 1:
        raise UserError(
            f"optimizer.ema_decay is below 1: not {config.optimizer.ema_decay}"
        )
    return config


def profiled_steps(text: str) -> range:
    """Reads `profile`: the steps that FIRST:LAST names, both included.

    Raises:
      UserError: for anything else but an empty text.
    """
    first, _, last = text.partition(":")
    if not text:
        return range(0)
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"profile is FIRST:LAST, steps such as 10:15: not '{text}'")
    return range(int(first), int(last) + 1)


def _validate_memory(config: ConfigDict) -> None:
    c = config.memory
    if config.accumulation > 1:
        raise UserError(
            "accumulation is 1 for system=memory: the memory changes with every segment"
        )
    if config.deterministic and c.shared:
        raise UserError(
            "deterministic goes through a batch in groups of rows, and what they write "
            "to one memory is no longer in order: leave memory.shared at false"
        )
    if config.deterministic and c.mode == "attention":
        raise UserError(
            "deterministic does not go with memory.mode=attention, whose gradients "
            "differ in the last bit between numbers of devices: leave one of them"
        )
    if config.deterministic and c.reading == "shuffled":
        raise UserError(
            "deterministic goes through a batch in groups of rows, which may be one "
            "row: memory.reading=shuffled, another row's memory, does not go with it"
        )
    for name in ("forgetfulness_factor", "decay", "weight"):
        if c[name] > 1:
            raise UserError(f"memory.{name} is at most 1: not {c[name]}")
    layers = config.model.n_layer
    for name, last in (("layer", layers - 1), ("store_layer", layers)):
        if not -1 <= c[name] <= last:
            raise UserError(f"memory.{name} is -1 to {last}: not {c[name]}")
    if c.mode == "attention" and config.model.positions == "rope":
        raise UserError(
            "memory.mode=attention does not go with model.positions=rope, which turns "
            "keys by their place: take learned, sinusoidal, alibi or none"
        )


def rate_steps(text: str) -> list[tuple[int, float]]:
    """Reads optimizer.rates: [(step, rate from there on)], the steps growing.

    Raises:
      UserError: for anything else.
    """
    try:
        pairs = [word.split(":") for word in text.split(",") if text]
        found = [(int(step), float(rate)) for step, rate in pairs]
        if found != sorted(set(found)) or any(s < 0 or r < 0 for s, r in found):
            raise ValueError
    except ValueError:
        raise UserError(
            f"optimizer.rates are like 2000:2e-5,6000:4e-6: not '{text}'"
        ) from None
    return found


def make_folder(workdir: pathlib.Path) -> None:
    """Makes the folder of a run; UserError where it cannot be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir '{workdir}' cannot be written: {error.strerror}"
        ) from None


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Freezes a resolved config as JSON, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    temporary.replace(path)


def load_frozen(workdir: pathlib.Path) -> ConfigDict:
    """Reads the config.json of a run; UserError where it is missing or damaged."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"'{workdir}' holds no run: there is no config.json in it")
    try:
        return validate(override(base(), flatten(json.loads(path.read_text()))))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old value, new value)} for the fields that differ."""
    a, b = flatten(old), flatten(new)
    return {key: (a[key], b[key]) for key in FIELDS if a[key] != b[key]}
