"""The entries of a memory: a tree of arrays on the device, the source of truth.

Dimension key, in addition to that of `model.transformer`:

  R rows of memory: the batch's, or one shared by all        E slots of a row
  G keys of an entry (attention heads, else 1)               M entries retrieved
  N entries offered to a row

Every function is pure and takes and returns the whole tree:

  key [R, E, G, K]                  float32, what is searched
  values {name: [R, E, ...]}        float32, what a mode reads
  token, position, document [R, E]  int32, where an entry comes from
  strength [R, E]                   float32, 1 when written, decays with age
  id [R, E]                         int32, unique within a row; -1 is a free slot
  stamp [R, E]                      int32, changes with every write; -1 is a free slot
  next_id, clock, refused [R]       int32, counters: of ids, of stamps, and of entries
                                    left out because they were not finite
  version [2]                       int32, serial number of the store, and how many
                                    times it has changed; see `next_version`
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Entries = dict[str, Any]
SOURCES = ("token", "position", "document")


def empty(
    rows: int,
    slots: int,
    key: tuple[int, int],
    values: dict[str, tuple[int, ...]],
    serial: int = 0,
) -> Entries:
    """Returns a memory of R rows and E slots without entries.

    `key` is (G, K), `values` has the shape of each value of an entry, and `serial` is
    that of the store.
    """
    flat = (rows, slots)
    zeros = lambda *shape: jnp.zeros((*flat, *shape), jnp.float32)
    return {
        "key": zeros(*key),
        "values": {name: zeros(*shape) for name, shape in values.items()},
        **{name: jnp.zeros(flat, jnp.int32) for name in SOURCES},
        "strength": zeros(),
        **{name: jnp.full(flat, -1, jnp.int32) for name in ("id", "stamp")},
        **{n: jnp.zeros(rows, jnp.int32) for n in ("next_id", "clock", "refused")},
        "version": jnp.array([serial, 0], jnp.int32),
    }


def next_version(entries: Entries) -> Entries:
    """Returns entries as the index will see them at its next update.

    To be called once before changed entries are given to the index: a search with
    entries of another version is an error.
    """
    return entries | {"version": entries["version"] + jnp.array([0, 1], jnp.int32)}


def used(entries: Entries) -> jax.Array:
    """Returns [R, E]: which slots hold an entry."""
    return entries["id"] >= 0


def write(
    entries: Entries, new: Entries, wanted_RN: jax.Array, eviction: str = "oldest"
) -> Entries:
    """Writes the wanted entries of each row, in order, into free slots first.

    A full row evicts the "oldest" (lowest id) or the "weakest" (lowest strength, then
    oldest); with "refuse" entries that find no free slot are left out. Of more than E
    entries a row keeps the last. Entries that are not finite are left out and counted.
    `new` has key [R, N, G, K], values, and `SOURCES` [R, N].
    """
    R, E = entries["id"].shape
    finite_RN = jnp.ones(wanted_RN.shape, bool)
    for array in (new["key"], *new["values"].values()):
        finite_RN &= jnp.isfinite(array).reshape(*wanted_RN.shape, -1).all(-1)
    refused_R = (wanted_RN & ~finite_RN).sum(1)
    wanted_RN &= finite_RN
    nth_RN = wanted_RN.cumsum(1) - 1
    if eviction == "refuse":
        wanted_RN &= nth_RN < (E - used(entries).sum(1, keepdims=True))
    else:
        surplus_R1 = jnp.maximum(wanted_RN.sum(1, keepdims=True) - E, 0)
        wanted_RN &= nth_RN >= surplus_R1
        nth_RN -= surplus_R1
    order_RE = _slots_to_fill(entries, eviction, min(wanted_RN.shape[1], E))
    at_RN = jnp.clip(nth_RN, 0, order_RE.shape[1] - 1)
    slot_RN = jnp.take_along_axis(order_RE, at_RN, 1)
    # Slot E does not exist: what is not wanted is dropped there.
    slot_RN = jnp.where(wanted_RN, slot_RN, E)
    row_R1 = jnp.arange(R)[:, None]

    def put(array, values):
        values = jnp.asarray(values, array.dtype)
        return array.at[row_R1, slot_RN].set(values, mode="drop")

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
    }


def _slots_to_fill(entries: Entries, eviction: str, count: int) -> jax.Array:
    """Returns the slots [R, count] to write to next: free ones, then those evicted."""
    if eviction == "weakest":
        strength_RE = jnp.where(used(entries), entries["strength"], -1)
        return jnp.lexsort((entries["id"], strength_RE), 1)[:, :count]
    # Ids as float32 in the same order, all normal numbers, since XLA's top_k of
    # integers sorts the whole row. Free slots, with id -1, come first.
    bits_RE = entries["id"] + (1 << 23) + 1
    return jax.lax.top_k(-jax.lax.bitcast_convert_type(bits_RE, jnp.float32), count)[1]


def remove(entries: Entries, gone_RE: jax.Array) -> Entries:
    """Frees the slots where gone is true; their contents are overwritten later."""
    return entries | {
        "id": jnp.where(gone_RE, -1, entries["id"]),
        "stamp": jnp.where(gone_RE, -1, entries["stamp"]),
        "strength": jnp.where(gone_RE, 0, entries["strength"]),
    }


@jax.jit
def compact(entries: Entries) -> Entries:
    """Returns the entries as if they alone had ever been written.

    Those of a row are in slots 0 to n - 1 in the order of their ids. Ids and stamps are
    0 to n - 1, the counters n, none counts as refused, and the rest is zero.
    """
    R, E = entries["id"].shape
    count_R = used(entries).sum(1, dtype=jnp.int32)
    used_RE = jnp.arange(E) < count_R[:, None]
    last = jnp.iinfo(jnp.int32).max
    slot_RE = jnp.argsort(jnp.where(used(entries), entries["id"], last), 1)

    def move(array):
        moved = array[jnp.arange(R)[:, None], slot_RE]
        return jnp.where(used_RE.reshape(R, E, *[1] * (array.ndim - 2)), moved, 0)

    names = ("key", "values", *SOURCES, "strength")
    number_RE = jnp.where(used_RE, jnp.arange(E, dtype=jnp.int32), -1)
    return entries | {
        **jax.tree.map(move, {name: entries[name] for name in names}),
        "id": number_RE,
        "stamp": number_RE,
        "next_id": count_R,
        "clock": count_R,
        "refused": jnp.zeros_like(count_R),
    }


@jax.jit
def remove_document(entries: Entries, document: jax.typing.ArrayLike) -> Entries:
    """Returns the memory as if a document had never been written, if none was evicted.

    Documents of larger numbers are numbered one less.
    """
    number_RE = entries["document"]
    left = remove(entries, used(entries) & (number_RE == document))
    return compact(left | {"document": number_RE - (number_RE > document)})


def age(entries: Entries, decay: jax.typing.ArrayLike) -> Entries:
    """Multiplies every strength by decay; keys stay where they are."""
    return entries | {"strength": entries["strength"] * decay}


def forget(entries: Entries, key: jax.Array, factor: jax.typing.ArrayLike) -> Entries:
    """Removes each entry with probability factor."""
    drawn_RE = jax.random.bernoulli(key, factor, entries["id"].shape)
    return remove(entries, used(entries) & drawn_RE)


def take(array_RE: jax.Array, row_B: jax.Array, slot_BN: jax.Array) -> jax.Array:
    """Returns [B, N..., ...]: what the slots of a row hold; -1 takes slot 0."""
    index = row_B.reshape(-1, *[1] * (slot_BN.ndim - 1))
    return array_RE[index, jnp.maximum(slot_BN, 0)]
