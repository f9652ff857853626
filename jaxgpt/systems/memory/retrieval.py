"""Reading a memory in a compiled step: what is looked up, and what was retrieved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxgpt.errors import CheckError
from jaxgpt.parallel import sharding
from jaxgpt.parallel.sharding import BATCH
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.store import Store

# (version [2], store rows [B], queries [B, T, G, K]) -> slots [B, T, G, M].
Search = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def make_search(stores: dict[int, Store], k: int) -> Search:
    """Returns a search that may stand in a compiled program; slots are -1 for none.

    It calls the host once for each forward pass and shard, never for a token, and no
    gradient goes through it.

    Args:
      stores: by serial number, which is the first number of a version.
      k: neighbours of each query.
    """

    def on_host(version_2, row_B, query_BTGK):
        # NumPy, not jax.numpy: a computation started here would deadlock, waiting for
        # the one that waits for this callback.
        version_2 = np.asarray(version_2)
        store = stores.get(int(version_2[0]))
        if store is None:
            raise CheckError(f"memory {version_2[0]} does not exist: it was closed")
        return store.search(version_2, np.asarray(row_B), np.asarray(query_BTGK), k)

    def call(version_2, row_B, query_BTGK):
        shape = jax.ShapeDtypeStruct((*query_BTGK.shape[:3], k), jnp.int32)
        return jax.pure_callback(on_host, shape, version_2, row_B, query_BTGK)

    def search(version_2, row_B, query_BTGK):
        query_BTGK = jax.lax.stop_gradient(query_BTGK).astype(jnp.float32)
        # Each device searches for its rows: XLA would gather all queries on one.
        rows = PartitionSpec(BATCH)
        split = sharding.by_device(call, (PartitionSpec(), rows, rows), rows)
        return split(version_2, row_B, query_BTGK)

    return search


def exact_search(entries: Entries, metric: str, k: int) -> Search:
    """Returns a search of all entries inside the compiled program, without the host.

    Of those that are equally near, the smaller slot comes first. A query that is not
    finite finds nothing.

    Args:
      entries: that are searched; a row of the store is a row of theirs.
      metric: "l2" or "inner_product".
      k: neighbours of each query.
    """

    def of_row(asked):
        row, query_TGK = asked
        key_REGK, used_RE = entries["key"], ops.used(entries)
        row = row if len(key_REGK) > 1 else 0  # A constant copies nothing.
        key_EGK = key_REGK[row]
        near_GTE = jnp.einsum(
            "tgk,egk->gte", query_TGK, key_EGK, precision=jax.lax.Precision.HIGHEST
        )
        if metric == "l2":
            # |q|^2 - |q - k|^2: what is left out is the same for all entries.
            near_GTE = 2 * near_GTE - (key_EGK**2).sum(-1).T[:, None]
        near_GTE = jnp.where(used_RE[row], near_GTE, -jnp.inf)
        count = min(k, near_GTE.shape[-1])
        near_GTM, slot_GTM = jax.lax.top_k(near_GTE, count)
        slot_GTM = jnp.where(near_GTM > -jnp.inf, slot_GTM, -1)
        missing = ((0, 0), (0, 0), (0, k - count))
        return jnp.pad(slot_GTM, missing, constant_values=-1)

    def search(version_2, row_B, query_BTGK):
        del version_2
        query_BTGK = jax.lax.stop_gradient(query_BTGK).astype(jnp.float32)
        finite_BTG1 = jnp.isfinite(query_BTGK).all(-1, keepdims=True)
        if len(row_B) == 1:  # In a loop XLA would copy the keys.
            slot_BGTM = of_row((row_B[0], query_BTGK[0]))[None]
        else:  # Only the scores of one row are held at a time.
            slot_BGTM = jax.lax.map(of_row, (row_B, query_BTGK))
        return jnp.where(finite_BTG1, slot_BGTM.swapaxes(1, 2), -1)

    return search


@dataclasses.dataclass(frozen=True)
class Lookup:
    """The memory that a forward pass reads.

    Attributes:
      row_B: the row of entries that each row of the batch reads.
      entries: of the memory; None reads nothing.
      search: finds slots.
      store_row_B: the row of the store that each of row_B is.
      decision_key: store decisions are drawn with it, as training does; None weighs
        entries by their probability instead.
    """

    row_B: jax.Array
    entries: Entries | None = None
    search: Search | None = None
    store_row_B: jax.Array | None = None
    decision_key: jax.Array | None = None

    def find(self, query_BTGK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns slots [B, T, G, M], 0 for none, and which of them are entries."""
        assert self.entries and self.search and self.store_row_B is not None
        slot = self.search(self.entries["version"], self.store_row_B, query_BTGK)
        # The index still has what was emptied for a document that begins just now.
        exists = self.take(self.entries["id"], slot) >= 0
        return jnp.maximum(slot, 0), (slot >= 0) & exists

    def take(self, array_RE: jax.Array, slot: jax.Array) -> jax.Array:
        """Returns what slots [B, ...] hold in the rows that are read."""
        return ops.take(array_RE, self.row_B, slot)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Retrieval:
    """What a forward pass read of a memory.

    Attributes:
      row_B: the row of entries that was read, as of `Lookup`.
      slot_BTM: int32, the slots read, -1 for none (in `attention`, by the first head).
      weight_BTM: float32, how much each contributed, from 0 to 1.
      to_store: arrays of the pass, such as its keys, that `Mode.record` stores.
    """

    row_B: jax.Array
    slot_BTM: jax.Array
    weight_BTM: jax.Array
    to_store: dict[str, jax.Array]
