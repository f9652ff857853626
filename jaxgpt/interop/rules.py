"""Strict tables between an original's parameter names and ours, used both ways."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.errors import UserError, listed, shorten
from jaxgpt.interop import mapped


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter: its name there, its path here, and whether it is transposed.

    Rules with the same path are equal parts of it, concatenated along its last axis.
    """

    name: str
    path: str
    transposed: bool = False


def layer_rules(
    name: str, path: str, bias: bool, transposed: bool = True
) -> list[Rule]:
    """Returns the rules of a linear layer, or of a norm if the path ends in one.

    Linear weights of PyTorch are [out, in], ours [in, out].
    """
    norm = path.rpartition("/")[2].startswith("norm")
    weight = "scale" if norm else "kernel"
    rules = [Rule(f"{name}.weight", f"{path}/{weight}", transposed and not norm)]
    return [*rules, Rule(f"{name}.bias", f"{path}/bias")] if bias else rules


def _paths(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]


def shown(value: Any) -> str:
    """Returns an untrusted value as text for a one-line message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Thousands of digits, or of brackets.
        return f"of type {type(value).__name__}"
    if isinstance(value, str) and value.isprintable():
        text = value
    return shorten(" ".join(text.split()), 97)


LARGEST_NUMBER = 2**31 - 1


def check_setting(
    condition: bool, path: str, key: str, rule: str, value: object
) -> None:
    """Raises `require`'s UserError about a value that an untrusted file holds."""
    if not condition:
        got = f"'{shown(value)}'" if isinstance(value, str) else shown(value)
        raise UserError(f"'{path}': {key} must be {rule}, got {got}")


def read_numbers(
    settings: Mapping[str, Any],
    table: Mapping[str, tuple[str, float | None]],
    path: str,
) -> dict[str, Any]:
    """Returns {our field: number} of {our field: (the original's key, its default)}."""
    fields = {}
    for field, (key, default) in table.items():
        value = given = settings.get(key, default)
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, str):  # YAML reads 6e-4 as text.
            with contextlib.suppress(ValueError):
                value = float(value)
        # Not isinstance: a bool is an int.
        valid = type(value) in (int, float) and abs(value) <= LARGEST_NUMBER
        check_setting(valid, path, key, "a number", given)
        fields[field] = value
    return fields


def _names(names: set[str]) -> str:
    return listed([shown(name) for name in sorted(names)])


def to_jax(
    state: Mapping[str, np.ndarray], rules: Sequence[Rule], abstract: dict, source: str
) -> dict:
    """Returns our parameters from an original's state dict.

    Args:
      state: arrays by the original's names.
      rules: the table; covers every parameter on both sides.
      abstract: the shapes and dtypes of our parameters.
      source: named in errors.

    Raises:
      UserError: for missing or unknown names, a wrong shape, integers, or a weight that
        is not finite.
    """
    names = {rule.name for rule in rules}
    missing, unknown = names - set(state), set(state) - names
    if missing or unknown:
        wrong = [f"lacks {_names(missing)}"] if missing else []
        wrong += [f"has unknown {_names(unknown)}"] if unknown else []
        raise UserError(f"'{source}' has another architecture: it {', '.join(wrong)}")
    leaves, tree = jax.tree.flatten(abstract)
    by_path = _by_path(rules)
    result = []
    for path, leaf in zip(_paths(abstract), leaves, strict=True):
        parts = by_path[path]
        shape = (*leaf.shape[:-1], leaf.shape[-1] // len(parts))
        arrays = [_to_ours(state, rule, shape, leaf.dtype, source) for rule in parts]
        whole = np.concatenate(arrays, -1) if arrays[1:] else arrays[0]
        result.append(jax.device_put(whole))
        # So that only one parameter is in host memory at a time.
        del arrays, whole
        for rule in parts:
            mapped.release(state[rule.name])
    return jax.tree.unflatten(tree, result)


def _by_path(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
    parts: dict[str, list[Rule]] = {}
    for rule in rules:
        parts.setdefault(rule.path, []).append(rule)
    return parts


def _to_ours(state, rule: Rule, shape, dtype, source: str) -> np.ndarray:
    array = np.asarray(state[rule.name])
    array = array.T if rule.transposed else array
    if array.shape != shape:
        order = -1 if rule.transposed else 1
        # With the same blocks, GPT-2's formats differ in these alone.
        other = array.shape == shape[::-1] or rule.path.startswith("positions/")
        raise UserError(
            f"'{source}': {rule.name} has shape {list(array.shape[::order])}, the "
            f"configuration implies {list(shape[::order])}: "
            + ("is --format right?" if other else "pass the right --source_config")
        )
    if array.dtype.kind in "iub":
        raise UserError(
            f"'{source}': {rule.name} holds {array.dtype.name} numbers, which have a "
            "scale elsewhere if they are quantized: save the weights as float32"
        )
    with np.errstate(over="ignore"):  # Overflow of float32 is reported below.
        array = array.astype(dtype, order="C")
    if not np.isfinite(array).all():
        raise UserError(f"'{source}': {rule.name} is not finite everywhere")
    return array


def to_torch(
    params: dict, rules: Sequence[Rule], use_up: bool = False
) -> dict[str, np.ndarray]:
    """Returns an original's state dict, in the order of the table.

    Args:
      params: JAX or NumPy arrays.
      use_up: delete each JAX array that had to be copied, to save memory.

    Raises:
      UserError: for a parameter that the original does not have.
    """
    arrays = dict(zip(_paths(params), jax.tree.leaves(params), strict=True))
    by_path = _by_path(rules)
    if unknown := set(arrays) - set(by_path):
        raise UserError(f"the original has no parameter {_names(unknown)}")
    found = {}
    for path, parts in by_path.items():
        whole = np.asarray(arrays[path])
        split = np.split(whole, len(parts), -1)
        for rule, array in zip(parts, split, strict=True):
            array = array.T if rule.transposed else array
            found[rule.name] = np.ascontiguousarray(array)
        if use_up and not any(
            np.shares_memory(found[rule.name], whole) for rule in parts
        ):
            del whole, split, array
            arrays[path].delete()
    return {rule.name: found[rule.name] for rule in rules}
