"""The page of models of a graph: their predictions next to the exact ones."""

from __future__ import annotations

import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.inference import Run
from jaxgpt.model.layers import count_parameters
from jaxgpt.systems.gssm import baselines
from jaxgpt.systems.gssm.system import GSSM
from jaxgpt.web.pages.base import Emit, Event
from jaxgpt.web.requests import Sequence


class ChainPage:
    """Shows the model's distribution of each next token, and the exact one."""

    kind = "chain"

    def __init__(self, run: Run):
        assert isinstance(run.system, GSSM)
        self.run, self.system = run, run.system
        self.actions = {"sequence": self.sequence}
        self.compiled = False

    def describe(self) -> Event:
        """See `Page.describe`."""
        return {
            "system": self.run.config.system,
            "step": self.run.step,
            "parameters": count_parameters(self.run.params),
            "longest": self.run.system.model_config.block_size,
            "vocab_size": self.system.process.vocab_size,
        }

    def sequence(self, request: Sequence, emit: Emit) -> None:
        """Sends both distributions [T, V] of each next token, and their KL in nats.

        Without tokens, those of a new sequence.
        """
        emit({"type": "running", "compiling": not self.compiled})
        process, size = self.system.process, self.system.window
        if request.tokens:
            tokens_T = np.array(request.tokens, np.int32)
        else:
            data = self.run.open_data()
            tokens_T = data.batch_at(request.seed, "val", 0, 1, size)[0]
        T = len(tokens_T)
        if size < T:
            raise UserError(f"a sequence must have at most {size} tokens, got {T}")
        # `score` predicts tokens that are there: the added last one is not used.
        padded = np.zeros((1, size + 1), np.int32)
        padded[0, :T] = tokens_T
        process.check_given(padded[:, : T + 1], "the sequence")
        exact_TV = process.score(padded, "float64", "predictive")[0][:T]
        logits_TV = self.run.logits(padded[:, :size])[0][:T].astype(np.float64)
        log_q_TV = logits_TV - np.logaddexp.reduce(logits_TV, -1, keepdims=True)
        self.compiled = True
        emit(
            {
                "type": "done",
                "tokens": tokens_T.tolist(),
                "exact": exact_TV.round(6).tolist(),
                "model": np.exp(log_q_TV).round(6).tolist(),
                "kl": baselines.divergence(exact_TV, log_q_TV).tolist(),
            }
        )
