"""Sequences of a graph whose exact likelihood is known, from Python.

>>> from jaxgpt import gssm
>>> nodes = [
...     gssm.Node("Z", state_dim=4, alpha=0.2, mode="slow"),
...     gssm.Node("X", state_dim=8, alpha=0.05, parents=("Z",)),
... ]
>>> graph = gssm.Graph(nodes)
>>> tokens = gssm.sample(graph, num_sequences=100, length=33)
>>> nll = gssm.exact_nll(graph, tokens)
>>> tokens.shape, nll.shape
((100, 33), (100, 32))
>>> bool(nll.mean() < np.log(8))
True
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.data.arrays import check_integers
from jaxgpt.errors import UserError, atomic_write, os_errors, require
from jaxgpt.inference import Run
from jaxgpt.systems.gssm import handmade, information
from jaxgpt.systems.gssm.graph import Node, parse_graph
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.gssm.handmade import HandMade, controller, copy, induction, parity
from jaxgpt.systems.gssm.kernels import check_tables, load_tables
from jaxgpt.systems.gssm.probes import Probes
from jaxgpt.systems.gssm.process import SPLITS, GraphProcess, make_process

DTYPES = ("float32", "float64")

__all__ = [
    "Graph",
    "HandMade",
    "Node",
    "beliefs",
    "controller",
    "copy",
    "decompose",
    "estimate_nll",
    "exact_nll",
    "from_networkx",
    "induction",
    "joint_beliefs",
    "parity",
    "predictive",
    "probe",
    "sample",
    "sample_states",
    "to_networkx",
]


Nodes = HandMade | str | os.PathLike[str] | Sequence[Node | Mapping[str, Any]]


class Graph:
    """A graph with its kernels; docs/gssm.md says what it means.

    Attributes:
      nodes: those that evolve, parents first, the observed one last.
      vocab_size: states of the observed node.
      kernels: {node: float64 [inputs ..., state_dim]}, p(new state | inputs), where the
        inputs are a latent's own old state, then the parents as listed. Those of
        context nodes are not used: theirs are drawn for every batch or sequence.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        graph_seed: int = 0,
        clip: float = 1e-10,
        first_token: str = "start",
        context: str = "batch",
        kernels: Mapping[str, ArrayLike] | str | None = None,
    ):
        """Draws the kernels, or takes those given.

        Args:
          nodes: the name of a shipped graph, such as "easy"; a JSON or YAML file, also
            a config of the original's ("data.yaml:sparse"); the nodes, each a `Node` or
            a mapping with its fields; or a graph made by hand, also by its name, such
            as "parity:3", which has its kernels.
          graph_seed: of the kernels; configs/gssm.py:easy has 1, its other graphs 0.
          clip: no probability is drawn below it.
          first_token: "start" if sequences begin with the state 0 of time 0, "drawn" if
            with the first state drawn.
          context: whether the kernels of context nodes are drawn for each "batch" or
            each "sequence".
          kernels: as the attribute; or, as gssm.kernels, the name of an .npz file, or
            "newer:42" for those that the original's newer version draws from seed 42.

        Raises:
          UserError: if the graph is unusable, or the kernels do not suit it.
        """
        if isinstance(nodes, str | os.PathLike):
            nodes = os.fspath(nodes)
            nodes = handmade.read(nodes) or load_graph(nodes).nodes
        if isinstance(nodes, HandMade):
            if kernels is not None:
                raise UserError("a graph made by hand has its kernels: give no others")
            kernels, nodes = nodes.kernels, nodes.nodes
        graph = parse_graph(nodes, "nodes")
        tables = None
        if kernels is not None:
            if graph_seed != 0 or clip != 1e-10:
                raise UserError(
                    "graph_seed and clip are of kernels that are drawn: leave them out "
                    "where kernels are given"
                )
            if isinstance(kernels, str):
                tables = load_tables(graph, kernels)
            else:
                arrays = {f"table/{name}": table for name, table in kernels.items()}
                tables = check_tables(graph, arrays, "kernels")
        config = configs.override(
            configs.base(),
            {
                "gssm.graph": graph.to_json(),
                "gssm.graph_seed": graph_seed,
                "gssm.clip": clip,
                "gssm.first_token": first_token,
                "gssm.context": context,
            },
        )
        backend.set_up_jax()
        self._process = make_process(config, tables)
        self._graph = graph  # With the modes of given kernels too.
        self.nodes = graph.order
        self.vocab_size = self._process.vocab_size
        self.kernels = self._process.tables

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the nodes as YAML, which `Graph` reads again; not the kernels.

        Under "gssm:" of a config, the original's newer version reads the same lines.

        Raises:
          UserError: if the file cannot be written.
        """
        path = configs.user_path(os.fspath(file))
        with os_errors(f"'{path}' cannot be written"), atomic_write(path) as stream:
            stream.write(self._graph.to_yaml())


def _made(graph: Graph | Nodes) -> Graph:
    """Returns a graph, of its name, file or nodes too: every function takes those."""
    return graph if isinstance(graph, Graph) else Graph(graph)


def to_networkx(graph: Graph | Nodes) -> Any:
    """Returns a networkx.DiGraph, from parents to children; `from_networkx` reads it.

    A node has the fields of `Node`, and "kernel", as in `Graph.kernels`; an edge
    "input", the parent's place in the child's list; the graph "first_token".

    Raises:
      UserError: if networkx is not installed, or the graph has context nodes.
    """
    try:
        import networkx
    except ImportError:
        raise UserError(
            "to_networkx needs networkx, which is not installed: pip install networkx"
        ) from None
    graph = _made(graph)
    if graph._process.graph.has_context:
        raise UserError(
            "the kernels of context nodes are drawn anew: to_networkx takes graphs "
            "without them"
        )
    found = networkx.DiGraph(first_token=graph._process.first_token)
    for node in graph.nodes:
        fields = dataclasses.asdict(node)
        del fields["parents"]
        found.add_node(fields.pop("name"), **fields, kernel=graph.kernels[node.name])
    for node in graph.nodes:
        for place, parent in enumerate(node.parents):
            found.add_edge(parent, node.name, input=place)
    return found


def from_networkx(found: Any, **options: Any) -> Graph:
    """Returns a graph of a networkx.DiGraph, from parents to children.

    Args:
      found: its nodes have state_dim and alpha, and any other fields of `Node`. Parents
        are in the order of their edges' "input", or else as the graph lists them. If
        all nodes have a "kernel", they are the kernels; "first_token" is the graph's.
      **options: of `Graph`.

    Raises:
      UserError: as `Graph`; if it is not directed.
    """
    directed = getattr(found, "is_directed", bool)()
    if not directed or found.is_multigraph():
        raise UserError(
            "from_networkx needs a networkx.DiGraph, from parents to children"
        )
    if first_token := found.graph.get("first_token"):
        options = {"first_token": first_token} | options
    nodes, kernels = [], {}
    for name, attributes in found.nodes(data=True):
        fields = dict(attributes)
        if (kernel := fields.pop("kernel", None)) is not None:
            kernels[name] = kernel
        edges = found.in_edges(name, data="input", default=0)
        parents = [parent for parent, _, _ in sorted(edges, key=lambda edge: edge[2])]
        nodes.append({"name": name, "parents": parents} | fields)
    if len(kernels) == len(nodes):
        options = {"kernels": kernels} | options
    elif kernels:
        raise UserError(
            f"{len(kernels)} of {len(nodes)} nodes have a kernel: give one to all of "
            "them, or to none"
        )
    return Graph(nodes, **options)


def sample(
    graph: Graph | Nodes,
    num_sequences: int,
    length: int,
    seed: int = 0,
    *,
    split: str = "train",
    batch_size: int = 32,
) -> np.ndarray:
    """Samples int32 tokens [num_sequences, length].

    The same as `python -m jaxgpt.systems.gssm.generate` writes, whose length is
    model.block_size + 1, and as a training with these fields reads, batch by batch.

    Args:
      graph: of the sequences: a `Graph`, or what it is made of, such as "easy". All
        functions take either.
      num_sequences: N; the first ones do not depend on it.
      length: T, in tokens.
      seed: of the sequences, not of the kernels.
      split: "train", "val", "fit" or "test": streams of their own.
      batch_size: sequences sampled at a time, on which they depend.

    Raises:
      UserError: for a value out of range.

    >>> sample(Graph("easy", graph_seed=1), num_sequences=2, length=8)[:, 0]
    array([0, 0], dtype=int32)
    """
    graph = _made(graph)
    X = graph.nodes[-1].name
    place = _place(num_sequences, length, seed, split, batch_size)
    return graph._process.held_out_nodes((X,), *place)[X]


def sample_states(
    graph: Graph | Nodes,
    num_sequences: int,
    length: int,
    seed: int = 0,
    *,
    split: str = "train",
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Samples {node: int32 states [num_sequences, length]}, the latents' too.

    The arguments, and the tokens under the observed node's name, are those of `sample`.

    >>> list(sample_states(Graph("easy"), num_sequences=2, length=8))
    ['Z1', 'Z2', 'X']
    """
    graph = _made(graph)
    names = tuple(node.name for node in graph.nodes)
    place = _place(num_sequences, length, seed, split, batch_size)
    return graph._process.held_out_nodes(names, *place)


