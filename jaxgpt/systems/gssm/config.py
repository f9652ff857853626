"""Config fields of graph-structured sequential models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from jaxgpt.config import MAX_SEED, OptionGroup, option
from jaxgpt.errors import require
from jaxgpt.systems.gssm.graph import ORIGINAL_KERNELS
from jaxgpt.systems.gssm.graph_files import change_nodes, load_graph


def require_gssm(config: ConfigDict, source: str) -> None:
    """Raises UserError unless the config that `source` names is of this system."""
    require(config.system == "gssm", f"system of '{source}'", "gssm", config.system)


@dataclasses.dataclass(frozen=True)
class GSSMConfig(OptionGroup):
    """The graph that sequences are sampled from."""

    # A run keeps graph and kernels as JSON, so that it needs no other files.
    graph: str = option(
        "data/graphs/easy.yaml",
        "a JSON or YAML file, JSON, a shipped NAME, or a handmade graph such as "
        "parity:3; gssm.nodes.NODE.FIELD changes a node",
    )
    sequences: int = option(0, "train on the first N only; 0 on all", min=0)
    graph_seed: int = option(0, "seed of the kernels", min=0, max=MAX_SEED)
    kernels: str = option(
        "",
        "an .npz file of kernels (entropy --save_kernels), the JSON of a run, or "
        "older:SEED, newer:SEED: those of that version of the original",
    )
    clip: float = option(
        1e-10, "minimum probability in a kernel; 0 leaves zeros", min=0, below=1
    )
    context: str = option(
        "batch",
        "kernels of context nodes are drawn for each batch or each sequence",
        choices=("batch", "sequence"),
    )
    particles: int = option(
        256,
        "particles per sequence, to estimate a Bayes floor without closed form",
        min=1,
        max=1 << 20,
        resumable=True,
    )
    first_token: str = option(
        "start", "a sequence's: the start state 0, or drawn", choices=("start", "drawn")
    )

    parts: ClassVar[tuple[str, ...]] = ("gssm.nodes.",)

    @staticmethod
    def with_parts(config: ConfigDict, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns gssm.graph with other fields of its nodes, as JSON.

        Args:
          config: whose graph it is.
          changes: {"gssm.nodes.NODE.FIELD": value}, which may be text.

        Raises:
          UserError: as `change_nodes`.
        """
        named = config.gssm.kernels
        known = bool(named) and not ORIGINAL_KERNELS.fullmatch(named)
        nodes = (key.removeprefix("gssm.nodes.").rpartition(".") for key in changes)
        typed = [name for name, _, field in nodes if field == "kernel_type"]
        graph = load_graph(config.gssm.graph, typed)
        return {"gssm.graph": change_nodes(graph, changes, known).to_json()}
