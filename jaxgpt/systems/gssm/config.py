"""Config fields of the graphical state space model."""

from __future__ import annotations

import dataclasses

from jaxgpt.config import MAX_SEED, OptionGroup, option


@dataclasses.dataclass(frozen=True)
class GSSMConfig(OptionGroup):
    """The graph that sequences are drawn from."""

    graph: str = option(
        "data/graphs/easy.yaml",
        "a JSON or YAML file with the nodes, or the JSON itself (as a run keeps it)",
    )
    sequences: int = option(
        0, "train on the first this many sequences only; 0 on all there are", min=0
    )
    graph_seed: int = option(
        0, "seed of the graph's transition kernels", min=0, max=MAX_SEED
    )
    clip: float = option(
        1e-10, "smallest probability in a kernel; 0 leaves zeros", min=0, below=1
    )
    first_token: str = option(
        "start",
        "sequences begin with the start state 0, or with the first token drawn",
        choices=("start", "drawn"),
    )
