"""Graph-structured sequential models: data whose exact likelihood is known.

A causal model learns sequences of the observed node of a graph, and is judged by the
gap between its loss and the exact likelihood of the same sequences.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data.arrays import batched
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import CheckError
from jaxgpt.systems.base import Evaluation
from jaxgpt.systems.causal import CausalLM
from jaxgpt.systems.gssm import baselines, dataset, kernels, likelihood
from jaxgpt.systems.gssm.graph import load_graph
from jaxgpt.systems.gssm.process import GraphProcess, make_process, resolve

# A loss this many standard errors below the floor can only be a leak, if there are
# enough sequences to trust the error and it is not just rounding of float32.
LEAK = 3
ENOUGH = 16
ROUNDING = 1e-5
# Probabilities of next tokens held at a time.
LARGEST_PREDICTION = 1 << 22


class GSSM(CausalLM):
    """A causal model of sequences that a graph generates."""

    reads_text = False
    _references: tuple[np.ndarray, tuple[np.ndarray, dict[str, float]]] | None = None

    @classmethod
    def resolve(cls, config: ConfigDict) -> None:
        """Replaces names of files by what they hold, and checks `data.path`."""
        tables = resolve(config)
        if tables is not None:
            config.gssm.kernels = kernels.tables_to_json(tables)
        likelihood.check_size(load_graph(config.gssm.graph))
        if config.data.path:
            dataset.check_dataset(config.data.path, config)

    @functools.cached_property
    def process(self) -> GraphProcess:
        """What generates the sequences."""
        return make_process(self.config)

    def open_data(self, tokenizer: Tokenizer | None = None) -> dataset.OnlineData:
        """Opens the sequences of `config.data.path`, or samples them."""
        del tokenizer
        return dataset.open_data(self.config, self.process, self.window)

    def extra_metrics(self, params: dict, evaluation: Evaluation) -> dict[str, Any]:
        """Returns the gap to the floor of held-out sequences; keeps it by position.

        A thorough evaluation also has the divergence of the exact distribution of each
        next token from the model's. Training sequences may be known by heart, so that
        the floor does not hold for them.
        """
        split = evaluation.split
        if split == "train":
            return {}
        tokens_NT, nll_NT = evaluation.windows, evaluation.nll_NT
        metrics: dict[str, Any] = self.gap_metrics(tokens_NT, nll_NT, split)
        floor_NT, _ = self.references(tokens_NT, split)
        curves = {"model": nll_NT.mean(0), self.process.floor_name: floor_NT.mean(0)}
        if evaluation.thorough:
            kl_NT = self.divergence(params, tokens_NT, split, evaluation.rows)
            group = self.process.dependent_rows(self.config.batch_size)
            kl = baselines.mean(kl_NT, group)
            curves["kl"] = kl_NT.mean(0)
            metrics |= {"kl": kl.value, "kl_error": kl.error or 0.0}
            metrics["kl_by_position"] = curves["kl"].tolist()
        evaluation.write_curves(curves)
        return metrics

    def divergence(
        self, params: dict, tokens_NT: np.ndarray, split: str, rows: int
    ) -> np.ndarray:
        """Returns KL(exact || model) of each next token, float64 [N, T - 1], in nats.

        Its expectation is that of the model's loss above the exact one, over sequences
        of the process; it varies less, since it does not depend on which token came.

        Args:
          params: of the model.
          tokens_NT: the first sequences of the split.
          split: of the data.
          rows: sequences that the model is given at a time, at most.
        """
        c, process = self.config, self.process
        per_row = tokens_NT.shape[1] * process.vocab_size
        rows = max(1, min(rows, LARGEST_PREDICTION // per_row))
        if process.graph.has_context:
            rows = c.batch_size  # Which share their kernels.
        predict = jax.jit(
            lambda params, tokens_BT: jax.nn.log_softmax(
                self.model(params)(tokens_BT[:, :-1])[0].astype(jnp.float32)
            )
        )
        parts = []
        for step, (batch, count) in enumerate(batched({"tokens": tokens_NT}, rows)):
            p_BTV = process.score_held_out(
                batch["tokens"], c.seed, split, rows, "float64", "predictive", step
            )
            log_q_BTV = np.asarray(predict(params, batch["tokens"]), np.float64)
            parts.append(baselines.divergence(p_BTV, log_q_BTV)[:count])
        return np.concatenate(parts)

    def gap_metrics(
        self, tokens_NT: np.ndarray, nll_NT: np.ndarray, split: str = "val"
    ) -> dict[str, float]:
        """Returns the floor and the baselines of the same tokens, and the gap.

        Raises:
          CheckError: for a loss below the floor by more than chance explains.
        """
        floor_NT, others = self.references(tokens_NT, split)
        floor_name = self.process.floor_name
        excess_NT = nll_NT - floor_NT
        group = self.process.dependent_rows(self.config.batch_size)
        gap = baselines.mean(excess_NT, group)
        # Given its kernels no sequence has an expected gap below 0. So each sequence is
        # independent evidence of a leak, even if there are only a few batches.
        error = baselines.mean(excess_NT).error or 0.0
        if len(tokens_NT) >= ENOUGH and gap.value < -LEAK * error - ROUNDING:
            raise CheckError(
                f"the loss is {-gap.value:.4f} nats below the {floor_name} lower bound "
                f"(standard error {error:.4f}): targets leak into the inputs"
            )
        floor = {f"loss_{floor_name}": float(floor_NT.mean())}
        return floor | others | {"gap": gap.value, "gap_error": gap.error or 0.0}

    def references(
        self, tokens_NT: np.ndarray, split: str = "val"
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Returns the floor [N, T - 1] and the losses of the baselines."""
        # Those of the last tokens are kept: every evaluation asks for the same.
        if self._references is None or not np.array_equal(
            self._references[0], tokens_NT
        ):
            c = self.config
            floor_NT = self.process.score_held_out(
                tokens_NT, c.seed, split, c.batch_size, "float32"
            )
            scores = baselines.fitted_scores(self.process, c, tokens_NT)
            losses = {f"loss_{name}": float(nll.mean()) for name, nll in scores.items()}
            self._references = tokens_NT, (floor_NT, losses)
        return self._references[1]
