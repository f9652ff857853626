"""Nearest neighbours among the places of one row: FAISS, and nothing else imports it.

An index follows its row: `put` and `drop` tell it what stands where. Its answers are
places, so that whatever it holds inside never shows.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from jaxgpt.errors import UserError, log
from jaxgpt.systems.memory.config import IndexConfig as Options

KINDS = ("flat", "ivf", "compressed", "graph")
# FAISS's rule: fewer vectors for each cluster make poor clusters.
TRAINING_VECTORS = 39
# For each of the 256 words of a codebook FAISS wants 39 too: this many already serve.
CODEBOOK_VECTORS = 2048
# Of a graph, above which it is built anew.
DEAD_SHARE = 0.5
# One at a time: FAISS's threads and XLA's share the same cores.
LOCK = threading.RLock()
_said: set[str] = set()


def load_faiss() -> Any:
    """Returns the module; UserError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError(
            "a memory needs FAISS, which is not installed: pip install faiss-cpu"
        ) from None
    return faiss


def make(capacity: int, width: int, options: Options) -> Exact:
    """Returns an empty index of this kind.

    Raises:
      UserError: where FAISS is missing, or the options do not fit the width.
    """
    kinds = {"flat": Exact, "ivf": Clustered, "compressed": Compressed, "graph": Graph}
    return kinds[options.index_type](capacity, width, options)


