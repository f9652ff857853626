"""nanollama (composable-llm), the transformer of GSSM's original.

Its RoPE rotates the fastest pair of channels by a whole turn a token: that pair never
moves.
"""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from jaxgpt.interop.base import Format
from jaxgpt.interop.rules import Rule, layer_rules

BLOCK = {
    "attn.qkv_mat": "attn/qkv",
    "attn.output": "attn/out",
    "ffn.fc1": "mlp/up",
    "ffn.fc2": "mlp/down",
    "attn_norm": "norm_1",
    "ffn_norm": "norm_2",
}


class NanoLlama(Format):
    """A causal transformer with RoPE, RMS norms and SwiGLU."""

    def own_fields(self, model: Any) -> dict[str, Any]:
        """The same for every model."""
        return {
            "positions": "rope",
            "rope_frequency": 2 * math.pi,
            "rope_pairs": "neighbours",
            "norm": "rms",
            "activation": "swiglu",
            "tied_head": False,
        }

    def rules(self, model: ConfigDict) -> list[Rule]:
        """Returns the table of names."""
        table = [Rule("embeddings.weight", "table")]
        for i in range(model.n_layer):
            for there, here in BLOCK.items():
                path = f"transformer/blocks/{i}/{here}"
                table += layer_rules(f"layers.{i}.{there}", path, False)
        table += layer_rules("output", "unembed", False)
        return table + layer_rules("output_norm", "transformer/norm_f", False)


FORMAT = NanoLlama(
    sizes={
        "n_layer": "nb_layers",
        "n_head": "nb_heads",
        "n_embd": "emb_dim",
        "block_size": "seq_len",
        "vocab_size": "vocab_size",
        "feed_forward_width": "ffn_dim",
    },
    shapes={
        "vocab_size": ("embeddings.weight", 0),
        "n_embd": ("embeddings.weight", 1),
        "feed_forward_width": ("layers.0.ffn.fc2.weight", 1),
    },
    layer_prefix="layers.",
    numbers={"rope_theta": ("rope_theta", 1e4), "norm_epsilon": ("norm_eps", 1e-5)},
    required={"weight_tying": False},
)
