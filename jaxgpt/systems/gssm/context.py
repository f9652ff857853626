"""The Bayes floor of a context graph: the best loss without knowing its kernels.

Given the graph and the Dirichlet distribution of the kernels, but not the kernels, the
best prediction is p(x_{t+1} | x_0 .. x_t) with the kernels integrated out. No model of
single sequences has a lower expected loss. The clipping of kernels is neglected.
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

    The Dirichlet-multinomial predictive distribution: a token has probability
    (alpha + n) / (V alpha + n_row), if it came n of the n_row times that its row of the
    kernel was used.

    Arguments and errors are those of `likelihood.forward`; only "nll" [N, T - 1] and
    "predictive" [N, T - 1, V] can be wanted.
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
        # [step, earlier step]: whether the earlier one used the same row of the kernel.
        same = earlier & (old[:, None] == old) if X.parents else earlier
        total = V * alpha + same.sum(1)
        if wanted == "predictive":
            seen = same.astype(np.float64) @ (new[:, None] == np.arange(V))
            found.append((alpha + seen) / total[:, None])
        else:
            seen = (same & (new[:, None] == new)).sum(1)
            found.append(np.log(total) - np.log(alpha + seen))
    return np.stack(found)[:, int(first_token == "drawn") :]
