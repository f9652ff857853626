"""σ-GPT that starts as a causal model, with the same logits left to right.

At first nothing depends on the target position: training has to give it a meaning.
"""

from __future__ import annotations

import copy
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.errors import require
from jaxgpt.model.config import ModelConfig
from jaxgpt.model.positions import turn


def applies(config: ConfigDict, start: ConfigDict) -> bool:
    """Returns whether a new run is σ-GPT and what it starts from is causal."""
    return (config.system, start.system) == ("sigma", "causal")


def as_sigma(start: ConfigDict) -> ConfigDict:
    """Returns the config of σ-GPT that can have the weights of a causal model.

    Raises:
      UserError: if σ-GPT cannot be that model.
    """
    positions = start.model.positions
    rule = "learned or rope, to start σ-GPT from"
    require(positions in ("learned", "rope"), "model.positions", rule, positions)
    changes = {"system": "sigma", "sigma.separate_tables": positions == "learned"}
    return configs.validate(configs.override(copy.deepcopy(start), changes))


def initial_params(causal: dict, fresh: dict, config: ModelConfig) -> dict:
    """Returns the parameters of σ-GPT that start as a causal model's.

    Args:
      causal: its parameters.
      fresh: of σ-GPT; what has no counterpart in the causal model stays as it is: the
        beginning token, and adaptive norms, which have no effect at first.
    """
    found = _merged(fresh, causal)
    found["table"] = _with_begin_token(causal["table"], fresh["table"])
    if not config.encoding.rotate:
        own = _with_begin_token(
            causal["positions"]["table"], fresh["positions"]["table"]
        )
        targets = jnp.zeros_like(fresh["positions"]["target_table"])
        return found | {"positions": {"table": own, "target_table": targets}}
    # Absolute positions, which σ-GPT has in addition to its rotations.
    found["positions"] = {"table": jnp.zeros_like(fresh["positions"]["table"])}
    # Left to right, σ-GPT turns queries by one position more than RoPE does, that of
    # the token to predict. With keys turned by one more, too, all scores are equal.
    query, key = jnp.zeros((1, 1), int), jnp.ones((1, 1), int)
    for block in found["transformer"]["blocks"].values():
        qkv = block["attn"]["qkv"]
        for name, array in qkv.items():
            rows_BTC = jnp.atleast_2d(array)[None]
            qkv[name] = turn(rows_BTC, query, key, 2, config).reshape(array.shape)
    return found


def _with_begin_token(table: Any, fresh: Any) -> Any:
    """Returns a table with the rows that only a fresh one has."""
    return jnp.concatenate([table, fresh[len(table) :]])


def _merged(fresh: dict, found: dict) -> dict:
    """Returns nested dicts with the leaves of both, those found first."""
    merge = lambda a, b: (
        _merged(a, b) if isinstance(b, dict) and isinstance(a, dict) else b
    )
    return fresh | {key: merge(fresh.get(key), value) for key, value in found.items()}
