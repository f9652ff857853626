"""A memory on both sides: its entries on the device, an index over them on the host.

The arrays (`entries`) are the truth; the index follows their stamps. A compiled step
only reads (`search_in`): it writes to its own arrays, and between steps `follow` brings
the index up to date. A search whose arrays are of another version than the index is
an error, not an old answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.errors import CheckError, UserError, log
from jaxgpt.model import rng
from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory import index as indices
from jaxgpt.systems.memory.entries import Entries
from jaxgpt.systems.memory.index import Options


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of a memory: R rows of E places, keys (G, K), shapes of values."""

    rows: int
    places: int
    key: tuple[int, int]
    values: tuple[tuple[str, tuple[int, ...]], ...] = ()
    eviction: str = "oldest"

    def empty(self, serial: int = 0) -> Entries:
        """Returns entries without any."""
        return ops.empty(self.rows, self.places, self.key, dict(self.values), serial)


class Store:
    """A memory of `layout.rows` rows; every change goes through `entries`' functions.

    Capacity is `layout.places` a row; a full row gives up an entry as
    `layout.eviction` says. Ids are given once and stay through save and load.
    """

    def __init__(
        self,
        layout: Layout,
        options: Options,
        seed: int = 0,
        entries: Entries | None = None,
        state: dict[str, np.ndarray] | None = None,
    ):
        """Takes over entries of this layout, and with a `host_state` the index.

        Raises:
          UserError: where FAISS is missing or the options do not fit.
        """
        self.layout, self.options, self.seed = layout, options, seed
        self.searches = 0
        self.attach(layout.empty() if entries is None else entries, state)

    def attach(
        self, entries: Entries, state: dict[str, np.ndarray] | None = None
    ) -> None:
        """Takes over these entries, and with a `host_state` of theirs the index."""
        layout = self.layout
        self.rows = [
            [
                indices.make(layout.places, layout.key[1], self.options)
                for _ in range(layout.key[0])
            ]
            for _ in range(layout.rows)
        ]
        self.stamps = np.full((layout.rows, layout.places), -1, np.int32)
        self.refused = np.array(entries["refused"])
        self.follow(entries, state)

    def follow(
        self, entries: Entries, state: dict[str, np.ndarray] | None = None
    ) -> None:
        """Brings the index up to date with entries; only what changed is moved.

        Of arrays split over devices every part is followed where it is.
        """
        self.entries = entries
        done = set()
        keys = {part.device: part.data for part in entries["key"].addressable_shards}
        for part in entries["stamp"].addressable_shards:
            first = part.index[0].start or 0
            if first not in done:
                done.add(first)
                self._follow(first, np.asarray(part.data), keys[part.device], state)
        self.version = np.array(entries["version"])
        self._report_refused()

    def _follow(self, first, stamps_RE, key_REGK, state) -> None:
        changed = stamps_RE != self.stamps[first : first + len(stamps_RE)]
        row_N, place_N = np.nonzero(changed & (stamps_RE >= 0))
        key_NGK = _gather(key_REGK, row_N, place_N)
        for row in np.flatnonzero(changed.any(1)).tolist():
            gone = np.flatnonzero(changed[row] & (stamps_RE[row] < 0))
            here = row_N == row
            for group, one in enumerate(self.rows[first + row]):
                if state:
                    one.vectors[place_N[here]] = key_NGK[here, group]
                    one.used[place_N[here]] = True
                    continue
                one.drop(gone)
                if here.any():
                    one.put(place_N[here], key_NGK[here, group])
            self.stamps[first + row] = stamps_RE[row]
        if state:
            for row in range(first, first + len(stamps_RE)):
                for group, one in enumerate(self.rows[row]):
                    prefix = f"{row}.{group}."
                    one.restore(
                        {
                            name.removeprefix(prefix): array
                            for name, array in state.items()
                            if name.startswith(prefix)
                        }
                    )

    def host_state(self) -> dict[str, np.ndarray]:
        """Returns what the index holds beyond the keys, as arrays by name."""
        return {
            f"{row}.{group}.{name}": array
            for row, groups in enumerate(self.rows)
            for group, one in enumerate(groups)
            for name, array in one.state().items()
        }

    def _report_refused(self) -> None:
        refused = np.array(self.entries["refused"])
        for row in np.flatnonzero(refused > self.refused):
            log(
                f"warning: memory row {row}: {refused[row] - self.refused[row]} "
                "vectors were not finite and are not stored"
            )
        self.refused = refused

    # Reading

    def search_in(
        self, version_2: np.ndarray, row_B: np.ndarray, query_BTGK: np.ndarray, k: int
    ) -> np.ndarray:
        """Returns places [B, T, G, k], int32, of the nearest entries; -1 for none.

        Raises:
          CheckError: where the entries searched for are not those of the index.
        """
        if not np.array_equal(version_2, self.version):
            raise CheckError(
                f"the memory's index is of version {tuple(self.version.tolist())}, its "
                f"entries of {tuple(np.asarray(version_2).tolist())}: it was not told"
            )
        self.searches += 1
        B, T, G, _ = query_BTGK.shape
        found = np.empty((B, T, G, k), np.int32)
        for b, row in enumerate(row_B):
            for group, one in enumerate(self.rows[int(row)]):
                try:
                    found[b, :, group] = one.search(query_BTGK[b, :, group], k)
                except Exception as error:
                    raise CheckError(f"memory row {row}: {error}") from error
        return found

    def search(
        self, row: int, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids [N, k], distances [N, k]) of a row's nearest entries.

        Distances are squared, or minus the inner product, and exact; where there are
        fewer than k entries ids are -1 and distances infinite.

        Args:
          row: of the memory.
          queries: [N, K]; those that are not finite find nothing.
          k: at least 1.
        """
        if k < 1:
            raise UserError(f"k is at least 1: not {k}")
        queries = np.asarray(queries, np.float32)
        self._check_width(queries)
        one = self.rows[row][0]
        places = one.search(queries, k)
        distances = one.distances(queries, places)
        order = np.argsort(distances, 1, kind="stable")
        places = np.take_along_axis(places, order, 1)
        ids = np.where(places < 0, -1, np.array(self.entries["id"])[row][places])
        return ids, np.take_along_axis(distances, order, 1)

    def get(self, row: int, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """Returns what entries hold: key, values and source; UserError if unknown."""
        places = self._places(row, ids, strict=True)
        names = ("key", *ops.SOURCES, "strength", "id")
        found = {name: np.array(self.entries[name])[row, places] for name in names}
        for name, array in self.entries["values"].items():
            found[name] = np.array(array)[row, places]
        return found

    def size(self, row: int = 0) -> int:
        """Returns how many entries a row has."""
        return int((self.stamps[row] >= 0).sum())

    @property
    def capacity(self) -> int:
        """Entries that a row can have."""
        return self.layout.places

    def ids(self, row: int = 0) -> np.ndarray:
        """Returns the ids of a row, ascending."""
        ids = np.array(self.entries["id"])[row]
        return np.sort(ids[ids >= 0])

    # Changing

    def add(
        self,
        row: int,
        key: np.ndarray,
        *,
        token: Any = 0,
        position: Any = 0,
        document: Any = 0,
        **values: np.ndarray,
    ) -> np.ndarray:
        """Adds entries to a row; returns their ids [N], -1 where one was left out.

        Args:
          row: of the memory.
          key: [N, K], or [N, G, K].
          token, position, document: where each comes from, [N] or one for all.
          **values: [N, ...] of each value in the layout.

        Raises:
          UserError: for another width, or naming the source of what is not finite.
        """
        key = np.asarray(key, np.float32)
        key = key[:, None] if key.ndim == 2 else key
        self._check_width(key)
        count = len(key)
        source = {
            name: np.broadcast_to(np.asarray(value, np.int32), (count,))
            for name, value in (
                ("token", token),
                ("position", position),
                ("document", document),
            )
        }
        given = {name: np.asarray(value, np.float32) for name, value in values.items()}
        if given.keys() != dict(self.layout.values).keys():
            wanted = ", ".join(dict(self.layout.values)) or "none"
            raise UserError(f"an entry has the values {wanted}: not {[*given]}")
        for array in (key, *given.values()):
            bad = ~np.isfinite(array).reshape(count, -1).all(1)
            if bad.any():
                at = int(bad.argmax())
                raise UserError(
                    f"the vector of document {source['document'][at]}, position "
                    f"{source['position'][at]} is not finite: not stored"
                )
        before = np.array(self.entries["next_id"])[row]
        new = self._on_row(row, {"key": key, "values": given, **source})
        wanted = self._on_row(row, np.ones(count, bool))
        self.follow(_write(self.entries, new, wanted, self.layout.eviction))
        made = int(np.array(self.entries["next_id"])[row] - before)
        ids = np.full(count, -1, np.int64)
        kept = slice(count - made, None) if self.layout.eviction != "refuse" else None
        ids[kept or slice(0, made)] = before + np.arange(made)
        return ids

    def remove(self, row: int, ids: Sequence[int]) -> int:
        """Removes entries; returns how many there were. Unknown ids are left alone."""
        gone = np.zeros((self.layout.rows, self.capacity), bool)
        gone[row, self._places(row, ids)] = True
        return self._remove(gone)

    def update(self, row: int, ids: Sequence[int], key: np.ndarray) -> None:
        """Gives entries another key [N, K]; UserError if unknown or not finite."""
        key = np.asarray(key, np.float32)
        key = key[:, None] if key.ndim == 2 else key
        self._check_width(key)
        if not np.isfinite(key).all():
            raise UserError("the new key of an entry is not finite: not stored")
        places = self._places(row, ids, strict=True)
        padded = self._on_row(row, {"key": key, "place": places.astype(np.int32)})
        wanted = self._on_row(row, np.ones(len(places), bool))
        self.follow(_update(self.entries, padded["key"], padded["place"], wanted))

    def age_memory(self, decay: float) -> None:
        """Multiplies the strength of all entries by decay."""
        self.follow(ops.age(self.entries, decay))

    def forget_randomly(self, factor: float) -> int:
        """Removes each entry with probability factor; returns how many went."""
        key = rng.at(self.seed, "memory", int(self.version[1]))
        before = (self.stamps >= 0).sum()
        self.follow(ops.scrub(ops.forget(self.entries, key, factor)))
        return int(before - (self.stamps >= 0).sum())

    def garbage_collect(self, threshold: float) -> int:
        """Removes entries whose key times strength is shorter than threshold."""
        before = (self.stamps >= 0).sum()
        self.follow(ops.scrub(ops.collect(self.entries, threshold)))
        return int(before - (self.stamps >= 0).sum())

    def forget_document(self, document: int) -> int:
        """Removes every entry of a document from all rows; returns how many."""
        return self._remove(np.array(self.entries["document"]) == document)

    def reset(self, row: int | None = None) -> None:
        """Empties a row, or all of them."""
        rows = np.arange(self.layout.rows) == row if row is not None else True
        rows = np.broadcast_to(rows, (self.layout.rows,))
        self.follow(ops.scrub(ops.reset(self.entries, jnp.asarray(rows))))

    def _remove(self, gone_RE: np.ndarray) -> int:
        gone_RE = gone_RE & (self.stamps >= 0)
        self.follow(ops.scrub(ops.remove(self.entries, jnp.asarray(gone_RE))))
        return int(gone_RE.sum())

    def _places(self, row: int, ids: Sequence[int], strict: bool = False) -> np.ndarray:
        known = np.array(self.entries["id"])[row]
        wanted = np.asarray(ids, np.int64).reshape(-1)
        order = np.argsort(known, kind="stable")
        at = np.searchsorted(known[order], wanted).clip(max=len(known) - 1)
        places = order[at]
        there = (known[places] == wanted) & (wanted >= 0)
        if strict and not there.all():
            raise UserError(f"memory row {row} has no entry {wanted[~there][0]}")
        return places[there]

    def _check_width(self, array: np.ndarray) -> None:
        width = self.layout.key[1]
        if array.shape[-1] != width:
            raise UserError(
                f"vectors of width {array.shape[-1]} do not fit a memory of width "
                f"{width}"
            )

    def _on_row(self, row: int, tree: Any) -> Any:
        """Returns arrays [N, ...] as [R, N', ...], zero but for one row.

        N' is a power of two, so that few sizes are compiled for.
        """

        def place(array):
            room = 1 << max(len(array) - 1, 0).bit_length()
            whole = np.zeros((self.layout.rows, room, *array.shape[1:]), array.dtype)
            whole[row, : len(array)] = array
            return whole

        return jax.tree.map(place, tree)


_write = jax.jit(ops.write, static_argnames="eviction")
_update = jax.jit(ops.update)


@jax.jit
def _pick(key_REGK, row_N, place_N):
    return key_REGK[row_N, place_N]


def _gather(key_REGK: jax.Array, row_N: np.ndarray, place_N: np.ndarray) -> np.ndarray:
    """Returns the keys [N, G, K] of some places; only they leave the device."""
    count = len(row_N)
    if not count:
        return np.zeros((0, *key_REGK.shape[2:]), np.float32)
    pad = (0, (1 << (count - 1).bit_length()) - count)
    found = _pick(key_REGK, np.pad(row_N, pad), np.pad(place_N, pad))
    return np.asarray(found)[:count]