def _place(
    num_sequences: int, length: int, seed: int, split: str, batch_size: int
) -> tuple[int, str, int, int, int]:
    """Returns the checked arguments in the order of `GraphProcess.held_out`."""
    require(num_sequences >= 1, "num_sequences", ">= 1", num_sequences)
    require(length >= 2, "length", ">= 2", length)
    require(split in SPLITS, "split", f"one of {', '.join(SPLITS)}", split)
    fields = configs.override(configs.base(), {"seed": seed, "batch_size": batch_size})
    return fields.seed, split, num_sequences, fields.batch_size, length


def exact_nll(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> np.ndarray:
    """Returns -log p(token t + 1 | tokens 0 .. t) in nats, float64 [N, T - 1].

    Of a graph with context nodes, whose kernels are drawn anew, it is the Bayes floor:
    kernels are integrated out. That is exact where X is a context node without latents;
    elsewhere there is `estimate_nll`.

    The same as `python -m jaxgpt.systems.gssm.entropy` writes with --nll. The first
    token is not predicted; an impossible one costs infinity, and so does what follows.
    No model of these sequences has a lower mean, but for chance.

    Args:
      graph: with the kernels that the sequences were drawn with.
      tokens: integers [N, T], T >= 2, each a state of the observed node. They begin
        with 0 unless the graph has first_token="drawn".
      dtype: "float64" or "float32", computed in.

    Raises:
      UserError: for other tokens, or a graph with context nodes that has no closed form
        and was not given kernels.

    >>> easy = Graph("easy", graph_seed=1)
    >>> exact_nll(easy, sample(easy, 256, 65, split="val")).mean().round(3)
    np.float64(1.306)
    """
    return _given(graph, tokens, dtype, "nll")


def estimate_nll(
    graph: Graph | Nodes, tokens: ArrayLike, *, particles: int = 256, seed: int = 0
) -> np.ndarray:
    """Returns an estimate of `exact_nll` where kernels are not known, [N, T - 1].

    The same as `entropy` prints as bayes_estimate. Summed over the tokens of a sequence
    it is in expectation above the exact value, by less the more particles there are.

    Args:
      graph: with context nodes.
      tokens: as of `exact_nll`.
      particles: of each sequence.
      seed: of the estimate.

    Raises:
      UserError: for other tokens, particles that do not fit, or a graph whose
        likelihood is exact.

    >>> nodes = [Node("Z", 3, 0.2, mode="slow"), Node("X", 4, 0.2, ("Z",), "context")]
    >>> graph = Graph(nodes, context="sequence")
    >>> estimate_nll(graph, sample(graph, num_sequences=8, length=17)).shape
    (8, 16)
    """
    process = _made(graph)._process
    require(process.floor_name == "bayes_estimate", "likelihood of this graph",
            "without closed form", f"{process.floor_name}: use exact_nll")  # fmt: skip
    fields = configs.override(
        configs.base(), {"gssm.particles": particles, "seed": seed}
    )
    tokens_NT = _read(process, tokens, "float64")
    return process.estimate(tokens_NT, fields.seed, "val", count=fields.gssm.particles)


def predictive(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> np.ndarray:
    """Returns p(next token | tokens 0 .. t), float64 [N, T - 1, V]: no guess is better.

    The same as `entropy` writes with --predictive. At [n, t, tokens[n, t + 1]] it is
    exp(-exact_nll). After an impossible token all are 0.

    The arguments and errors are those of `exact_nll`.

    >>> easy = Graph("easy", graph_seed=1)
    >>> predictive(easy, sample(easy, 2, 8)).sum(-1).round(6).tolist()[0]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    return _given(graph, tokens, dtype, "predictive")


def beliefs(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> dict[str, np.ndarray]:
    """Returns {latent: p(its state at t | tokens 0 .. t), float64 [N, T, states]}.

    The same as `entropy` writes with --beliefs: what the tokens so far, token t
    included, say of each latent. From an impossible token on all are 0.

    The arguments and errors are those of `exact_nll`.

    >>> easy = Graph("easy", graph_seed=1)
    >>> {name: p.shape for name, p in beliefs(easy, sample(easy, 2, 8)).items()}
    {'Z1': (2, 8, 4), 'Z2': (2, 8, 4)}
    """
    return _given(graph, tokens, dtype, "beliefs")


def joint_beliefs(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> np.ndarray:
    """Returns p(all latents' states at t | tokens 0 .. t), float64 [N, T, d_1 .. d_n].

    The axes of the latents are in the order of `graph.nodes`; `beliefs` are its sums
    over all of them but one.

    The arguments and errors are those of `exact_nll`.
    """
    return _given(graph, tokens, dtype, "joint")


def decompose(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> dict[str, Any]:
    """Returns the entropy rate, and what each latent's state says of the next token.

    The same as `entropy` prints with --decompose, in nats per token, with standard
    errors over sequences as *_error:

    token_entropy: H(next token); entropy: H(next token | tokens so far); predictable:
    their difference; entropy_rate: the entropy over the second half of the positions;
    latents: {name: figures} and all_latents, of all of them together, each with
    prior_information: I(its state; next token), information: I(its state; next token |
    tokens so far) and uncertainty: H(its state | tokens so far).

    The arguments are those of `exact_nll`.

    Raises:
      UserError: as `exact_nll`; for impossible tokens, or too many joint states.

    >>> easy = Graph("easy", graph_seed=1)
    >>> found = decompose(easy, sample(easy, 256, 65, split="val"))
    >>> list(found["latents"]), found["entropy_error"] < 0.02
    (['Z1', 'Z2'], True)
    """
    process = _made(graph)._process
    process.check_known("tokens", "decompose")
    return information.decompose(process, _read(process, tokens, dtype), dtype)


def probe(run: Run, *, num_sequences: int = 512) -> dict[str, Any]:
    """Returns what linear probes read of the latents off a model's hidden states.

    The same as `python -m jaxgpt.systems.gssm.probe` prints. A probe is a ridge
    regression from the residual stream at a token; probes of an untrained model of the
    same config say what needs no training.

        run = jaxgpt.load("runs/gssm-easy", step="best")
        gssm.probe(run)["trained"]["Z1"]["r2"]

    Args:
      run: of a graph.
      num_sequences: to fit the probes to, and as many others to score them on.

    Returns:
      {"layers": names, the embedding's first; "latents": {latent: {"states": how many,
      and the accuracies of "commonest", the commonest state, and of "belief", the
      likeliest one given the tokens so far}}; "trained" and "untrained": {latent:
      lists with a number for each layer: "r2" of its belief, the share of the variance
      that is explained, None if there is none; "accuracy" of its state; *_error,
      standard errors over sequences}}.

    Raises:
      UserError: for a run of another system, or fewer than 4 sequences.
    """
    probes = Probes(run.system, num_sequences)
    return {
        "layers": probes.layers,
        "latents": probes.references(),
        "trained": probes.measure(run.params),
        "untrained": probes.measure(probes.untrained()),
    }


def _given(graph: Graph | Nodes, tokens: ArrayLike, dtype: str, wanted: str) -> Any:
    """Returns what is wanted (`likelihood.forward`) of tokens that a user has."""
    process = _made(graph)._process
    return process.score(_read(process, tokens, dtype), dtype, wanted)


def _read(process: GraphProcess, tokens: ArrayLike, dtype: str) -> np.ndarray:
    """Returns the checked tokens [N, T] that a user has."""
    require(dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", dtype)
    tokens_NT = check_integers(np.asarray(tokens), "tokens")
    process.check_given(tokens_NT, "tokens")
    return tokens_NT
