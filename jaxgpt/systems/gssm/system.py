"""Graph-structured sequential models: data whose exact likelihood is known.

A causal model learns sequences of the observed node of a graph, and is judged by the
distance of its loss from the exact likelihood of the same sequences.
"""

from __future__ import annotations

import functools

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import CheckError
from jaxgpt.systems.causal import CausalLM
from jaxgpt.systems.gssm import baselines, dataset, graph, source

# Tokens that the unigram and bigram baselines are fitted to.
FIT_TOKENS = 1 << 18
# Standard errors below the floor that can only be a leak, where they are of enough
# sequences to be trusted; and float32's rounding.
LEAK = 3
ENOUGH = 16
ROUNDING = 1e-5


class GSSM(CausalLM):
    """A causal model of sequences that a graph draws."""

    _kept: tuple | None = None

    @classmethod
    def resolve(cls, config: ConfigDict) -> None:
        """Puts the graph itself where its file was named; looks at `data.path`."""
        config.gssm.graph = graph.load(config.gssm.graph).to_json()
        if config.data.path:
            dataset.check(config.data.path, config)

    @functools.cached_property
    def source(self) -> source.Source:
        """The graph with its kernels."""
        return source.from_config(self.config)

    def open_data(self) -> dataset.OnlineData:
        """Opens the sequences of `config.data.path`, or draws them."""
        return dataset.open_data(self.config, self.source, self.window)

    def extra_metrics(
        self, tokens_NT: np.ndarray, nll_NT: np.ndarray
    ) -> dict[str, float]:
        """Returns the floor and the baselines of the same tokens, and the gap.

        Raises:
          CheckError: for a loss below the floor by more than chance explains.
        """
        floor_NT, others = self.references(tokens_NT)
        group = self.config.batch_size if self.source.graph.has_context else 1
        gap = baselines.mean(nll_NT - floor_NT, group)
        # Whatever the kernels of its batch, no sequence has an expected gap below 0: of
        # a leak every sequence is evidence of its own, there may be few batches.
        error = baselines.mean(nll_NT - floor_NT).error or 0.0
        enough = len(tokens_NT) >= ENOUGH
        if enough and gap.value < -LEAK * error - ROUNDING:
            raise CheckError(
                f"the loss is {-gap.value:.4f} nats below the {self.floor_name} one "
                f"(standard error {error:.4f}): the model sees what it must predict"
            )
        floor = {f"loss_{self.floor_name}": float(floor_NT.mean())}
        return floor | others | {"gap": gap.value, "gap_error": gap.error or 0.0}

    @property
    def floor_name(self) -> str:
        """What the floor is: an estimate where every batch has its own kernels."""
        return "estimate" if self.source.graph.has_context else "exact"

    def by_position(
        self, tokens_NT: np.ndarray, nll_NT: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns the model's and the exact loss at each position."""
        floor_NT, _ = self.references(tokens_NT)
        return {"model": nll_NT.mean(0), self.floor_name: floor_NT.mean(0)}

    def references(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Returns the floor [N, T - 1] and the losses of the baselines.

        Those of the last tokens are kept: every evaluation asks for the same.
        """
        if self._kept is None or not np.array_equal(self._kept[0], tokens_NT):
            self._kept = (tokens_NT, *self._references(tokens_NT))
        return self._kept[1:]

    def _references(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        c, V = self.config, self.source.vocab_size
        N, T = tokens_NT.shape
        floor_NT = self.source.score_held_out(
            tokens_NT, c.seed, "val", c.batch_size, "float32"
        )
        count = max(FIT_TOKENS // T, N)
        fit_NT = self.source.held_out(c.seed, "fit", count, c.batch_size, T)
        others = {
            "loss_unigram": float(baselines.unigram(fit_NT, tokens_NT, V).mean()),
            "loss_bigram": float(baselines.bigram(fit_NT, tokens_NT, V).mean()),
        }
        return floor_NT, others
