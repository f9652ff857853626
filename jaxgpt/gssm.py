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

import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxgpt import config as configs
from jaxgpt.data.arrays import check_integers
from jaxgpt.errors import require
from jaxgpt.inference import Run
from jaxgpt.systems.gssm import information
from jaxgpt.systems.gssm.graph import Node
from jaxgpt.systems.gssm.handmade import HandMade, controller, copy, induction, parity
from jaxgpt.systems.gssm.probes import Probes
from jaxgpt.systems.gssm.process import SPLITS, GraphProcess, Stream
from jaxgpt.systems.gssm.user_graph import (
    Graph,
    Nodes,
    from_networkx,
    made,
    to_networkx,
)

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

    They are those that `python -m jaxgpt.systems.gssm.generate` writes, and that
    training reads batch by batch, where length is model.block_size + 1.

    Args:
      graph: a `Graph`, or what one is made of, such as "easy"; all functions here take
        either.
      num_sequences: N; the first sequences do not depend on it.
      length: T, in tokens.
      seed: of the sequences, not of the kernels.
      split: "train", "val", "fit" or "test": independent streams.
      batch_size: sequences sampled at a time; the sequences depend on it.

    Raises:
      UserError: for a value out of range.

    >>> sample(Graph("easy", graph_seed=1), num_sequences=2, length=8)[:, 0]
    array([0, 0], dtype=int32)
    """
    graph = made(graph)
    stream = _stream(num_sequences, length, seed, split, batch_size)
    return graph.process.held_out(stream, num_sequences, length)


def sample_states(
    graph: Graph | Nodes,
    num_sequences: int,
    length: int,
    seed: int = 0,
    *,
    split: str = "train",
    batch_size: int = 32,
) -> dict[str, np.ndarray]:
    """Samples {node: int32 states [num_sequences, length]} of all nodes.

    The arguments, and the states of the observed node, are those of `sample`.

    >>> list(sample_states(Graph("easy"), num_sequences=2, length=8))
    ['Z1', 'Z2', 'X']
    """
    graph = made(graph)
    names = tuple(node.name for node in graph.nodes)
    stream = _stream(num_sequences, length, seed, split, batch_size)
    return graph.process.held_out_nodes(names, stream, num_sequences, length)


def _stream(
    num_sequences: int, length: int, seed: int, split: str, batch_size: int
) -> Stream:
    """Returns the stream of sequences, after checking all arguments."""
    for name, value, least in (
        ("num_sequences", num_sequences, 1),
        ("length", length, 2),
    ):
        whole = isinstance(value, numbers.Integral)
        require(whole and value >= least, name, f"an integer >= {least}", value)
    require(split in SPLITS, "split", f"one of {', '.join(SPLITS)}", split)
    fields = configs.override(configs.base(), {"seed": seed, "batch_size": batch_size})
    return Stream(fields.seed, split, fields.batch_size)


def exact_nll(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> np.ndarray:
    """Returns -log p(token t + 1 | tokens 0 .. t) in nats, float64 [N, T - 1].

    `python -m jaxgpt.systems.gssm.entropy` writes the same with --nll. No model of
    these sequences has a lower expected loss. An impossible token, and all that follow
    it, cost infinity.

    Of a graph with context nodes, whose kernels are redrawn, it is the Bayes floor:
    kernels are integrated out. That has a closed form where X is a context node without
    latents; elsewhere there is `estimate_nll`.

    Args:
      graph: with the kernels that the sequences were drawn with.
      tokens: integers [N, T], T >= 2, each a state of the observed node. They begin
        with 0 unless the graph has first_token="drawn".
      dtype: "float64" or "float32", of the computation.

    Raises:
      UserError: for other tokens, or a context graph without given kernels or a closed
        form.

    >>> easy = Graph("easy", graph_seed=1)
    >>> exact_nll(easy, sample(easy, 256, 65, split="val")).mean().round(3)
    np.float64(1.306)
    """
    return _given(graph, tokens, dtype, "nll")


def estimate_nll(
    graph: Graph | Nodes, tokens: ArrayLike, *, particles: int = 256, seed: int = 0
) -> np.ndarray:
    """Returns an estimate of `exact_nll` where it has no closed form, [N, T - 1].

    `entropy` prints the same as bayes_estimate. In expectation its sum over the tokens
    of a sequence is above the exact value, by less the more particles there are.

    Args:
      graph: with context nodes.
      tokens: as of `exact_nll`.
      particles: how many for each sequence.
      seed: of the estimate.

    Raises:
      UserError: for other tokens, too many particles, or a graph whose likelihood is
        exact.

    >>> nodes = [Node("Z", 3, 0.2, mode="slow"), Node("X", 4, 0.2, ("Z",), "context")]
    >>> graph = Graph(nodes, context="sequence")
    >>> estimate_nll(graph, sample(graph, num_sequences=8, length=17)).shape
    (8, 16)
    """
    process = made(graph).process
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
    """Returns p(next token | tokens 0 .. t), float64 [N, T - 1, V].

    `entropy` writes the same with --predictive. After an impossible token it is 0
    throughout.

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

    `entropy` writes the same with --beliefs. From an impossible token on it is 0.

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

    Latents have axes in the order of `Graph.nodes`; `beliefs` are the marginals.

    The arguments and errors are those of `exact_nll`.
    """
    return _given(graph, tokens, dtype, "joint")


def decompose(
    graph: Graph | Nodes, tokens: ArrayLike, *, dtype: str = "float64"
) -> dict[str, Any]:
    """Returns the entropy rate, and each latent's information on the next token.

    `entropy` prints the same with --decompose. The arguments are those of `exact_nll`.

    Returns:
      Figures in nats per token. token_entropy: H(next token); entropy: H(next token |
      tokens so far); predictable: their difference; entropy_rate: the entropy over the
      second half of the positions; latents: {name: figures} and all_latents, of all
      together, each with prior_information: I(state; next token), information:
      I(state; next token | tokens so far) and uncertainty: H(state | tokens so far).
      *_error are standard errors over sequences.

    Raises:
      UserError: as `exact_nll`; for impossible tokens, or too many joint states.

    >>> easy = Graph("easy", graph_seed=1)
    >>> found = decompose(easy, sample(easy, 256, 65, split="val"))
    >>> list(found["latents"]), found["entropy_error"] < 0.02
    (['Z1', 'Z2'], True)
    """
    process = made(graph).process
    process.check_known("tokens", "decompose")
    return information.decompose(process, _read(process, tokens, dtype), dtype)


def probe(run: Run, *, num_sequences: int = 512) -> dict[str, Any]:
    """Returns what linear probes decode of the latents from a model's hidden states.

    `python -m jaxgpt.systems.gssm.probe` prints the same. A probe is a ridge regression
    from the residual stream at a token; an untrained model is the baseline.

        run = jaxgpt.load("runs/gssm-easy", step="best")
        gssm.probe(run)["trained"]["Z1"]["r2"]

    Args:
      run: of a graph.
      num_sequences: to fit the probes to; they are scored on as many others.

    Returns:
      {"layers": names, lowest first; "latents": {latent: {"states": how many, and the
      accuracies of guessing the "commonest" state, or by the exact "belief"}};
      "trained" and "untrained": {latent: lists by layer of "r2" of its belief, None
      where that is constant, "accuracy" of its state, and *_error, their standard
      errors over sequences}}.

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
    """Returns what `likelihood.forward` calls `wanted`, of a user's tokens."""
    process = made(graph).process
    return process.score(_read(process, tokens, dtype), dtype, wanted)


def _read(process: GraphProcess, tokens: ArrayLike, dtype: str) -> np.ndarray:
    """Returns a user's tokens [N, T], checked."""
    require(dtype in DTYPES, "dtype", f"one of {', '.join(DTYPES)}", dtype)
    tokens_NT = check_integers(np.asarray(tokens), "tokens")
    process.check_given(tokens_NT, "tokens")
    return tokens_NT
