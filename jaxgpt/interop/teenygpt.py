"""teenyGPT: what its configuration means here, and where its parameters stand.

The original's quirks are settings of the core: no last norm, a head of its own with a
bias, a feed-forward as wide as the stream, and RoPE whose fastest pair turns by
theta ^ (2 / K) radians a token, because it counts pairs from -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.interop.rules import Rule, shown
from jaxgpt.interop.weights import Arrays

POSITIONS = {
    "ALIBI": "alibi",
    "SINUSOIDAL": "sinusoidal",
    "LEARNED_EMBEDDING": "learned",
    "LEARNED_SINUSOIDAL": "learned-sinusoidal",
    "ROPE": "rope",
    "NONE": "none",
}
ACTIVATIONS = {"CLASSIC": "relu", "SWISH_GLU": "swiglu"}
NORMS = {"CLASSIC": "layer", "RMS": "rms", "NONE": "none"}
# The original's names of what a configuration must say, and ours.
SIZES = {
    "n_attn_layers": "n_layer",
    "n_attn_heads": "n_head",
    "n_dim": "n_embd",
    "n_context_max": "block_size",
    "n_vocab": "vocab_size",
}
KINDS = {
    "positional_encoding_type": ("positions", POSITIONS),
    "ffn_type": ("activation", ACTIVATIONS),
    "layer_norm_type": ("norm", NORMS),
}


def choices(settings: Mapping[str, Any], path: str) -> dict[str, str]:
    """Returns our names of the original's three choices; UserError for another."""
    found = {}
    for key, (field, known) in KINDS.items():
        value = settings[key]
        if not isinstance(value, str) or value.upper() not in known:
            raise UserError(
                f"'{path}' has {key} {shown(value)}: it is one of {', '.join(known)}"
            )
        found[field] = known[value.upper()]
    return found


def sizes_held(state: Arrays) -> dict[str, int]:
    """Returns the sizes that the weights have, by the original's names."""
    blocks = {n.split(".")[1] for n in state if n.startswith("attention_blocks.")}
    held = {"n_attn_layers": len(blocks)}
    table = state.get("embedding.weight")
    if table is not None and table.ndim == 2:
        held |= {"n_vocab": table.shape[0], "n_dim": table.shape[1]}
    positions = state.get("positional_encoding.embedding.weight")
    if positions is not None and positions.ndim == 2:
        held["n_context_max"] = len(positions)
    return held


def quirks(model: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `config.model` that all models of the original share.

    Args:
      model: n_embd, n_head, positions and norm.
    """
    fields: dict[str, Any] = {
        "bias": True,
        "attention_bias": False,
        "final_norm": False,
        "tied_head": False,
        "qk_norm": False,
        "feed_forward_width": model["n_embd"],
        "norm_epsilon": 1e-8 if model["norm"] == "rms" else 1e-5,
    }
    if model["positions"] == "sinusoidal":
        fields["sinusoid_scale"] = 1.0
    if model["positions"] == "rope":
        pairs = max(model["n_embd"] // model["n_head"], 1) / 2
        fields |= {"rope_pairs": "neighbours", "rope_theta": 1e4}
        fields["rope_frequency"] = 1e4 ** (1 / pairs)
    return fields


def rules(model: ConfigDict) -> list[Rule]:
    """Returns the table of names; projections side by side here are apart there."""
    table = [Rule("embedding.weight", "table")]
    if model.positions == "learned":
        table.append(Rule("positional_encoding.embedding.weight", "positions/table"))

    def linear(name: str, path: str, bias: bool) -> None:
        table.append(Rule(f"{name}.weight", f"{path}/kernel", True))
        if bias:
            table.append(Rule(f"{name}.bias", f"{path}/bias"))

    if model.positions == "learned-sinusoidal":
        linear("positional_encoding.linear", "positions/linear", True)
    for i in range(model.n_layer):
        there = f"attention_blocks.attention_{i}"
        here = f"transformer/blocks/{i}"
        for letter in "qkv":
            linear(f"{there}.linear_{letter}", f"{here}/attn/qkv", False)
        linear(f"{there}.linear_o", f"{here}/attn/out", False)
        if model.activation == "swiglu":
            linear(f"{there}.ffn.w1", f"{here}/mlp/up", False)
            linear(f"{there}.ffn.w3", f"{here}/mlp/up", False)
            linear(f"{there}.ffn.w2", f"{here}/mlp/down", False)
        else:
            linear(f"{there}.ffn.layers.0", f"{here}/mlp/up", True)
            linear(f"{there}.ffn.layers.2", f"{here}/mlp/down", True)
        for norm in ("norm_1", "norm_2"):
            if model.norm != "none":
                table.append(Rule(f"{there}.{norm}.weight", f"{here}/{norm}/scale"))
            if model.norm == "layer":
                table.append(Rule(f"{there}.{norm}.bias", f"{here}/{norm}/bias"))
    linear("unembedding", "unembed", True)
    return table