class Exact:
    """Looks at every vector. The others are this one until they are ready."""

    def __init__(self, capacity: int, width: int, options: Options):
        self.faiss = load_faiss()
        self.options = options
        inner = options.metric == "inner_product"
        self.metric = self.faiss.METRIC_INNER_PRODUCT if inner else self.faiss.METRIC_L2
        self.vectors = np.zeros((capacity, width), np.float32)
        self.used = np.zeros(capacity, bool)
        self._packed: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def width(self) -> int:
        """Of a vector."""
        return self.vectors.shape[1]

    def put(self, places: np.ndarray, vectors: np.ndarray) -> None:
        """Says that these vectors [n, width] stand at places [n] from now on.

        Raises:
          UserError: for another width, or what is not finite.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.shape != (len(places), self.width):
            raise UserError(
                f"a vector of shape {vectors.shape[1:]} does not fit a memory of "
                f"width {self.width}"
            )
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            raise UserError(
                f"the vector for place {places[~finite][0]} is not finite: not stored"
            )
        known = places[self.used[places]]
        with LOCK:
            if len(known):
                self._delete(known)
            self.vectors[places], self.used[places] = vectors, True
            self._packed = None
            self._insert(places, vectors)

    def drop(self, places: np.ndarray) -> None:
        """Says that nothing stands at these places any more."""
        places = places[self.used[places]]
        with LOCK:
            self.used[places] = False
            self._packed = None
            if len(places):
                self._delete(places)

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """Returns the places [n, k], int32, nearest first; -1 where there are fewer.

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
            self.faiss.omp_set_num_threads(self.options.threads)
            # It compares vectors times width: below, FAISS goes one by one.
            self.faiss.cvar.distance_compute_blas_threshold = 8 * self.width
            places = self._nearest(queries, k)
        found[:, : places.shape[1]] = places
        found[bad] = -1
        return found

    def distances(self, queries: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the exact distances [n, k]: squared, or minus the inner product."""
        vectors = self.vectors[np.maximum(places, 0)]
        if self.options.metric == "inner_product":
            distances = -np.einsum("nd,nkd->nk", queries, vectors)
        else:
            distances = ((queries[:, None] - vectors) ** 2).sum(-1)
        return np.where(places < 0, np.inf, distances)

    def state(self) -> dict[str, np.ndarray]:
        """Returns what the vectors alone do not say; nothing here."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes over a `state` of the same vectors."""

    def _insert(self, places: np.ndarray, vectors: np.ndarray) -> None:
        """Follows `put`."""

    def _delete(self, places: np.ndarray) -> None:
        """Follows `drop`, and comes before vectors are replaced."""

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self._packed is None:
            top = int(np.flatnonzero(self.used)[-1]) + 1
            places = np.flatnonzero(self.used)
            whole = len(places) == top
            vectors = self.vectors[:top] if whole else self.vectors[places]
            self._packed = places, vectors
        places, vectors = self._packed
        k = min(k, len(places))
        _, found = self.faiss.knn(queries, vectors, k, metric=self.metric)
        return np.where(found < 0, -1, places[found])


class Clustered(Exact):
    """IVF: looks at the vectors of the nearest clusters, once there are enough.

    After as many writes as there are places it learns its clusters anew.
    """

    def __init__(self, capacity: int, width: int, options: Options):
        super().__init__(capacity, width, options)
        self.index: Any = None
        self.writes = 0

    @property
    def needed(self) -> int:
        """Vectors to learn clusters from."""
        return TRAINING_VECTORS * self.options.num_clusters

    def _empty(self) -> Any:
        quantizer = self.faiss.IndexFlat(self.width, self.metric)
        quantizer.this.disown()
        index = self.faiss.IndexIVFFlat(
            quantizer, self.width, self.options.num_clusters, self.metric
        )
        index.own_fields = True
        return index

    def _train(self) -> None:
        places = np.flatnonzero(self.used)
        index = self._empty()
        self.faiss.omp_set_num_threads(self.options.threads)
        index.train(self.vectors[places])
        index.nprobe = min(self.options.num_probes, self.options.num_clusters)
        index.set_direct_map_type(self.faiss.DirectMap.Hashtable)
        index.add_with_ids(self.vectors[places], places.astype(np.int64))
        self.index, self.writes = index, 0

    def _insert(self, places: np.ndarray, vectors: np.ndarray) -> None:
        self.writes += len(places)
        if self.index is None or self.writes > len(self.used):
            if self.used.sum() >= self.needed:
                self._train()
            else:
                self._say_exact()
            return
        self.index.add_with_ids(vectors, places.astype(np.int64))

    def _say_exact(self) -> None:
        kind = self.options.index_type
        if self.index is None and kind not in _said:
            _said.add(kind)
            log(
                f"note: index_type={kind} searches exactly until a row holds "
                f"{self.needed} vectors"
            )

    def _delete(self, places: np.ndarray) -> None:
        if self.index is not None:
            self.index.remove_ids(places.astype(np.int64))

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.index is None:
            return super()._nearest(queries, k)
        return self.index.search(queries, k)[1]

    def state(self) -> dict[str, np.ndarray]:
        """Returns the clusters with their lists."""
        writes = np.array([self.writes], np.int64)
        if self.index is None:
            return {"writes": writes}
        return {"writes": writes, "index": self.faiss.serialize_index(self.index)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes over clusters."""
        self.writes = int(state["writes"][0])
        self.index = None
        if "index" in state:
            self.index = _deserialize(self.faiss, state["index"], self.width)


class Compressed(Clustered):
    """IVF with product quantization: finds candidates by codes, ranks them exactly."""

    def __init__(self, capacity: int, width: int, options: Options):
        super().__init__(capacity, width, options)
        if width % options.code_bytes:
            raise UserError(
                f"memory.code_bytes {options.code_bytes} does not divide the width "
                f"{width} of a key"
            )

    @property
    def needed(self) -> int:
        """Vectors to learn clusters and codebooks from."""
        return max(super().needed, CODEBOOK_VECTORS)

    def _empty(self) -> Any:
        quantizer = self.faiss.IndexFlat(self.width, self.metric)
        quantizer.this.disown()
        o = self.options
        index = self.faiss.IndexIVFPQ(
            quantizer, self.width, o.num_clusters, o.code_bytes, 8, self.metric
        )
        index.pq.cp.min_points_per_centroid = 1  # No warning on stderr.
        index.own_fields = True
        return index

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        if self.index is None:
            return super()._nearest(queries, k)
        count = min(k * self.options.candidates, int(self.used.sum()))
        places = self.index.search(queries, count)[1]
        order = np.argsort(self.distances(queries, places), 1, kind="stable")[:, :k]
        return np.take_along_axis(places, order, 1)


class Graph(Exact):
    """HNSW. Nothing leaves such a graph: the dead are passed over in searches.

    When half of it is dead, it is built anew.
    """

    def __init__(self, capacity: int, width: int, options: Options):
        super().__init__(capacity, width, options)
        self._clear()

    def _clear(self) -> None:
        self.index = self.faiss.IndexHNSWFlat(
            self.width, self.options.links, self.metric
        )
        self.index.hnsw.efConstruction = self.options.ef_construction
        self.place_of = np.zeros(0, np.int32)
        self.alive = np.zeros(0, bool)
        self.node_of = np.full(len(self.used), -1, np.int64)

    def _insert(self, places: np.ndarray, vectors: np.ndarray) -> None:
        self.faiss.omp_set_num_threads(self.options.threads)
        first = self.index.ntotal
        # A graph that is read from a file has not kept its random numbers.
        self.index.hnsw.rng = self.faiss.RandomGenerator(first)
        self.index.add(vectors)
        self.node_of[places] = first + np.arange(len(places))
        self.place_of = np.concatenate([self.place_of, places.astype(np.int32)])
        self.alive = np.concatenate([self.alive, np.ones(len(places), bool)])

    def _delete(self, places: np.ndarray) -> None:
        self.alive[self.node_of[places]] = False
        self.node_of[places] = -1
        if (~self.alive).sum() > DEAD_SHARE * len(self.alive):
            kept = self.place_of[self.alive]
            self._clear()
            if len(kept):
                self._insert(kept, self.vectors[kept])

    def _nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        k = min(k, int(self.alive.sum()))
        chosen: dict[str, Any] = {"efSearch": max(self.options.ef_search, k)}
        if not self.alive.all():
            bits = np.packbits(self.alive, bitorder="little")
            chosen["sel"] = self.faiss.IDSelectorBitmap(bits)
        parameters = self.faiss.SearchParametersHNSW(**chosen)
        nodes = self.index.search(queries, k, params=parameters)[1]
        return np.where(nodes < 0, -1, self.place_of[nodes])

    def state(self) -> dict[str, np.ndarray]:
        """Returns the graph and which place each node stands for."""
        return {
            "index": self.faiss.serialize_index(self.index),
            "place_of": self.place_of,
            "alive": self.alive.astype(np.uint8),
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes over a graph."""
        self.index = _deserialize(self.faiss, state["index"], self.width)
        self.place_of = np.array(state["place_of"], np.int32)
        self.alive = np.array(state["alive"], bool)
        self.node_of = np.full(len(self.used), -1, np.int64)
        nodes = np.flatnonzero(self.alive)
        self.node_of[self.place_of[nodes]] = nodes


def _deserialize(faiss: Any, data: np.ndarray, width: int) -> Any:
    """Reads an index; UserError where it is damaged or of another width."""
    try:
        index = faiss.deserialize_index(np.array(data, np.uint8))
    except RuntimeError:
        raise UserError("the stored index is damaged: it cannot be read") from None
    if index.d != width:
        raise UserError(f"the stored index is of width {index.d}, not {width}")
    return index
