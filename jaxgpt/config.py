"""Configs: fields declared, read, overridden, validated and frozen.

A field is declared once, with `option`, in a frozen dataclass next to the code that
reads it; `GROUPS` lists those dataclasses. A config file in configs/ is one experiment:
its `get_config(variant)` returns `base()` with changes. A run freezes the resolved
config as `config.json`; everything after training reads that and executes nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import json
import math
import operator
import pathlib
import pkgutil
import re
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from ml_collections import ConfigDict

from jaxgpt.errors import UserError, atomic_write, os_errors, require

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)  # gs://bucket/run
NAME = re.compile(r"([\w-]+)(?::([^/\\.]*))?")  # quickstart, sigma_char:laptop
MAX_SEED = 2**32 - 1  # JAX's keys hold 32 bits: larger seeds wrap around or overflow.
MAX_INT = 2**31 - 1  # Steps, positions and the like are int32 on devices.

# {group of keys: its dataclass}, imported on first use: each is declared in the layer
# that reads it, above this module. None may import JAX: --help lists every field, and
# should be instant.
GROUPS = {
    "": "jaxgpt.training.config:RunConfig",
    "model": "jaxgpt.model.config:ModelConfig",
    "optimizer": "jaxgpt.training.config:OptimizerConfig",
    "mesh": "jaxgpt.parallel.config:MeshConfig",
    "data": "jaxgpt.data.config:DataConfig",
    "sigma": "jaxgpt.systems.sigma.config:SigmaConfig",
    "task": "jaxgpt.systems.sigma.tasks.config:TaskConfig",
    "diffusion": "jaxgpt.systems.diffusion.config:DiffusionConfig",
    "gssm": "jaxgpt.systems.gssm.config:GSSMConfig",
    "memory": "jaxgpt.systems.memory.config:MemoryConfig",
}


def _to_int(value: Any) -> int:
    number = _to_float(value)  # Reads 1e3 and 7.0 too.
    if not number.is_integer():
        raise ValueError
    # Digits are read exactly: floats skip integers above 2^53.
    return int(value) if str(value).lstrip("+-").isdigit() else int(number)


def _to_float(value: Any) -> float:
    # Python also reads the digits of other scripts.
    if not (str(value).isascii() and math.isfinite(number := float(value))):
        raise ValueError
    return number


def _to_str(value: Any) -> str:
    if not isinstance(value, str | int | float | pathlib.PurePath):
        raise TypeError
    return str(value)


_TRUTH = {"true": True, "1": True, "false": False, "0": False}
# {type: (how a value, possibly text, is read; what it must be)}
_READERS: dict[type, tuple[Callable[[Any], Any], str]] = {
    int: (_to_int, "an integer"),
    float: (_to_float, "a finite number"),
    bool: (lambda value: _TRUTH[str(value).lower()], "true or false"),
    str: (_to_str, "text"),
}


@dataclasses.dataclass(frozen=True)
class Option:
    """A config field; its type is that of its default."""

    default: int | float | str | bool
    help: str
    choices: Collection[str] = ()  # empty for any value; a registry may grow
    min: float | None = None
    max: float | None = None
    above: float | None = None  # exclusive, as `below`
    below: float | None = None
    resumable: bool = False  # may change when a run is resumed
    architecture: bool = False  # is taken over from the weights of `init_from`
    after_training: bool = False  # may change when a finished run is read

    def parse(self, key: str, value: Any) -> Any:
        """Returns a value, possibly text, as the type of the field.

        Raises:
          UserError: for a value the field cannot have.
        """
        read, rule = _READERS[type(self.default)]
        try:
            parsed = read(value)
        except (KeyError, ValueError, TypeError, OverflowError):
            parsed = None
        require(parsed is not None, key, rule, value)
        if self.choices:
            rule = f"one of {', '.join(self.choices)}"
            require(parsed in self.choices, key, rule, parsed)
        largest = self.max
        if isinstance(self.default, int) and not key.endswith("seed"):
            largest = MAX_INT if largest is None else largest
        for holds, sign, limit in (
            (operator.ge, ">=", self.min),
            (operator.le, "<=", largest),
            (operator.gt, ">", self.above),
            (operator.lt, "<", self.below),
        ):
            if limit is not None:
                require(holds(parsed, limit), key, f"{sign} {limit}", parsed)
        return parsed


def option(default: int | float | str | bool, help: str, **attributes: Any) -> Any:
    """Returns a dataclass field that is a config field; see `Option`."""
    declared = Option(default, help, **attributes)
    return dataclasses.field(default=default, metadata={"option": declared})


class OptionGroup:
    """Base of the dataclasses in `GROUPS`.

    Attributes:
      parts: prefixes of keys that change a part of a field's value, such as
        gssm.nodes.Z1.alpha; `with_parts` turns them into the field.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def with_parts(config: ConfigDict, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {key: value} of the fields whose parts are changed.

        Raises:
          UserError: for an unknown part, or an invalid value.
        """
        raise NotImplementedError

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Raises UserError if the group's fields contradict each other or others."""


@functools.cache
def groups() -> dict[str, type[OptionGroup]]:
    """Returns {name: dataclass} of every group."""
    return {name: pkgutil.resolve_name(path) for name, path in GROUPS.items()}


@functools.cache
def options() -> dict[str, Option]:
    """Returns {"group.name": option} of every config field."""
    return {
        f"{group}.{field.name}".removeprefix("."): field.metadata["option"]
        for group, declared in groups().items()
        for field in dataclasses.fields(declared)  # type: ignore[arg-type]
        if "option" in field.metadata
    }


def keys_that(attribute: str) -> list[str]:
    """Returns the keys whose option has an attribute, such as "resumable"."""
    return [key for key, field in options().items() if getattr(field, attribute)]


def user_path(name: str) -> pathlib.Path:
    """Returns a path that a user typed, "~" expanded; UserError if it is not one."""
    if name.startswith("file:///"):
        name = urllib.parse.unquote(name.removeprefix("file://"))
    if ADDRESS.match(name):
        raise UserError(
            f"'{name}' is an address: name a file or folder of this machine (mount the "
            "bucket, or copy what is in it)"
        )
    try:
        path = pathlib.Path(name).expanduser()
        path.absolute().exists()  # Fails too in a working directory that is gone.
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"'{name[:80]}' is not a path: {error}"[:300]) from None
    return path


