"""Nearest neighbours among the slots of one row, by FAISS, which only this imports.

An index holds the vector of each slot (`add`, `remove`) and answers with slots,
so that the ids FAISS uses inside never show. What it becomes depends on the vectors
and their order, not on how they were cut into calls of `add`.
"""

from __future__ import annotations

import threading
from typing import Any, cast

import numpy as np

from jaxgpt.errors import UserError, log, require
from jaxgpt.systems.memory.config import IndexConfig

# FAISS's own minimum: clusters learned from fewer vectors each are poor.
VECTORS_PER_CLUSTER = 39
# FAISS recommends 39 for each of a codebook's 256 words too, but this many suffice.
CODEBOOK_VECTORS = 2048
# Share of a graph's nodes that may be deleted before it is rebuilt.
DELETED_SHARE = 0.5
# Vectors that a graph is extended by. Each call of FAISS's add takes time linear in the
# size of the graph, so that one at a time they would take quadratic time.
GRAPH_BLOCK = 64
# One call at a time: FAISS's threads and XLA's share the same cores.
LOCK = threading.RLock()
_warned: set[str] = set()


def make_index(slots: int, width: int, config: IndexConfig) -> FlatIndex:
    """Returns an empty index of vectors of this width.

    Raises:
      UserError: if FAISS is missing, or the config does not suit the width.
    """
    return INDEX_TYPES[config.index_type](slots, width, config)


