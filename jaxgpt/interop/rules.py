"""Strict tables from an original's parameter names to ours, used both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxgpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter: its name there, its path here, and whether it lies transposed.

    Rules with the same path are equal parts of it, side by side along its last axis.
    """

    name: str
    path: str
    transposed: bool = False


def gpt_rules(n_layer: int, bias: bool, conv1d: bool) -> list[Rule]:
    """Returns the table of GPT-2's family.

    Args:
      n_layer: blocks.
      bias: whether linear layers and norms have biases.
      conv1d: weights lie [in, out], as OpenAI's (and ours), not [out, in].
    """
    rules = [
        Rule("transformer.wte.weight", "table"),
        Rule("transformer.wpe.weight", "positions/table"),
    ]

    def add(name: str, path: str, kernel: bool) -> None:
        weight = "kernel" if kernel else "scale"
        rules.append(Rule(f"{name}.weight", f"{path}/{weight}", kernel and not conv1d))
        if bias:
            rules.append(Rule(f"{name}.bias", f"{path}/bias"))

    for i in range(n_layer):
        there, here = f"transformer.h.{i}", f"transformer/blocks/{i}"
        add(f"{there}.ln_1", f"{here}/norm_1", False)
        add(f"{there}.attn.c_attn", f"{here}/attn/qkv", True)
        add(f"{there}.attn.c_proj", f"{here}/attn/out", True)
        add(f"{there}.ln_2", f"{here}/norm_2", False)
        add(f"{there}.mlp.c_fc", f"{here}/mlp/up", True)
        add(f"{there}.mlp.c_proj", f"{here}/mlp/down", True)
    add("transformer.ln_f", "transformer/norm_f", False)
    return rules


def _paths(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]


def shown(value: Any) -> str:
    """Returns a value that a file holds as it fits into the one line of an error."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Thousands of digits, or of brackets.
        return f"of type {type(value).__name__}"
    if isinstance(value, str) and value.isprintable():
        text = value
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:97]}..."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, sorted(names)[:3])) + more


def to_jax(
    state: Mapping[str, np.ndarray], rules: Sequence[Rule], abstract: dict, source: str
) -> dict:
    """Returns our parameters from an original's state dict.

    Args:
      state: arrays by the original's names.
      rules: the table; every name and every parameter stands in it once.
      abstract: the shapes and dtypes of our parameters.
      source: named in errors.

    Raises:
      UserError: naming keys that are missing or left over, a shape that does not
        fit, or a weight that is not finite.
    """
    names = {rule.name for rule in rules}
    missing, extra = names - set(state), set(state) - names
    if missing or extra:
        parts = [f"lacks {_listed(list(missing))}"] if missing else []
        parts += [f"has unknown {_listed(list(extra))}"] if extra else []
        raise UserError(f"'{source}' is of another architecture: it {', '.join(parts)}")
    leaves, tree = jax.tree.flatten(abstract)
    by_path = _by_path(rules)
    result = []
    for path, leaf in zip(_paths(abstract), leaves, strict=True):
        held = by_path[path]
        shape = (*leaf.shape[:-1], leaf.shape[-1] // len(held))
        arrays = [_part(state, rule, shape, leaf.dtype, source) for rule in held]
        result.append(np.concatenate(arrays, -1) if arrays[1:] else arrays[0])
    return jax.tree.unflatten(tree, result)


def _by_path(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
    parts: dict[str, list[Rule]] = {}
    for rule in rules:
        parts.setdefault(rule.path, []).append(rule)
    return parts


def _part(state, rule: Rule, shape, dtype, source: str) -> np.ndarray:
    """Returns the array of one rule as it lies here."""
    array = np.asarray(state[rule.name])
    array = array.T if rule.transposed else array
    if array.shape != shape:
        order = -1 if rule.transposed else 1
        raise UserError(
            f"'{source}': {rule.name} is {list(array.shape[::order])} where the "
            f"configuration makes it {list(shape[::order])}: is this its --format?"
        )
    with np.errstate(over="ignore"):  # What float32 cannot hold is named below.
        array = np.ascontiguousarray(array).astype(dtype)
    if not np.isfinite(array).all():
        raise UserError(f"'{source}': {rule.name} is not finite everywhere")
    return array


def to_torch(params: dict, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Returns an original's state dict, in the order of the table.

    Raises:
      UserError: naming a parameter that the original has not.
    """
    arrays = dict(zip(_paths(params), jax.tree.leaves(params), strict=True))
    by_path = _by_path(rules)
    more = set(arrays) - set(by_path)
    if more:
        raise UserError(f"the original has no {_listed(list(more))}: this run has")
    found = {}
    for path, parts in by_path.items():
        split = np.split(np.asarray(arrays[path]), len(parts), -1)
        for rule, array in zip(parts, split, strict=True):
            found[rule.name] = array.T if rule.transposed else array
    return {rule.name: np.ascontiguousarray(found[rule.name]) for rule in rules}
