"""nanollama (composable-llm): its configuration, and where its parameters stand.

A causal transformer whose RoPE turns the fastest pair of channels by a whole turn a
token: that pair never moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxgpt.interop.rules import Rule
from jaxgpt.interop.weights import Arrays

# The original's names of what a configuration must say, and ours.
SIZES = {
    "nb_layers": "n_layer",
    "nb_heads": "n_head",
    "emb_dim": "n_embd",
    "seq_len": "block_size",
    "vocab_size": "vocab_size",
    "ffn_dim": "feed_forward_width",
}
# What it may say, and what it means where it does not.
NUMBERS = {"rope_theta": ("rope_theta", 1e4), "norm_eps": ("norm_epsilon", 1e-5)}
KNOWN = {"weight_tying": False}


def sizes_held(state: Arrays) -> dict[str, int]:
    """Returns the sizes that the weights have, by the original's names."""
    layers = {name.split(".")[1] for name in state if name.startswith("layers.")}
    held = {"nb_layers": len(layers)}
    table = state.get("embeddings.weight")
    if table is not None and table.ndim == 2:
        held |= {"vocab_size": table.shape[0], "emb_dim": table.shape[1]}
    down = state.get("layers.0.ffn.fc2.weight")
    if down is not None and down.ndim == 2:
        held["ffn_dim"] = down.shape[1]
    return held


def quirks(model: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `config.model` that all models of the original share."""
    del model
    return {
        "positions": "rope",
        "rope_frequency": 2 * math.pi,
        "rope_pairs": "neighbours",
        "norm": "rms",
        "final_norm": True,
        "bias": False,
        "activation": "swiglu",
        "tied_head": False,
        "qk_norm": False,
    }


def rules(model: ConfigDict) -> list[Rule]:
    """Returns the table of names."""
    table = [Rule("embeddings.weight", "table")]
    for i in range(model.n_layer):
        there, here = f"layers.{i}", f"transformer/blocks/{i}"
        table += [
            Rule(f"{there}.attn.qkv_mat.weight", f"{here}/attn/qkv/kernel", True),
            Rule(f"{there}.attn.output.weight", f"{here}/attn/out/kernel", True),
            Rule(f"{there}.ffn.fc1.weight", f"{here}/mlp/up/kernel", True),
            Rule(f"{there}.ffn.fc2.weight", f"{here}/mlp/down/kernel", True),
            Rule(f"{there}.attn_norm.weight", f"{here}/norm_1/scale"),
            Rule(f"{there}.ffn_norm.weight", f"{here}/norm_2/scale"),
        ]
    table.append(Rule("output.weight", "unembed/kernel", True))
    table.append(Rule("output_norm.weight", "transformer/norm_f/scale"))
    return table