def shipped(name: str | pathlib.Path) -> pathlib.Path:
    """Returns the path of a file that comes with jaxgpt: "data/shakespeare.txt".

    Wheels have it in jaxgpt/shipped (see setup.py); a checkout, installed with -e or
    not at all, next to the package.
    """
    package = pathlib.Path(__file__).parent
    installed = package / "shipped"
    return (installed if installed.is_dir() else package.parent) / name


def find_path(name: str) -> pathlib.Path:
    """Returns a path that a user typed, or the shipped file of that name."""
    path = user_path(name)
    own = shipped(path)
    return own if own.exists() and not path.exists() else path


def base() -> ConfigDict:
    """Returns the default config, locked: every field and no other."""
    nested: dict[str, Any] = {}
    for key, field in options().items():
        group, _, name = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[name] = field.default
    return ConfigDict(nested).lock()


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
    """Sets dotted keys in place; text is read as the field's type.

    Raises:
      UserError: for an unknown key, or a value that the field cannot have.
    """
    parts: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        check_key(key)
        if key in options():
            parsed = options()[key].parse(key, value)
            config.update_from_flattened_dict({key: parsed})
        else:
            parts.setdefault(key.partition(".")[0], {})[key] = value
    # Last, because the whole field may come after its parts.
    for group, changed in parts.items():
        override(config, groups()[group].with_parts(config, changed))
    return config


def check_key(key: str) -> None:
    """Raises UserError for an unknown key, suggesting the most similar one."""
    group = groups().get(key.partition(".")[0], OptionGroup)
    if key not in options() and not key.startswith(group.parts):
        near = difflib.get_close_matches(key, options(), n=1, cutoff=0.0)
        raise UserError(f"unknown config key '{key}': did you mean '{near[0]}'?")


def check_allowed(keys: Collection[str]) -> None:
    """Raises UserError unless a resumed run may differ from its config in these."""
    require(not isinstance(keys, str), "allow", "a list of config keys", keys)
    for key in keys:
        check_key(key)
        if options()[key].architecture:
            raise UserError(
                f"--allow={key}: it sets the shapes of the run's parameters: use "
                "another --workdir"
            )


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
    """Returns the names as text; suffixes that all of them have only once."""
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


def split_spec(spec: str) -> tuple[str, str]:
    """Returns name or path, and variant, of "NAME", "path.py", "path.py:variant"..."""
    if found := NAME.fullmatch(spec):
        return found[1], found[2] or ""
    # A path may contain colons: C:\configs\mine.py, runs/10:30/mine.py.
    path, _, variant = spec.rpartition(":")
    return (path, variant) if path.endswith(".py") else (spec, "")


def load(spec: str, overrides: Mapping[str, str]) -> ConfigDict:
    """Executes a config file and applies overrides.

    Args:
      spec: the name of a shipped config, or "path.py"; both also with ":variant".
      overrides: {"group.name": value}.

    Raises:
      UserError: for a missing file, one without get_config, or a bad override.
    """
    path, variant = split_spec(spec)
    named = NAME.fullmatch(path)
    file = shipped(f"configs/{path}.py") if named else find_path(path)
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in shipped("configs").glob("*.py")))
        raise UserError(f"no config file '{path}': name a .py file, or one of {names}")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file '{path}' is not Python: its name must end in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(variant)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # Whatever the user's code raises.
        raise UserError(
            f"config file '{path}' cannot be read: {_one_line(error)}"
        ) from None
    if (
        not isinstance(config, ConfigDict)
        or not options().keys() <= flatten(config).keys()
    ):
        raise UserError(f"'{path}': get_config must return base() with its changes")
    return validate(override(config, overrides))


def _one_line(error: Exception) -> str:
    """Returns type and message, without the middle of a long one."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-100:]}"


def validate(config: ConfigDict) -> ConfigDict:
    """Returns the config after checking every value, then each group's rules.

    Raises:
      UserError: naming the first invalid field.
    """
    override(config, flatten(config))
    for group in groups().values():
        group.validate(config)
    return config


def make_folder(workdir: pathlib.Path) -> None:
    """Makes the folder of a run; UserError if it cannot be made."""
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)


def writing(workdir: pathlib.Path) -> AbstractContextManager[None]:
    """Turns an OSError into one line: the folder of the run cannot be written."""
    return os_errors(f"--workdir '{workdir}' cannot be written")


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Freezes a resolved config as JSON, atomically."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(config.to_dict(), indent=2) + "\n")


def load_frozen(workdir: pathlib.Path) -> ConfigDict:
    """Reads the config.json of a run; UserError if it is missing or damaged."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"'{workdir}' holds no run: there is no config.json in it")
    try:
        saved = flatten(json.loads(path.read_text(encoding="utf-8-sig")))
        if "model_type" in saved:  # Of Hugging Face.
            raise UserError(
                f"'{workdir}' is a model, not a run: import it with convert"
            )
        return validate(override(base(), saved))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old value, new value)} for the fields that differ."""
    a, b = flatten(old), flatten(new)
    return {key: (a[key], b[key]) for key in options() if a[key] != b[key]}
