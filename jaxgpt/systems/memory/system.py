"""GPT-2 with a memory that is carried from segment to segment of a document.

After VardaGPT (`associative`), Memorizing Transformers (`attention`) and kNN-LM
(`output`). What a segment reads was written before it, by earlier segments.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.documents import open_documents
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError
from jaxgpt.model import layers, rng
from jaxgpt.parallel import sharding
from jaxgpt.sampling.decoding import SampleRequest
from jaxgpt.sampling.state import SamplerOutput
from jaxgpt.systems.base import Batch, Evaluation
from jaxgpt.systems.causal import CausalLM
from jaxgpt.systems.memory import recall, session
from jaxgpt.systems.memory.documents import Memory
from jaxgpt.systems.memory.evaluation import read_documents, report
from jaxgpt.systems.memory.model import Carried, MemoryModel
from jaxgpt.systems.memory.runtime import MemoryRuntime

# Storing begins to cost something after this share of the steps, and costs the whole
# `memory.budget` this much later: the model first learns what reading is good for.
BUDGET_START, BUDGET_RAMP = 0.2, 0.2


class MemoryLM(CausalLM):
    """Predicts a token from those before it in its segment, and from the memory."""

    goes_past_block = True
    reads_text = False  # Without a path it is the recall task.
    host: MemoryRuntime
    unplannable = (
        "searches on the host, which no compiler can plan: plan system=causal of the "
        "same size"
    )

    def __init__(self, config: ConfigDict, platform: str = ""):
        self.memory = config.memory
        super().__init__(config, platform)
        if self.memory.mode == "attention" and self.model_config.encoding.rotate:
            raise UserError(
                "memory.mode=attention is incompatible with "
                f"model.positions={config.model.positions}, which rotates keys by "
                "their position: use learned, sinusoidal, alibi or none"
            )
        self.host = MemoryRuntime(self.graphdef, self.model_config, self.memory)
        self._scored: tuple[Any, Any, Any] = None, None, None

    @classmethod
    def check_overrides(cls, trained: str, config: ConfigDict) -> None:
        """See `System.check_overrides`: kNN-LM can be added to a causal run."""
        command = "--config.system=memory --config.memory.mode=output"
        if config.system != "memory" and trained in ("memory", "causal"):
            raise UserError(f"this is a {trained} run without a memory: add {command}")
        if trained != "memory" and (trained, config.memory.mode) != (
            "causal",
            "output",
        ):
            raise UserError(
                f"a {trained} run has no parameters of a memory: only a causal run can "
                f"be read with one it was not trained with, by {command}"
            )

    def _build(self, key: jax.Array) -> MemoryModel:
        return MemoryModel(self.model_config, self.memory, rngs=nnx.Rngs(params=key))

    def open_data(self, tokenizer: Tokenizer | None = None) -> Dataset:
        """Opens the documents of `config.data`; without a path, the recall task."""
        if not self.config.data.path:
            return recall.RecallData(self.model_config.block_size)
        return open_documents(self.config, self.window, tokenizer)

    def train_batch(self, tokens_BT: Any, key: jax.Array, step) -> Batch:
        """Adds the share of training done, a key to forget with, and two more.

        "row" is the store row of each row; "weight_of_row" the mean weight of a row, so
        that the loss of a group of rows is its share of the whole batch's.
        """
        del key
        weight_BT = tokens_BT["weight"]
        rows = len(weight_BT)
        return dict(tokens_BT) | {
            "progress": step / self.config.steps,
            "forget": rng.at(self.config.seed, "memory", step),
            "row": jnp.arange(rows) % self.host.memory_rows(rows),
            "weight_of_row": jnp.maximum(weight_BT.sum(), 1) / rows,
        }

    def objective(
        self, params: dict, batch: Batch, carried: Carried, dropout_key: jax.Array
    ) -> tuple[jax.Array, Carried]:
        """Returns the mean loss of a segment, and the memory with it written."""
        tokens = batch["tokens"]
        # Without parameters of its own, kNN-LM would only slow training down.
        reading = "off" if self.memory.mode == "output" else self.memory.reading
        state, read, keep_BT = self.host.read(
            params, carried, batch, reading, training=True, dropout_key=dropout_key
        )
        nll_BT = layers.cross_entropy(read.logits_BTV, tokens[:, 1:])
        loss = (nll_BT * batch["weight"]).sum() / (batch["weight_of_row"] * len(tokens))
        if self.memory.budget:
            ramp = (batch["progress"] - BUDGET_START) / BUDGET_RAMP
            loss += self.memory.budget * jnp.clip(ramp, 0, 1) * keep_BT.mean()
        return loss, state

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T] of tokens [B, T + 1], each row with an empty memory."""
        return super().nll(params, {"tokens": batch["tokens"]}, dropout_key)

    def eval_nll(
        self, params: dict, windows: Any, rows: int, seed: int, layout: Any = None
    ) -> dict[str, np.ndarray]:
        """Returns {"": nats of every prediction that counts}, of documents read."""
        del seed
        if layout and self.config.deterministic:
            params = sharding.of_one_device(params)
        read = read_documents(self.host, params, windows, rows, self.memory.reading)
        self._scored = params, windows, read
        return {"": read.nll_NT[windows.weight_NT > 0]}

    def extra_metrics(self, params: dict, evaluation: Evaluation) -> dict[str, Any]:
        """Returns figures with the memory on, off and another document's."""
        windows, rows = evaluation.windows, evaluation.rows
        # What `eval_nll` has just read is not read again, nor kept for longer.
        (of_params, of_windows, read), self._scored = self._scored, (None,) * 3
        known = of_params is params and of_windows is windows
        if not evaluation.thorough:
            return {}
        scored = {self.memory.reading: read} if known else {}
        return report(self.host, params, windows, rows, scored)

    def cache_length(self, T: int) -> int:
        """Returns whole segments for T tokens: a prompt of any length is read."""
        block = self.model_config.block_size
        return block * max(1, math.ceil(T / block))

    def open_memory(
        self,
        path: pathlib.Path | None,
        rows: int = 1,
        model: dict[str, Any] | None = None,
        allow_other_model: bool = False,
    ) -> Memory:
        """Returns a memory that `sample` reads and writes.

        Args:
          path: a file that it is read from, if it exists; otherwise it is empty.
          rows: of an empty one.
          model: `Run.fingerprint` of the model.
          allow_other_model: reads a file that another model has written.

        Raises:
          UserError: if its folder does not exist; see `Memory.load`.
        """
        if path and not path.parent.is_dir():
            raise UserError(f"--memory='{path}': folder '{path.parent}' does not exist")
        if path and path.exists():
            return Memory.load(path, self.host, model, allow_other_model)
        return Memory.empty(self.host, rows, model)

    def mixes_lengths(self, T: int) -> bool:
        """See `System.mixes_lengths`: segments are read by all rows together."""
        del T
        return False

    def fill(
        self,
        params: dict,
        request: SampleRequest,
        memory: Memory | None = None,
        document: str = "",
        shown: session.Shown | None = None,
    ) -> SamplerOutput:
        """See `System.fill`; the last three arguments as in `session.sample`.

        The callback is called after every segment, whatever `every` is.
        """
        sampling, known_BT = request.sampling, request.prompt_mask_BT
        self.sampler(sampling)
        self.decode_order(known_BT, request.length_B, sampling, request.draws)
        own = memory or self.open_memory(None, len(known_BT))
        output = session.sample(
            own,
            params,
            request.tokens_BT,
            known_BT,
            request.draws,
            sampling,
            request.callback,
            document,
            shown,
        )
        if not memory:
            self.host.close(own.store)
        return output
