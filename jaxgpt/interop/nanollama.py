"""nanollama (composable-llm), the transformer of GSSM's original.

Its RoPE rotates the fastest pair of channels by a whole turn a token: that pair never
moves. There are two versions, of which the later has other names for the same weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.interop.base import Export, Format
from jaxgpt.interop.rules import Rule, layer_rules, read_numbers
from jaxgpt.interop.weights import Arrays, Source
from jaxgpt.model.config import ModelConfig
from jaxgpt.model.positions import rope_angles

# (in the version of 1 January 2025, in that of 31 January 2025, ours)
BLOCK = (
    ("attn.qkv_mat", "attn.W_in", "attn/qkv"),
    ("attn.output", "attn.W_out", "attn/out"),
    ("ffn.fc1", "ffn.W_in", "mlp/up"),
    ("ffn.fc2", "ffn.W_out", "mlp/down"),
    ("attn_norm", "attn_norm", "norm_1"),
    ("ffn_norm", "ffn_norm", "norm_2"),
)
# A buffer of each layer: cosines and sines of RoPE's angles, [seq_len, width / 2, 2].
ANGLES = "attn.rope_modulator"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NanoLlama(Format):
    """A causal transformer with RoPE, RMS norms and SwiGLU."""

    later: bool = False  # Which names it writes; it reads both.

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
            for *names, here in BLOCK:
                name = f"layers.{i}.{names[self.later]}"
                table += layer_rules(name, f"transformer/blocks/{i}/{here}", False)
        table += layer_rules("output", "unembed", False)
        return table + layer_rules("output_norm", "transformer/norm_f", False)

    def plain_name(self, name: str) -> str:
        """Gives weights of the other version the names of this one."""
        plain = super().plain_name(name)
        for *names, _ in BLOCK:
            there, here = (names[not self.later], names[self.later])
            if plain.endswith(f".{there}.weight"):
                return plain.replace(f".{there}.", f".{here}.")
        return plain

    def parameters(self, source: Source) -> Arrays:
        """Checks the angles in a checkpoint against the configuration."""
        source = dataclasses.replace(source, settings=_flat(source.settings))
        table = {"rope_theta": self.numbers["rope_theta"]}
        theta = read_numbers(source.settings, table, source.path)["rope_theta"]
        held = (a for name, a in source.state.items() if name.endswith(ANGLES))
        for array in held:
            length, pairs = array.shape[:2] if array.ndim == 3 else (1, 1)
            expected = modulator(length, 2 * pairs, theta)
            if array.shape != expected.shape or np.abs(array - expected).max() > 0.01:
                raise UserError(
                    f"'{source.path}': its {ANGLES} is not of rope_theta {theta}: pass "
                    "the right one with --source_config=FILE.json"
                )
        return super().parameters(source)

    def model_fields(self, source: Source) -> dict[str, Any]:
        """Adds that angles are computed in float32, as in the original."""
        source = dataclasses.replace(source, settings=_flat(source.settings))
        return super().model_fields(source) | {"rope_angles": "float32"}

    def training_fields(self, source: Source) -> dict[str, Any]:
        """Adds that its warmup begins at 0."""
        fields = super().training_fields(source)
        return fields and fields | {"optimizer.warmup_from_zero": True}

    def notes(self, source: Source) -> tuple[str, ...]:
        """Says what a checkpoint lacks."""
        if self.training_fields(source):
            return (
                "it does not have its schedule: set steps, optimizer.warmup_steps and "
                "optimizer.min_learning_rate to continue it",
            )
        return ()

    def checkpoint(self, export: Export) -> dict[str, Any]:
        """Returns the checkpoint.pth that its Checkpointer loads."""
        c = export.config.model
        table = modulator(c.block_size, c.n_embd // c.n_head, c.rope_theta)
        buffers = {f"layers.{i}.{ANGLES}": table for i in range(c.n_layer)}
        held = {"model": export.state | buffers} | self.optimizer_entry(export)
        if export.moments:
            held["optim"]["param_groups"][0]["initial_lr"] = peak = (
                export.config.optimizer.learning_rate
            )
            held["scheduler"] = {  # LambdaLR's
                "base_lrs": [peak],
                "last_epoch": export.step,
                "_step_count": export.step + 1,
                "_last_lr": [export.rate],
                "lr_lambdas": [None],
            }
        return held

    def export_notes(self, export: Export) -> tuple[str, ...]:
        """Adds that angles in another precision differ."""
        notes = super().export_notes(export)
        if export.config.model.rope_angles == "float32":
            return notes
        line = (
            "it computes RoPE's angles in float32, this run in float64: logits differ"
        )
        return (*notes, f"{line} (by 1.6e-3 after 2,048 tokens of a random model)")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration of either version with the earlier one's keys."""
    block = settings.get("block")
    flat = {**settings, **block} if isinstance(block, Mapping) else dict(settings)
    width, hidden = flat.get("emb_dim"), flat.get("hidden_dim")
    if flat.get("ffn_dim") is None and type(width) is int:
        flat["ffn_dim"] = hidden or 4 * width
    return flat


def modulator(length: int, width: int, theta: float) -> np.ndarray:
    """Returns the buffer of cosines and sines, [length, width / 2, 2], float32."""
    config = ModelConfig(
        n_head=1,
        n_embd=width,
        vocab_size=1,
        positions="rope",
        rope_theta=theta,
        rope_frequency=2 * math.pi,
        rope_angles="float32",
    )
    angles = rope_angles(length, width, config)
    return np.stack((np.cos(angles), np.sin(angles)), -1)


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
    open_fields=("rope_angles",),
    required={"weight_tying": False},
    optimizer_key="optim",
    buffers=(ANGLES,),
    suffixes=(".pth", ".pt", ".npz"),
)
LATER = dataclasses.replace(
    FORMAT,
    later=True,
    shapes={**FORMAT.shapes, "feed_forward_width": ("layers.0.ffn.W_out.weight", 1)},
)
