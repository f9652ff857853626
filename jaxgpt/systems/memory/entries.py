"""What a memory holds: a tree of arrays on the device, which are the truth.

Dimension key, beside that of `core.transformer`:

  R rows of memory: the batch's, or one that all share     E places in a row
  G keys of an entry (attention heads, else 1)             N entries offered to a row

Every function is pure and takes and returns the whole tree:

  key [R, E, G, K]                  float32, what is searched
  values {name: [R, E, ...]}        float32, what a mode reads
  token, position, document [R, E]  int32, where an entry comes from
  strength [R, E]                   float32, 1 when written, less with age
  id [R, E]                         int32, given once in a row; -1 is a free place
  stamp [R, E]                      int32, differs after every write; -1 is a free place
  next_id, clock, refused [R]       int32, of id and stamp; vectors that were not finite
  version [2]                       int32, the number of the store and of its changes
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Entries = dict[str, Any]
EVICTIONS = ("oldest", "weakest", "refuse")
SOURCES = ("token", "position", "document")


def empty(
    rows: int,
    places: int,
    key: tuple[int, int],
    values: dict[str, tuple[int, ...]],
    serial: int = 0,
) -> Entries:
    """Returns a memory without entries.

    Args:
      rows, places: R and E.
      key: (G, K).
      values: the shape of each value of an entry.
      serial: the number of the store.
    """
    flat = (rows, places)
    return {
        "key": jnp.zeros((*flat, *key), jnp.float32),
        "values": {
            name: jnp.zeros((*flat, *shape), jnp.float32)
            for name, shape in values.items()
        },
        **{name: jnp.zeros(flat, jnp.int32) for name in SOURCES},
        "strength": jnp.zeros(flat, jnp.float32),
        "id": jnp.full(flat, -1, jnp.int32),
        "stamp": jnp.full(flat, -1, jnp.int32),
        **{
            name: jnp.zeros(rows, jnp.int32) for name in ("next_id", "clock", "refused")
        },
        "version": jnp.array([serial, 0], jnp.int32),
    }


def used(entries: Entries) -> jax.Array:
    """Returns [R, E]: which places hold an entry."""
    return entries["id"] >= 0


def size(entries: Entries) -> jax.Array:
    """Returns how many entries each row [R] has."""
    return used(entries).sum(1)


def write(
    entries: Entries, new: Entries, wanted_RN: jax.Array, eviction: str = "oldest"
) -> Entries:
    """Writes the wanted entries of each row, in order, into free places first.

    In a full row the oldest (lowest id) or the weakest (least strength, then oldest)
    gives way; with "refuse" what finds no free place is left out. Of more than E a row
    keeps the last. What is not finite is left out and counted.

    Args:
      entries: to be written to.
      new: key [R, N, G, K], values, and `SOURCES` [R, N].
      wanted_RN: which of them.
      eviction: of `EVICTIONS`.
    """
    R, E = entries["id"].shape
    finite_RN = jnp.ones(wanted_RN.shape, bool)
    for array in (new["key"], *new["values"].values()):
        finite_RN &= jnp.isfinite(array).reshape(*wanted_RN.shape, -1).all(-1)
    refused_R = (wanted_RN & ~finite_RN).sum(1)
    wanted_RN &= finite_RN
    nth_RN = wanted_RN.cumsum(1) - 1
    if eviction == "refuse":
        wanted_RN &= nth_RN < (E - size(entries))[:, None]
    else:
        surplus_R1 = jnp.maximum(wanted_RN.sum(1, keepdims=True) - E, 0)
        wanted_RN &= nth_RN >= surplus_R1
        nth_RN -= surplus_R1
    order_RE = _giving_way(entries, eviction, min(wanted_RN.shape[1], E))
    at_RN = jnp.clip(nth_RN, 0, order_RE.shape[1] - 1)
    place_RN = jnp.take_along_axis(order_RE, at_RN, 1)
    place_RN = jnp.where(wanted_RN, place_RN, E)
    row_R1 = jnp.arange(R)[:, None]

    def put(array, values):
        values = jnp.asarray(values, array.dtype)
        return array.at[row_R1, place_RN].set(values, mode="drop")

    count_R = wanted_RN.sum(1)
    return entries | {
        "key": put(entries["key"], new["key"]),
        "values": jax.tree.map(put, entries["values"], new["values"]),
        **{name: put(entries[name], new[name]) for name in SOURCES},
        "strength": put(entries["strength"], 1.0),
        "id": put(entries["id"], entries["next_id"][:, None] + nth_RN),
        "stamp": put(entries["stamp"], entries["clock"][:, None] + nth_RN),
        "next_id": entries["next_id"] + count_R,
        "clock": entries["clock"] + count_R,
        "refused": entries["refused"] + refused_R,
        "version": _next_version(entries),
    }


def _giving_way(entries: Entries, eviction: str, count: int) -> jax.Array:
    """Returns the places [R, count] to write to next: free ones, then victims."""
    last = jnp.where(used(entries), -entries["id"] - 1, 1)
    if eviction == "weakest":
        # Ranks instead of strengths, so that age decides between equals.
        E = last.shape[1]
        age_RE = jnp.argsort(jnp.argsort(-last, 1), 1)
        keys = (age_RE, jnp.where(used(entries), entries["strength"], -1))
        rank_RE = jnp.argsort(jnp.lexsort(keys, 1), 1)
        last = E - rank_RE
    return jax.lax.top_k(last, count)[1]


def _next_version(entries: Entries) -> jax.Array:
    return entries["version"] + jnp.array([0, 1], jnp.int32)


def update(
    entries: Entries, key_RNGK: jax.Array, place_RN: jax.Array, wanted_RN: jax.Array
) -> Entries:
    """Gives the entries at these places another key; ids stay."""
    R, E = entries["id"].shape
    row_R1 = jnp.arange(R)[:, None]
    place_RN = jnp.where(wanted_RN, place_RN, E)
    stamp_RN = entries["clock"][:, None] + wanted_RN.cumsum(1) - 1
    put = lambda array, new: array.at[row_R1, place_RN].set(new, mode="drop")
    return entries | {
        "key": put(entries["key"], key_RNGK),
        "stamp": put(entries["stamp"], stamp_RN),
        "clock": entries["clock"] + wanted_RN.sum(1),
        "version": _next_version(entries),
    }


def remove(entries: Entries, gone_RE: jax.Array) -> Entries:
    """Frees the places where gone is true; what they held is overwritten later."""
    return entries | {
        "id": jnp.where(gone_RE, -1, entries["id"]),
        "stamp": jnp.where(gone_RE, -1, entries["stamp"]),
        "strength": jnp.where(gone_RE, 0, entries["strength"]),
        "version": _next_version(entries),
    }


def scrub(entries: Entries) -> Entries:
    """Overwrites with zeros what free places still hold."""
    kept_RE = used(entries)

    def clear(array):
        shape = kept_RE.shape + (1,) * (array.ndim - 2)
        return jnp.where(kept_RE.reshape(shape), array, jnp.zeros_like(array))

    names = ("key", "values", *SOURCES)
    return entries | jax.tree.map(clear, {name: entries[name] for name in names})


def age(entries: Entries, decay: jax.typing.ArrayLike) -> Entries:
    """Multiplies every strength by decay; keys stay where they are."""
    return entries | {"strength": entries["strength"] * decay}


def forget(entries: Entries, key: jax.Array, factor: jax.typing.ArrayLike) -> Entries:
    """Removes each entry with probability factor."""
    drawn_RE = jax.random.bernoulli(key, factor, entries["id"].shape)
    return remove(entries, used(entries) & drawn_RE)


def collect(entries: Entries, threshold: jax.typing.ArrayLike) -> Entries:
    """Removes entries whose key times strength is shorter than threshold."""
    norm_RE = jnp.sqrt((entries["key"] ** 2).sum((2, 3))) * entries["strength"]
    return remove(entries, used(entries) & (norm_RE < threshold))


def reset(entries: Entries, rows_R: jax.Array) -> Entries:
    """Empties the rows where true."""
    return remove(entries, rows_R[:, None])


def take(array_RE: jax.Array, row_B: jax.Array, place_BN: jax.Array) -> jax.Array:
    """Returns [B, N..., ...]: what stands at places of a row; -1 takes place 0."""
    index = row_B.reshape(-1, *[1] * (place_BN.ndim - 1))
    return array_RE[index, jnp.maximum(place_BN, 0)]
