"""AdamW's moments in and out, in the layout of PyTorch's state_dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.interop.rules import LARGEST_NUMBER, check_setting, read_numbers
from jaxgpt.interop.weights import Arrays, is_numbers

KEYS = {"mu": "exp_avg", "nu": "exp_avg_sq"}  # optax's names and PyTorch's.
OURS = {
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "decoupled_weight_decay": True,
}


def held_by(checkpoint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns an optimizer's untrusted state_dict; {} if it holds no state."""
    optimizer = checkpoint.get(key)
    if not isinstance(optimizer, Mapping):
        return {}
    state = optimizer.get("state")
    # An array has no truth value.
    empty = state is None or (isinstance(state, Mapping | list | str) and not state)
    return {} if empty else optimizer


def group_sizes(optimizer: Any) -> tuple[int, ...]:
    """Returns how many parameters each group has; () if unknown.

    Args:
      optimizer: an untrusted state_dict, which numbers parameters group by group.
    """
    groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
    groups = groups if isinstance(groups, list) else []
    lists = [g.get("params") if isinstance(g, Mapping) else None for g in groups]
    known = [held for held in lists if isinstance(held, list)]
    in_order = [*range(sum(map(len, known)))] == [i for held in known for i in held]
    return tuple(len(held) for held in known) if in_order else ()


def read_moments(
    optimizer: Mapping[str, Any], parameters: Arrays, path: str
) -> tuple[dict[str, Arrays], int]:
    """Returns ({"mu" and "nu": arrays by name}, the number of updates).

    Args:
      optimizer: an untrusted state_dict.
      parameters: in the order in which PyTorch numbers them.
      path: named in errors.

    Raises:
      UserError: for the state of another optimizer or of other parameters, or one
        that AdamW cannot have.
    """
    held, names = optimizer["state"], [*parameters]
    another = f"'{path}' holds the state of another optimizer"
    if not isinstance(held, Mapping) or set(held) != set(range(len(names))):
        raise UserError(f"{another}: expected {len(names)} entries, one per array")
    moments: dict[str, Arrays] = {"mu": {}, "nu": {}}
    for i, name in enumerate(names):
        entry = held[i] if isinstance(held[i], Mapping) else {}
        for ours, key in KEYS.items():
            if not is_numbers(entry.get(key)):
                raise UserError(f"{another}: {name} has no {key}")
            found, wanted = list(entry[key].shape), list(parameters[name].shape)
            if found != wanted:
                raise UserError(f"{another}: {key} of {name} is {found}, not {wanted}")
            moments[ours][name] = entry[key]
        if not moments["nu"][name].min() >= 0:  # Or it is not a number.
            raise UserError(
                f"'{path}': the optimizer's {KEYS['nu']} of {name} must be >= 0: leave "
                "the optimizer out of the file to import the weights alone"
            )
    return moments, read_count("step", held[0].get("step"), path)


def differences(optimizer: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns notes for the user on how training here differs.

    Args:
      optimizer: a state_dict whose state `read_moments` has read.
    """
    groups = optimizer.get("param_groups")
    groups = groups if isinstance(groups, list) else []
    found = {}
    for group in (g for g in groups if isinstance(g, Mapping)):
        # Adam adds the decay to the gradient, which makes no difference if it is 0.
        decayed = {} if group.get("weight_decay") else {"decoupled_weight_decay": True}
        for key, ours in OURS.items():
            value = ({**group} | decayed).get(key, ours)
            if type(value) in (bool, int, float) and value != ours:
                found[key] = f"its optimizer has {key} {value}, training here {ours}"
    state = optimizer["state"]
    if len({str(entry.get("step")) for entry in state.values()}) > 1:
        first = int(state[0]["step"])
        found["step"] = f"not all its arrays were updated {first} times, as is assumed"
    return tuple(found.values())


def read_settings(optimizer: Any, path: str) -> dict[str, Any]:
    """Returns the fields that an optimizer's only group shows, by dotted keys.

    PyTorch's AdamW decays all parameters of a group. A group's rate is the current
    one, unless a scheduler has kept the initial one.
    """
    if len(group_sizes(optimizer)) != 1:
        return {}
    group = optimizer["param_groups"][0]
    betas = group.get("betas")
    valid = isinstance(betas, tuple | list) and len(betas) == 2
    check_setting(valid, path, "betas", "two numbers", betas)
    held = dict(group) | {"beta1": betas[0], "beta2": betas[1]}
    table = {
        "optimizer.learning_rate": ("initial_lr", group.get("lr")),
        "optimizer.beta1": ("beta1", None),
        "optimizer.beta2": ("beta2", None),
        "optimizer.weight_decay": ("weight_decay", None),
    }
    return read_numbers(held, table, path) | {"optimizer.decays": "all"}


def read_count(key: str, value: Any, path: str) -> int:
    """Returns a number of steps; UserError for anything else."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()  # PyTorch counts in float32.
    valid = type(value) in (int, float) and 0 <= value <= LARGEST_NUMBER
    valid = valid and value == int(value)
    check_setting(valid, path, key, "a number of steps", value)
    return int(value)


def state_dict(
    moments: Mapping[str, Arrays],
    count: int,
    groups: Sequence[tuple[Sequence[str], float]],
    rate: float,
    config: ConfigDict,
) -> dict[str, Any]:
    """Returns what torch.optim.AdamW's load_state_dict reads.

    Args:
      moments, count: as `read_moments` returns them.
      groups: (names in PyTorch's order, weight decay) of each group.
      rate: the learning rate.
      config: `config.optimizer`.
    """
    names = [name for group, _ in groups for name in group]
    state = {
        i: {
            "step": np.array(count, np.float32),
            **{theirs: moments[ours][name] for ours, theirs in KEYS.items()},
        }
        for i, name in enumerate(names)
    }
    param_groups, first = [], 0
    for group, decay in groups:
        param_groups.append(
            {
                "lr": rate,
                "betas": (config.beta1, config.beta2),
                "weight_decay": decay,
                **OURS,
                "foreach": None,
                "capturable": False,
                "differentiable": False,
                "fused": None,
                "params": [*range(first, first + len(group))],
            }
        )
        first += len(group)
    return {"state": state, "param_groups": param_groups}
