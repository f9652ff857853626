"""Config fields of graph-structured sequential models."""

from __future__ import annotations

import dataclasses

from jaxgpt.config import MAX_SEED, OptionGroup, option


@dataclasses.dataclass(frozen=True)
class GSSMConfig(OptionGroup):
    """The graph that sequences are sampled from."""

    # A run keeps the JSON of graph and kernels, and does not need the files any more.
    graph: str = option(
        "data/graphs/easy.yaml", "a JSON or YAML file, the JSON, or a shipped NAME"
    )
    sequences: int = option(0, "train on the first N only; 0 on all", min=0)
    graph_seed: int = option(0, "seed of the kernels", min=0, max=MAX_SEED)
    kernels: str = option(
        "", "an .npz file of kernels (entropy --save_kernels), or the JSON of a run"
    )
    clip: float = option(
        1e-10, "minimum probability in a kernel; 0 leaves zeros", min=0, below=1
    )
    first_token: str = option(
        "start", "a sequence's: the start state 0, or drawn", choices=("start", "drawn")
    )
