"""The Bayes floor of a context graph: the best loss without knowing its kernels.

A reader who knows the graph and the Dirichlet distribution that kernels come from, but
not the kernels, predicts by p(x_{t+1} | x_0 .. x_t) with the kernels integrated out. No
model of single sequences has a lower expected loss. The clip of kernels is neglected.
"""

from __future__ import annotations

import numpy as np

from jaxgpt.systems.gssm import kernels, likelihood
from jaxgpt.systems.gssm.graph import LatentGraph


def has_closed_form(graph: LatentGraph) -> bool:
    """Returns whether the Bayes floor is exact: X has no latents and one factor."""
    X = graph.observed
    return X.mode == "context" and not graph.latents and kernels.is_conjugate(graph, X)


def closed_form(
    graph: LatentGraph, tokens_NT: np.ndarray, first_token: str, wanted: str = "nll"
) -> np.ndarray:
    """Returns the Bayes floor of a graph that `has_closed_form`, float64.

    The predictive distribution of Dirichlet and multinomial: a token has probability
    (alpha + n) / (V alpha + n_row), for how often n it has come, of the n_row times
    that the same row of the kernel was used.

    Args:
      graph: of the nodes.
      tokens_NT: integers.
      first_token: what column 0 holds, as in `sequences.sample_nodes`.
      wanted: "nll" [N, T - 1] or "predictive" [N, T - 1, V], as of
        `likelihood.forward`.

    Raises:
      UserError: as `likelihood.forward`.
    """
    likelihood.check_tokens(graph, tokens_NT, first_token)
    X = graph.observed
    V, alpha = X.state_dim, X.alpha
    likelihood.check_result(tokens_NT, V if wanted == "predictive" else 1)
    tokens = likelihood.from_time_0(tokens_NT, first_token)
    steps = tokens.shape[1] - 1
    earlier = np.tri(steps, k=-1, dtype=bool)
    found = []
    for old, new in zip(tokens[:, :-1], tokens[:, 1:], strict=True):
        # Whether the step of a column came before that of a line, from the same row.
        same = earlier & (old[:, None] == old) if X.parents else earlier
        total = V * alpha + same.sum(1)
        if wanted == "predictive":
            seen = same.astype(np.float64) @ (new[:, None] == np.arange(V))
            found.append((alpha + seen) / total[:, None])
        else:
            seen = (same & (new[:, None] == new)).sum(1)
            found.append(np.log(total) - np.log(alpha + seen))
    return np.stack(found)[:, int(first_token == "drawn") :]
