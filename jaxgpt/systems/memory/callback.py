"""The search of a compiled step: one call of the host for each forward and shard."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxgpt.errors import CheckError
from jaxgpt.parallel.sharding import BATCH
from jaxgpt.systems.memory.store import Store

Search = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def searcher(stores: dict[int, Store], k: int) -> Search:
    """Returns search(version_2, row_B, query_BTGK) -> places [B, T, G, k].

    It may stand in a compiled program: one call of the host for each forward pass and
    shard. No gradient goes through it.

    Args:
      stores: by serial number, the first of a version.
      k: neighbours of each query.
    """

    def on_host(version_2, row_B, query_BTGK):
        # Not jnp: a computation here could wait for the one that waits for it.
        version_2 = np.asarray(version_2)
        store = stores.get(int(version_2[0]))
        if store is None:
            raise CheckError(f"there is no memory number {version_2[0]}: it was closed")
        return store.search_in(version_2, np.asarray(row_B), np.asarray(query_BTGK), k)

    def call(version_2, row_B, query_BTGK):
        shape = jax.ShapeDtypeStruct((*query_BTGK.shape[:3], k), jnp.int32)
        return jax.pure_callback(on_host, shape, version_2, row_B, query_BTGK)

    def search(version_2, row_B, query_BTGK):
        query_BTGK = jax.lax.stop_gradient(query_BTGK).astype(jnp.float32)
        if device_count() == 1:
            return call(version_2, row_B, query_BTGK)
        # Otherwise XLA would gather all queries on one device.
        rows = PartitionSpec(BATCH)
        specs = (PartitionSpec(), rows, rows)
        split = jax.shard_map(call, in_specs=specs, out_specs=rows, check_vma=False)
        return split(version_2, row_B, query_BTGK)

    return search


def device_count() -> int:
    """Returns how many devices the program that is being traced is split over.

    Inside of `shard_map` it is that of one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.are_all_axes_manual else mesh.size