class FlatIndex:
    """Exact search. The other types search like this until they can be trained."""

    def __init__(self, slots: int, width: int, config: IndexConfig):
        try:
            import faiss  # Optional: only a memory needs it.
        except ImportError:
            raise UserError(
                "a memory needs FAISS, which is not installed: pip install faiss-cpu"
            ) from None
        self.faiss = faiss
        self.config, self.width = config, width
        self.inner = config.metric == "inner_product"
        self.metric = faiss.METRIC_INNER_PRODUCT if self.inner else faiss.METRIC_L2
        self.vectors = np.zeros((slots, width), np.float32)
        self.used = np.zeros(slots, bool)
        self._packed: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        """Puts finite vectors [n, width] into slots [n], replacing what is there."""
        vectors = np.ascontiguousarray(vectors, np.float32)
        with LOCK:
            self.remove(slots)
            self.vectors[slots], self.used[slots] = vectors, True
            self._insert(slots, vectors)

    def remove(self, slots: np.ndarray) -> None:
        """Empties these slots and overwrites their vectors."""
        slots = slots[self.used[slots]]
        with LOCK:
            self.vectors[slots], self.used[slots] = 0, False
            self._packed = None
            if len(slots):
                self._delete(slots)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Returns the slots [n, k], int32, nearest first; -1 if there are fewer.

        A query that is not finite finds nothing.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        found = np.full((len(queries), k), -1, np.int32)
        if not self.used.any():
            return found
        bad = ~np.isfinite(queries).all(1)
        if bad.any():
            queries = np.where(bad[:, None], 0, queries)
        with LOCK:
            self._set_up_faiss()
            slots = self._nearest(queries, k)
        found[:, : slots.shape[1]] = slots
        found[bad] = -1
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Returns what cannot be recomputed from the vectors; for this type nothing."""
        return {}

    def restore(
        self, slots: np.ndarray, vectors: np.ndarray, state: dict[str, np.ndarray]
    ) -> None:
        """Becomes the index that held these vectors when it returned this `state`."""
        self.vectors[slots], self.used[slots] = vectors, True

    def _set_up_faiss(self, by_matrices: bool = True) -> None:
        """Sets what is global in FAISS: threads, and how vectors are compared.

        Matrix products are faster from about 8 vectors on, but then the last bits of
        one vector's distances depend on the others.
        """
        self.faiss.omp_set_num_threads(self.config.threads)
        never, cvar = np.iinfo(np.int32).max, cast(Any, self.faiss.cvar)
        # In numbers: of vectors times their width.
        cvar.distance_compute_blas_threshold = 8 * self.width if by_matrices else never
        cvar.product_quantizer_compute_codes_bs = 1  # Vectors at a time.

    def _insert(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        """Is called by `add` after the vectors are in place."""

    def _delete(self, slots: np.ndarray) -> None:
        """Is called by `remove`, and by `add` before vectors are replaced."""

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self._packed is None:
            slots = np.flatnonzero(self.used)
            dense = len(slots) == slots[-1] + 1  # Then a view needs no copy.
            vectors = self.vectors[: len(slots)] if dense else self.vectors[slots]
            self._packed = slots, vectors
        slots, vectors = self._packed
        k = min(k, len(slots))
        _, found = self.faiss.knn(queries, vectors, k, metric=self.metric)
        return np.where(found < 0, -1, slots[found])

    def _deserialize(self, data: np.ndarray) -> Any:
        """Returns a FAISS index; UserError if it is damaged or of another width."""
        try:
            index = self.faiss.deserialize_index(np.array(data, np.uint8))
        except RuntimeError:
            raise UserError("the stored index is damaged: it cannot be read") from None
        if index.d != self.width:
            raise UserError(
                f"the stored index has width {index.d}, this memory {self.width}"
            )
        return index


class IVFIndex(FlatIndex):
    """Searches the nearest clusters, once there are enough vectors to learn them from.

    They are learned from the first `min_vectors`, and again after as many writes as
    there were vectors to learn them from.
    """

    def __init__(self, slots: int, width: int, config: IndexConfig):
        super().__init__(slots, width, config)
        self.index: Any = None
        self.trained_on = self.writes = 0  # Writes are counted from the training on.

    @property
    def min_vectors(self) -> int:
        """Vectors to learn the clusters from."""
        return VECTORS_PER_CLUSTER * self.config.num_clusters

    @property
    def factory(self) -> str:
        """What FAISS calls this type of index."""
        return f"IVF{self.config.num_clusters},Flat"

    def _train(self, slots: np.ndarray) -> None:
        """Learns the clusters from the vectors of these slots, and indexes them."""
        c = self.config
        index = self.faiss.index_factory(self.width, self.factory, self.metric)
        if hasattr(index, "pq"):
            index.pq.cp.min_points_per_centroid = 1  # Otherwise it warns on stderr.
        self._set_up_faiss()
        vectors = self.vectors[slots]
        index.train(vectors)
        index.nprobe = min(c.num_probes, c.num_clusters)
        index.set_direct_map_type(self.faiss.DirectMap.Hashtable)
        self.index, self.trained_on, self.writes = index, len(slots), 0
        self._add_to_lists(slots, vectors)

    def _add_to_lists(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        self._set_up_faiss(by_matrices=False)
        self.index.add_with_ids(vectors, slots.astype(np.int64))

    def _insert(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        before, trained_at = int(self.used.sum()) - len(slots), None
        due = max(0, self.trained_on - self.writes, self.min_vectors - before)
        while due <= len(slots):
            # Only the last training that is due has an effect.
            trained_at, due = due, due + before + due
        if trained_at is not None:
            slots, vectors = slots[trained_at:], vectors[trained_at:]
            earlier = self.used.copy()
            earlier[slots] = False
            self._train(np.flatnonzero(earlier))
        self.writes += len(slots)
        if self.index is not None:
            self._add_to_lists(slots, vectors)
        elif self.config.index_type not in _warned:
            _warned.add(self.config.index_type)
            log(
                f"note: index_type={self.config.index_type} searches exactly until a "
                f"row holds {self.min_vectors} vectors"
            )

    def _delete(self, slots: np.ndarray) -> None:
        if self.index is not None:
            self.index.remove_ids(slots.astype(np.int64))

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.index is None:
            return super()._nearest(queries, k)
        return self.index.search(queries, k)[1]

    def state(self) -> dict[str, np.ndarray]:
        """Returns the clusters with their lists."""
        state = {"writes": np.array([self.writes, self.trained_on], np.int64)}
        if self.index is not None:
            # The direct map follows from the lists, but the order of its hash table
            # differs from process to process: states would not be bit-equal.
            with LOCK:
                self.index.set_direct_map_type(self.faiss.DirectMap.NoMap)
                state["index"] = self.faiss.serialize_index(self.index)
                self.index.set_direct_map_type(self.faiss.DirectMap.Hashtable)
        return state

    def restore(self, slots, vectors, state) -> None:
        """See `FlatIndex.restore`."""
        super().restore(slots, vectors, state)
        # Older checkpoints hold only the writes: in their version the clusters were
        # learned again after as many writes as there are slots.
        numbers = [*state["writes"].tolist(), len(self.used)]
        self.writes, self.trained_on = numbers[:2]
        self.index = self._deserialize(state["index"]) if "index" in state else None
        if self.index is None:
            self.trained_on = 0
        else:
            self.index.set_direct_map_type(self.faiss.DirectMap.Hashtable)


class IVFPQIndex(IVFIndex):
    """IVF with product quantization: finds candidates by codes, ranks them exactly."""

    def __init__(self, slots: int, width: int, config: IndexConfig):
        super().__init__(slots, width, config)
        divides = width % config.code_bytes == 0
        rule = f"a divisor of the width of a key, {width}"
        require(divides, "memory.code_bytes", rule, config.code_bytes)

    @property
    def min_vectors(self) -> int:
        """Vectors to learn the clusters and codebooks from."""
        return max(super().min_vectors, CODEBOOK_VECTORS)

    @property
    def factory(self) -> str:
        """Codes of 8 bits; "np" does not reorder them for polysemous search."""
        return f"IVF{self.config.num_clusters},PQ{self.config.code_bytes}x8np"

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.index is None:
            return super()._nearest(queries, k)
        count = min(k * self.config.candidates, int(self.used.sum()))
        slots = self.index.search(queries, count)[1]
        vectors = self.vectors[np.maximum(slots, 0)]
        if self.inner:
            distances = -np.einsum("nd,nkd->nk", queries, vectors)
        else:
            distances = ((queries[:, None] - vectors) ** 2).sum(-1)
        distances[slots < 0] = np.inf
        order = np.argsort(distances, 1, kind="stable")[:, :k]
        return np.take_along_axis(slots, order, 1)


class HNSWIndex(FlatIndex):
    """A graph of near neighbours. FAISS removes no nodes: searches skip deleted ones.

    It grows by blocks of `GRAPH_BLOCK` nodes. The last nodes, which do not fill a block
    yet, are searched exactly.
    """

    def __init__(self, slots: int, width: int, config: IndexConfig):
        super().__init__(slots, width, config)
        self._clear()

    def _clear(self) -> None:
        links, width = self.config.links, self.width
        self.index = self.faiss.IndexHNSWFlat(width, links, self.metric)
        self.index.hnsw.efConstruction = self.config.ef_construction
        self.slot_of = np.zeros(0, np.int32)
        self.alive = np.zeros(0, bool)
        self.node_of = np.full(len(self.used), -1, np.int64)

    def _insert(self, slots: np.ndarray, vectors: np.ndarray) -> None:
        self.node_of[slots] = len(self.slot_of) + np.arange(len(slots))
        self.slot_of = np.concatenate([self.slot_of, slots.astype(np.int32)])
        self.alive = np.concatenate([self.alive, np.ones(len(slots), bool)])
        self.faiss.omp_set_num_threads(1)  # More would link nodes in a random order.
        while (first := self.index.ntotal) + GRAPH_BLOCK <= len(self.slot_of):
            # A serialized graph does not keep the state of its generator: reseeded, a
            # restored one grows like one that was never stored.
            self.index.hnsw.rng = self.faiss.RandomGenerator(first)
            self.index.add(self.vectors[self.slot_of[first : first + GRAPH_BLOCK]])

    def _delete(self, slots: np.ndarray) -> None:
        self.alive[self.node_of[slots]] = False
        self.node_of[slots] = -1
        # Nodes in no block yet can be removed.
        linked = self.index.ntotal
        kept = self.alive | (np.arange(len(self.alive)) < linked)
        self.slot_of, self.alive = self.slot_of[kept], self.alive[kept]
        waiting = self.slot_of[linked:]
        self.node_of[waiting] = linked + np.arange(len(waiting))
        if (~self.alive).sum() > DELETED_SHARE * len(self.alive):
            left = self.slot_of[self.alive]
            self._clear()
            self._insert(left, self.vectors[left])

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        linked, k = self.index.ntotal, min(k, int(self.alive.sum()))
        options: dict[str, Any] = {"efSearch": max(self.config.ef_search, k)}
        if not self.alive.all():
            bits = np.packbits(self.alive, bitorder="little")
            options["sel"] = self.faiss.IDSelectorBitmap(bits)
        parameters = self.faiss.SearchParametersHNSW(**options)
        far, nodes = self.index.search(queries, k, params=parameters)
        waiting = self.vectors[self.slot_of[linked:]]
        if len(waiting):
            count = min(k, len(waiting))
            more = self.faiss.knn(queries, waiting, count, metric=self.metric)
            far = np.concatenate([far, more[0]], 1)
            nodes = np.concatenate([nodes, linked + more[1]], 1)
            # FAISS gives nodes that were not found the worst distance.
            order = np.argsort(-far if self.inner else far, 1, kind="stable")[:, :k]
            nodes = np.take_along_axis(nodes, order, 1)
        return np.where(nodes < 0, -1, self.slot_of[nodes])

    def state(self) -> dict[str, np.ndarray]:
        """Returns the graph and the slot of each node."""
        return {
            "index": self.faiss.serialize_index(self.index),
            "place_of": self.slot_of,  # The name it has in checkpoints.
            "alive": self.alive.astype(np.uint8),
        }

    def restore(self, slots, vectors, state) -> None:
        """See `FlatIndex.restore`."""
        super().restore(slots, vectors, state)
        self.index = self._deserialize(state["index"])
        self.slot_of = np.array(state["place_of"], np.int32)
        self.alive = np.array(state["alive"], bool)
        nodes = np.flatnonzero(self.alive)
        self.node_of[self.slot_of[nodes]] = nodes


INDEX_TYPES = {
    "flat": FlatIndex,
    "ivf": IVFIndex,
    "compressed": IVFPQIndex,
    "graph": HNSWIndex,
}
