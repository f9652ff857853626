"""teenyGPT: every position encoding, feed-forward and norm.

Its peculiarities are settings of the core: no last norm, an untied head with a bias, a
feed-forward as wide as the stream, and RoPE whose fastest pair rotates by
theta ^ (2 / K) radians a token, because it counts pairs from -1.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from jaxgpt.interop.base import Export, Format
from jaxgpt.interop.rules import Rule, layer_rules

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


class TeenyGPT(Format):
    """teenyGPT's state dicts, and the checkpoints of its train.py."""

    def own_fields(self, model: Any) -> dict[str, Any]:
        """Depends on n_embd, n_head and norm."""
        pairs = max(model["n_embd"] // model["n_head"], 1) / 2
        return {
            "bias": True,
            "attention_bias": False,
            "final_norm": False,
            "tied_head": False,
            "feed_forward_width": model["n_embd"],
            "norm_epsilon": 1e-8 if model["norm"] == "rms" else 1e-5,
            "sinusoid_scale": 1.0,
            "rope_pairs": "neighbours",
            "rope_frequency": 1e4 ** (1 / pairs),
        }

    def rules(self, model: ConfigDict) -> list[Rule]:
        """Returns the table of names, in the order of the original's parameters.

        Projections that are concatenated here are separate there.
        """
        table = [Rule("embedding.weight", "table")]
        table += layer_rules("unembedding", "unembed", True)
        encoding = "positional_encoding"
        if model.positions == "learned":
            table.append(Rule(f"{encoding}.embedding.weight", "positions/table"))
        if model.positions == "learned-sinusoidal":
            table += layer_rules(f"{encoding}.linear", "positions/linear", True)
        # (its layer, ours, whether it has a bias)
        block = [(f"linear_{letter}", "attn/qkv", False) for letter in "qkv"]
        block.append(("linear_o", "attn/out", False))
        if model.norm != "none":
            bias = model.norm == "layer"
            block += [("norm_1", "norm_1", bias), ("norm_2", "norm_2", bias)]
        if model.activation == "swiglu":
            parts = (("w1", "up"), ("w2", "down"), ("w3", "up"))
            block += [(f"ffn.{there}", f"mlp/{here}", False) for there, here in parts]
        else:
            block += [("ffn.layers.0", "mlp/up", True)]
            block += [("ffn.layers.2", "mlp/down", True)]
        for i in range(model.n_layer):
            for there, here, bias in block:
                name = f"attention_blocks.attention_{i}.{there}"
                table += layer_rules(name, f"transformer/blocks/{i}/{here}", bias)
        return table

    def checkpoint(self, export: Export) -> dict[str, Any]:
        """Returns what generate.py loads, with any moments where forks keep them."""
        held = {"model_state_dict": export.state}
        return held | (self.optimizer_entry(export) if export.count else {})


FORMAT = TeenyGPT(
    sizes={
        "n_layer": "n_attn_layers",
        "n_head": "n_attn_heads",
        "n_embd": "n_dim",
        "block_size": "n_context_max",
        "vocab_size": "n_vocab",
    },
    shapes={
        "vocab_size": ("embedding.weight", 0),
        "n_embd": ("embedding.weight", 1),
        "block_size": ("positional_encoding.embedding.weight", 0),
    },
    layer_prefix="attention_blocks.",
    choices={
        "positions": ("positional_encoding_type", POSITIONS, None),
        "activation": ("ffn_type", ACTIVATIONS, None),
        "norm": ("layer_norm_type", NORMS, None),
    },
    numbers={"dropout": ("p_dropout", 0.0)},
    optimizer_key="optimizer_state_dict",
    buffers=("rope_modulator",),
)
