"""A memory on both sides: its entries on the device, an index of them on the host.

The arrays (`entries`) are the source of truth; the index follows their stamps. XLA may
drop, repeat or hoist a callback, so a compiled step only searches: what it writes are
outputs, and between two steps `update` brings the index up to date. A search for
entries of another version than the index has is an error, not an outdated answer.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxgpt.errors import CheckError, log
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.config import IndexConfig
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.index import make_index


class Store:
    """Entries, and for each row and head an index of the keys.

    `searches` counts the calls of `search`.
    """

    def __init__(
        self,
        entries: Entries,
        config: IndexConfig,
        state: dict[str, np.ndarray] | None = None,
    ):
        """Indexes the entries, or restores their `host_state`.

        Raises:
          UserError: if FAISS is missing or the config does not suit the entries.
        """
        self.config = config
        self.searches = 0
        self.load(entries, state)

    def load(self, entries: Entries, state: dict[str, np.ndarray] | None) -> None:
        """Replaces the contents; the arguments are those of the constructor."""
        R, E, G, K = entries["key"].shape
        make = lambda: make_index(E, K, self.config)
        self.indices = [[make() for _ in range(G)] for _ in range(R)]
        self.stamps = np.full((R, E), -1, np.int32)
        self.refused = np.array(entries["refused"])
        self.update(entries, state)

    def update(
        self, entries: Entries, state: dict[str, np.ndarray] | None = None
    ) -> None:
        """Brings the index up to date with entries; only keys that changed are moved.

        Of arrays split over devices, every part is read where it is.
        """
        self.entries = entries
        done = set()
        keys = {part.device: part.data for part in entries["key"].addressable_shards}
        for part in entries["stamp"].addressable_shards:
            first_row = part.index[0].start or 0
            if first_row not in done:
                done.add(first_row)
                stamps_RE, key_REGK = np.asarray(part.data), keys[part.device]
                self._update_rows(first_row, stamps_RE, key_REGK, state)
        self.version = np.array(entries["version"])
        refused_R = np.array(entries["refused"])
        for row in np.flatnonzero(refused_R > self.refused):
            log(
                f"warning: memory row {row}: {refused_R[row] - self.refused[row]} "
                "vectors were not finite and are not stored"
            )
        self.refused = refused_R

    def _update_rows(self, first_row, stamps_RE, key_REGK, state) -> None:
        known_RE = self.stamps[first_row : first_row + len(stamps_RE)]
        changed_N = np.flatnonzero(stamps_RE != known_RE)
        row_N, slot_N = np.divmod(changed_N, stamps_RE.shape[1])
        # In the order of writing, in which an index grows.
        order_N = np.lexsort((stamps_RE[row_N, slot_N], row_N))
        row_N, slot_N = row_N[order_N], slot_N[order_N]
        stamp_N = known_RE[row_N, slot_N] = stamps_RE[row_N, slot_N]
        written_N = stamp_N >= 0
        key_NGK = _gather(key_REGK, row_N[written_N], slot_N[written_N])
        for row in range(len(stamps_RE)) if state else np.unique(row_N):
            removed = slot_N[(row_N == row) & ~written_N]
            written = slot_N[(row_N == row) & written_N]
            of_row = row_N[written_N] == row
            for head, index in enumerate(self.indices[first_row + row]):
                vectors = key_NGK[of_row, head]
                if state:
                    prefix = f"{first_row + row}.{head}."
                    index.restore(written, vectors, with_prefix(state, prefix))
                    continue
                index.remove(removed)
                if len(vectors):
                    index.add(written, vectors)

    def host_state(self) -> dict[str, np.ndarray]:
        """Returns what the index holds in addition to the keys, as arrays by name."""
        return {
            f"{row}.{head}.{name}": array
            for row, indices in enumerate(self.indices)
            for head, index in enumerate(indices)
            for name, array in index.state().items()
        }

    def search(
        self, version_2: np.ndarray, row_B: np.ndarray, query_BTGK: np.ndarray, k: int
    ) -> np.ndarray:
        """Returns slots [B, T, G, k], int32, of the nearest entries; -1 for none.

        Raises:
          CheckError: if the entries searched for are not those of the index.
        """
        if not np.array_equal(version_2, self.version):
            raise CheckError(
                f"the memory's index is out of sync: it has version "
                f"{tuple(self.version.tolist())}, the entries have "
                f"{tuple(np.asarray(version_2).tolist())}"
            )
        self.searches += 1
        B, T, G, _ = query_BTGK.shape
        found = np.empty((B, T, G, k), np.int32)
        for b, row in enumerate(row_B):
            for head, index in enumerate(self.indices[int(row)]):
                try:
                    found[b, :, head] = index.search(query_BTGK[b, :, head], k)
                except Exception as error:
                    raise CheckError(f"memory row {row}: {error}") from error
        return found

    def size(self, row: int = 0) -> int:
        """Returns how many entries a row has."""
        return int((self.stamps[row] >= 0).sum())

    def forget_document(self, document: int) -> int:
        """Removes every entry of a document from all rows; returns how many.

        The others are as if it had never been written: they move and get new ids, later
        documents are numbered one less, and the index is rebuilt. What its entries had
        evicted does not come back.
        """
        gone_RE = np.asarray(self.entries["document"]) == document
        gone_RE &= self.stamps >= 0
        left = ops.remove_document(self.entries, document)
        self.load(ops.next_version(left), None)
        return int(gone_RE.sum())


def with_prefix(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose names begin with a prefix, named without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


@jax.jit
def _pick(key_REGK, row_N, slot_N):
    return key_REGK[row_N, slot_N]


def _gather(key_REGK: jax.Array, row_N: np.ndarray, slot_N: np.ndarray) -> np.ndarray:
    """Returns the keys [N, G, K] of some slots; only they leave the device."""
    count = len(row_N)
    if not count:
        return np.zeros((0, *key_REGK.shape[2:]), np.float32)
    # A power of two, so that few sizes are compiled for.
    at_2N = np.zeros((2, 1 << (count - 1).bit_length()), np.int32)
    at_2N[:, :count] = row_N, slot_N
    return np.asarray(_pick(key_REGK, *at_2N))[:count]
