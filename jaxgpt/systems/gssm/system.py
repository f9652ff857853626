"""Graph-structured sequential models: data whose exact likelihood is known.

A causal model learns sequences of the observed node of a graph, and is judged by the
gap between its loss and the lowest that is possible on the same sequences.
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
from jaxgpt.systems.gssm.graph_files import load_graph
from jaxgpt.systems.gssm.process import GraphProcess, Stream, make_process, resolve

# A loss this many standard errors, and float32 rounding, below the floor can only come
# from a leak, if there are enough sequences to trust the error.
LEAK = 3
ENOUGH = 16
ROUNDING = 1e-5
# Probabilities of next tokens held at a time.
LARGEST_PREDICTION = 1 << 22


class GSSM(CausalLM):
    """A causal model of sequences that a graph generates."""

    reads_text = False
    _references: (
        tuple[np.ndarray, tuple[dict[str, np.ndarray], dict[str, float]]] | None
    ) = None

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
        next token from the model's. Of training sequences, which may be memorised, the
        loss has no floor.
        """
        split = evaluation.split
        if split == "train":
            return {}
        tokens_NT, nll_NT = evaluation.windows, evaluation.nll_NT
        metrics: dict[str, Any] = self.gap_metrics(tokens_NT, nll_NT, split)
        bounds, _ = self.references(tokens_NT, split)
        curves = {"model": nll_NT.mean(0)}
        curves |= {name: bound_NT.mean(0) for name, bound_NT in bounds.items()}
        if evaluation.thorough and self.process.floor_name != "bayes_estimate":
            kl_NT = self.divergence(params, tokens_NT, evaluation.rows)
            group = self.process.dependent_rows(self.config.batch_size)
            curves["kl"] = kl_NT.mean(0)
            metrics |= baselines.mean(kl_NT, group).figures("kl")
            metrics["kl_by_position"] = curves["kl"].tolist()
        evaluation.write_curves(curves)
        return metrics

    def divergence(self, params: dict, tokens_NT: np.ndarray, rows: int) -> np.ndarray:
        """Returns KL(floor || model) of each next token, float64 [N, T - 1], in nats.

        Over sequences of the process its expectation is that of the model's loss above
        the floor; it varies less, since it does not depend on which token came.

        Args:
          params: of the model.
          tokens_NT: of the process.
          rows: how many sequences the model is given at a time, at most.

        Raises:
          UserError: for a Bayes floor without closed form.
        """
        process = self.process
        per_row = tokens_NT.shape[1] * process.vocab_size
        rows = max(1, min(rows, LARGEST_PREDICTION // per_row))
        predict = jax.jit(
            lambda params, tokens_BT: jax.nn.log_softmax(
                self.model(params)(tokens_BT[:, :-1])[0].astype(jnp.float32)
            )
        )
        parts = []
        for batch, count in batched({"tokens": tokens_NT}, rows):
            p_BTV = process.score(batch["tokens"], "float64", "predictive")
            log_q_BTV = np.asarray(predict(params, batch["tokens"]), np.float64)
            parts.append(baselines.divergence(p_BTV, log_q_BTV)[:count])
        return np.concatenate(parts)

    def gap_metrics(
        self, tokens_NT: np.ndarray, nll_NT: np.ndarray, split: str = "val"
    ) -> dict[str, float]:
        """Returns the floor and the baselines of the same tokens, and the gap.

        If the floor is estimated, the gap has a lower and an upper bound.

        Raises:
          CheckError: for a loss below the floor by more than chance explains.
        """
        bounds, others = self.references(tokens_NT, split)
        self._check_leak(nll_NT, bounds)
        group = self.process.dependent_rows(self.config.batch_size)
        gaps = {"gap": self.process.floor_name}
        found = {f"loss_{name}": float(nll.mean()) for name, nll in bounds.items()}
        if "bayes_lower" in bounds:
            gaps = {"gap_at_least": "bayes_estimate", "gap_at_most": "bayes_lower"}
            for name in gaps.values():
                found |= baselines.mean(bounds[name], group).figures(f"loss_{name}")
        found |= others
        for name, bound in gaps.items():
            found |= baselines.mean(nll_NT - bounds[bound], group).figures(name)
        return found

    def _check_leak(self, nll_NT: np.ndarray, bounds: dict[str, np.ndarray]) -> None:
        """Raises CheckError for a loss that can only come from a leak."""
        for name, bound_NT in bounds.items():
            if name == "bayes_estimate":
                continue  # A loss may be below it.
            # Given its kernels the expected gap of every sequence is 0 or more, so each
            # is independent evidence of a leak, even if kernels are shared.
            group = 1
            if name.startswith("bayes"):
                group = self.process.dependent_rows(self.config.batch_size)
            excess = baselines.mean(nll_NT - bound_NT, group)
            error = excess.error or 0.0
            enough = len(nll_NT) >= ENOUGH * group
            if enough and excess.value < -LEAK * error - ROUNDING:
                raise CheckError(
                    f"the loss is {-excess.value:.4f} nats below {name}, a lower bound "
                    f"(standard error {error:.4f}): targets leak into the inputs"
                )

    def references(
        self, tokens_NT: np.ndarray, split: str = "val"
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns `process.bounds`, and the losses of the baselines."""
        # Those of the last tokens are kept: every evaluation asks for the same.
        if self._references is None or not np.array_equal(
            self._references[0], tokens_NT
        ):
            c = self.config
            stream = Stream(c.seed, split, c.batch_size)
            bounds = self.process.bounds(tokens_NT, stream, "float32")
            scores = baselines.fitted_scores(self.process, c, tokens_NT)
            losses = {f"loss_{name}": float(nll.mean()) for name, nll in scores.items()}
            self._references = tokens_NT, (bounds, losses)
        return self._references[1]
