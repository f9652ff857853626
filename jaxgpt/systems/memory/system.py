"""GPT-2 with a memory that is carried from segment to segment of a document.

After VardaGPT (`associative`), Memorizing Transformers (`attention`) and kNN-LM
(`output`). What a segment reads was written before it, by earlier segments.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.documents import Segments, open_documents
from jaxgpt.model import layers, rng
from jaxgpt.parallel import sharding
from jaxgpt.sampling.state import (
    DEFAULT_PARAMS,
    Callback,
    SamplerOutput,
    SamplingParams,
)
from jaxgpt.systems.base import Batch
from jaxgpt.systems.causal import CausalLM
from jaxgpt.systems.memory import evaluation, model, recall, session
from jaxgpt.systems.memory.callback import searcher
from jaxgpt.systems.memory.look import Look
from jaxgpt.systems.memory.model import Carried, MemoryModel
from jaxgpt.systems.memory.store import Layout, Options, Store

TRAINING = 0  # The number of the store that training reads and writes.
# Shares of training: when storing begins to cost, and how long until it costs all.
BUDGET_FROM, BUDGET_RAMP = 0.2, 0.2


class MemoryLM(CausalLM):
    """Predicts a token from those before it in its segment, and from the memory."""

    goes_past_block = True

    def __init__(self, config: ConfigDict, platform: str = ""):
        self.memory = config.memory
        self.stores: dict[int, Store] = {}
        self._serials = itertools.count(TRAINING + 1)
        super().__init__(config, platform)
        self.search = searcher(self.stores, config.memory.num_search_results)

    def _build(self, key: jax.Array) -> MemoryModel:
        return MemoryModel(self.model_config, self.memory, rngs=nnx.Rngs(params=key))

    def model(self, params: dict) -> MemoryModel:
        """Returns the module over these parameters."""
        return cast(MemoryModel, super().model(params))

    def open_data(self) -> Dataset:
        """Opens the documents of `config.data`; without a path, the recall task."""
        if not self.config.data.path:
            return recall.RecallData(self.model_config.block_size)
        return open_documents(self.config, self.window)

    # Between segments

    def layout(self, rows: int) -> Layout:
        """Returns the shape of a memory for so many rows."""
        c = self.memory
        key, values = self._mode.layout
        return Layout(
            1 if c.shared else rows,
            c.memory_size,
            key,
            tuple(values.items()),
            c.eviction,
        )

    @functools.cached_property
    def _mode(self) -> Any:
        return nnx.eval_shape(self._build, jax.random.key(0)).memory

    @property
    def options(self) -> Options:
        """What indices are made with."""
        c = self.memory
        names = {field.name for field in dataclasses.fields(Options)} & set(c)
        metric = "inner_product" if c.mode == "attention" else "l2"
        return Options(metric=metric, **{name: c[name] for name in names})

    def fresh(self, rows: int) -> tuple[Store, Carried]:
        """Returns an empty memory that this system's programs can read.

        `close` it when it is read no more.
        """
        serial = next(self._serials)
        state = self.recurrent_state(rows, serial)
        store = Store(
            self.layout(rows), self.options, self.config.seed, state["entries"]
        )
        self.stores[serial] = store
        return store, state

    def close(self, store: Store) -> None:
        """Forgets a memory of `fresh`."""
        del self.stores[int(store.version[0])]

    def recurrent_state(self, rows: int, serial: int = TRAINING) -> Carried:
        """Returns an empty memory and no recent tokens."""
        layout = self.layout(rows)
        return {
            "entries": layout.empty(serial),
            "recent": jnp.full((rows, self._mode.context), -1, jnp.int32),
        }

    def on_restore(self, carried: Carried, host: dict[str, np.ndarray]) -> None:
        """Makes the training store of entries that are fresh or were restored."""
        rows = len(carried["recent"])
        entries = carried["entries"]
        store = Store(self.layout(rows), self.options, self.config.seed, entries, host)
        self.stores[TRAINING] = store

    def on_step_end(self, carried: Carried) -> None:
        """Tells the index what the step has written."""
        self.stores[TRAINING].follow(carried["entries"])

    def host_state(self) -> dict[str, np.ndarray]:
        """Returns the index of the training store, as far as keys do not give it."""
        return self.stores[TRAINING].host_state()

    # A segment

    def train_batch(self, tokens_BT: Any, key: jax.Array, step) -> Batch:
        """Adds how far training is, what it forgets, where rows are, what they weigh.

        "weight_of_row" is their mean: of a group of rows the loss is a share of the
        whole batch's.
        """
        del key
        weight_BT = tokens_BT["weight"]
        rows = len(weight_BT)
        return dict(tokens_BT) | {
            "progress": step / self.config.steps,
            "forget": rng.at(self.config.seed, "memory", step),
            "row": jnp.arange(rows) % self.layout(rows).rows,
            "weight_of_row": jnp.maximum(weight_BT.sum(), 1) / rows,
        }

    def split_groups(
        self, batch: Batch, carried: Carried, groups: int
    ) -> tuple[Batch, Carried]:
        """See `System.split_groups`: a memory goes with the row whose it is."""
        alike = lambda array: jnp.broadcast_to(array, (groups, *jnp.shape(array)))
        of_rows = {name: array for name, array in batch.items() if jnp.ndim(array)}
        whole = {
            "progress": alike(batch["progress"]),
            "weight_of_row": alike(batch["weight_of_row"]),
            "forget": jax.random.split(batch["forget"], groups),
        }
        entries = dict(carried["entries"])
        version = alike(entries.pop("version"))
        held = sharding.in_groups(carried | {"entries": entries}, groups)
        held["entries"]["version"] = version
        return sharding.in_groups(of_rows, groups) | whole, held

    def merge_groups(self, carried: Carried) -> Carried:
        """See `System.merge_groups`."""
        entries = dict(carried["entries"])
        version = entries.pop("version")[0]
        join = lambda array: array.reshape(-1, *array.shape[2:])
        one = jax.tree.map(join, carried | {"entries": entries})
        one["entries"]["version"] = version
        return one

    def look(
        self, state: Carried, reading: str, store_row_B: jax.Array | None = None
    ) -> Look:
        """Returns what a batch looks at: its own memory, another row's, or none.

        Args:
          state: the memory.
          reading: "on", "shuffled" or "off".
          store_row_B: which rows of the store these are; by default the first ones.
        """
        rows, memories = len(state["recent"]), len(state["entries"]["id"])
        row_B = jnp.arange(rows) % memories
        store_row_B = row_B if store_row_B is None else store_row_B
        if reading == "shuffled":
            row_B, store_row_B = jnp.roll(row_B, 1), jnp.roll(store_row_B, 1)
        entries = None if reading == "off" else state["entries"]
        return Look(entries, row_B, self.search, store_row_B)

    def objective(
        self, params: dict, batch: Batch, carried: Carried, dropout_key: jax.Array
    ) -> tuple[jax.Array, Carried]:
        """Returns the mean loss of a segment, and the memory with it written.

        Training stores every token and weighs it when it is read, so that decisions
        have gradients.
        """
        module = self.model(params)
        tokens = batch["tokens"]
        state = model.begin(carried, batch["start"] == 0)
        reads = self.memory.reading if self._mode_reads else "off"
        look = self.look(state, reads, batch["row"])
        if self.memory.budget:
            look.draw = jax.random.fold_in(batch["forget"], 1)
        reading = module.segment(tokens[:, :-1], state["recent"], look, dropout_key)
        nll_BT = layers.cross_entropy(reading.logits_BTV, tokens[:, 1:])
        loss = (nll_BT * batch["weight"]).sum() / (batch["weight_of_row"] * len(tokens))
        state, keep_BT = model.commit(
            module, state, reading, batch, self.memory, False, batch["forget"]
        )
        if self.memory.budget:
            ramp = (batch["progress"] - BUDGET_FROM) / BUDGET_RAMP
            loss += self.memory.budget * jnp.clip(ramp, 0, 1) * keep_BT.mean()
        return loss, state

    @property
    def _mode_reads(self) -> bool:
        """Whether training reads: kNN-LM is not trained."""
        return self.memory.mode != "output"

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T] of tokens [B, T + 1], each row with an empty memory."""
        return super().nll(params, {"tokens": batch["tokens"]}, dropout_key)

    def eval_nll(
        self,
        params: dict,
        windows: Segments,
        rows: int,
        seed: int,
        layout: Any = None,
    ) -> dict[str, np.ndarray]:
        """Returns {"": nats of every prediction that counts}, of documents read."""
        del seed
        if layout and self.config.deterministic:
            params = sharding.of_one_device(params)
        read = evaluation.read(self, params, windows, rows, self.memory.reading)
        return {"": read.nll_NT[windows.weight_NT > 0]}

    def report(self, params: dict, windows: Segments, rows: int) -> dict[str, Any]:
        """Returns figures with the memory on, off and another document's."""
        return evaluation.report(self, params, windows, rows)

    def cache_length(self, T: int) -> int:
        """Returns whole segments for T tokens: a prompt of any length is read."""
        block = self.model_config.block_size
        return block * max(1, math.ceil(T / block))

    def sample(
        self,
        params: dict,
        tokens_BT: np.ndarray,
        prompt_mask_BT: np.ndarray,
        key: jax.Array,
        sampling: SamplingParams = DEFAULT_PARAMS,
        callback: Callback | None = None,
        every: int = 1,
    ) -> SamplerOutput:
        """Fills what is missing; see `session.sample`."""
        del every
        self.sampler(sampling)
        self.decode_order(prompt_mask_BT, sampling, key)
        return session.sample(
            self, params, tokens_BT, prompt_mask_BT, key, sampling, callback
        )
