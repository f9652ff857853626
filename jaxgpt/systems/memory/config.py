"""Config fields of the memory and its index."""

from __future__ import annotations

import dataclasses
import functools

from ml_collections import ConfigDict

from jaxgpt.config import OptionGroup
from jaxgpt.config import option as config_option
from jaxgpt.errors import UserError, require

# A trained model can be read with another memory, or a causal one with its first: all
# of these fields may be overridden on a finished run.
option = functools.partial(config_option, after_training=True)

# The `store_layer` of no layer: nothing that has passed through the memory is stored.
EMBEDDING = -2


@dataclasses.dataclass(frozen=True)
class IndexConfig(OptionGroup):
    """How to search. The metric, "l2" or "inner_product", follows from memory.mode."""

    index_type: str = option(
        "flat", "flat is exact", choices=("flat", "ivf", "compressed", "graph")
    )
    num_clusters: int = option(100, "ivf, compressed: clusters", min=1)
    num_probes: int = option(8, "ivf, compressed: clusters searched", min=1)
    code_bytes: int = option(64, "compressed: bytes of a code", min=1)
    candidates: int = option(16, "compressed: ranked exactly, per entry read", min=1)
    links: int = option(32, "graph: links of a node (HNSW's M)", min=2)
    ef_construction: int = option(40, "graph: breadth while building", min=1)
    ef_search: int = option(64, "graph: breadth while searching", min=1)
    threads: int = option(1, "FAISS threads, which slow down XLA's", min=1)
    metric: str = "l2"


@dataclasses.dataclass(frozen=True)
class MemoryConfig(IndexConfig):
    """What is remembered, and how it is read."""

    mode: str = option(
        "associative",
        "what is read: vectors joined with the input (VardaGPT); keys and values in "
        "attention (Memorizing Transformer); next tokens, without training (kNN-LM)",
        choices=("associative", "attention", "output"),
    )
    reading: str = option(
        "on", "own memory, none, or another row's", choices=("on", "off", "shuffled")
    )
    memory_size: int = option(1024, "maximum entries of a row; more evict", min=1)
    memory_dim: int = option(0, "width of a stored vector; 0 is n_embd", min=0)
    num_search_results: int = option(5, "entries read for each token", min=1)
    shared: bool = option(False, "all rows of a batch share one memory")
    eviction: str = option(
        "oldest",
        "when a row is full: which entry is evicted, or refuse new ones",
        choices=("oldest", "weakest", "refuse"),
    )
    keep: str = option(
        "all",
        "evaluation, sampling: store all, or what the store decision keeps",
        choices=("all", "decided"),
    )
    forgetfulness_factor: float = option(
        0.0, "training: share of entries forgotten at random per step", min=0, max=1
    )
    decay: float = option(
        1.0, "training: factor on the strength of an entry per step", min=0, max=1
    )
    # Each token of an address has 0.6 of the weight of the next.
    context: int = option(3, "associative: tokens that make an address", min=1)
    store_layer: int = option(
        EMBEDDING,
        "associative: what is read of an entry: -2 its token's embedding; stored with "
        "it, 0 the input and what was read, N block N's output, -1 the final norm's",
    )
    join_std: float = option(
        0.0, "associative: initial weights on what is read; 0 reads nothing"
    )
    # Ramped up from 0.2 to 0.4 of the steps; store decisions are then sampled.
    budget: float = option(0.0, "associative: loss per entry kept", min=0)
    delete: bool = option(False, "associative: the model also deletes what it read")
    layer: int = option(-1, "attention: the block that reads; -1 is the last")
    weight: float = option(
        0.25, "output: share of the memory's distribution", min=0, max=1
    )
    temperature: float = option(
        1.0, "output: of distances, each divided by the width", min=1e-6
    )

    @staticmethod
    def validate(config: ConfigDict) -> None:
        """Checks the memory against model, batch and determinism."""
        if config.system != "memory":
            return
        c, mixer = config.memory, config.model.mixer
        rule = "attention for system=memory"
        require(mixer == "attention", "model.mixer", rule, mixer)
        # The memory changes with every segment: micro-batches would not be equal.
        parts = config.accumulation
        require(parts == 1, "accumulation", "1 for system=memory", parts)
        if config.deterministic:
            _check_deterministic(c)
        layers = config.model.n_layer
        for name, least, last in (
            ("layer", -1, layers - 1),
            ("store_layer", EMBEDDING, layers),
        ):
            allowed = least <= c[name] <= last
            require(allowed, f"memory.{name}", f"in [{least}, {last}]", c[name])


def _check_deterministic(c: ConfigDict) -> None:
    if c.shared:
        raise UserError(
            "deterministic is incompatible with memory.shared: it processes a batch in "
            "groups of rows, whose writes to one memory would be out of order"
        )
    if c.reading == "shuffled":
        raise UserError(
            "deterministic is incompatible with memory.reading=shuffled: it processes "
            "a batch in groups of rows, and a group of one row has no other to read"
        )
