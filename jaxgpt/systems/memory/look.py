"""What a forward pass looks at in a memory, and what it found."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxgpt.systems.memory import entries as ops
from jaxgpt.systems.memory.callback import Search
from jaxgpt.systems.memory.entries import Entries

Layout = tuple[tuple[int, int], dict[str, tuple[int, ...]]]


@dataclasses.dataclass
class Look:
    """What one forward pass looks at, and what it found.

    Attributes:
      entries: of the memory, which rows row_B read; None reads nothing.
      row_B: the memory row that each row of the batch reads.
      search: finds places.
      store_row_B: the rows of the store that those are.
      draw: the key that store decisions are drawn with in training, None for their
        probability.
      place_BTM: what was found, -1 none (in `attention`, of the first head).
      weight_BTM: how much of it was used, from 0 to 1.
      found: what else a mode hands from one step to the next.
    """

    entries: Entries | None
    row_B: jax.Array
    search: Search
    store_row_B: jax.Array
    draw: jax.Array | None = None
    place_BTM: jax.Array | None = None
    weight_BTM: jax.Array | None = None
    found: dict[str, Any] = dataclasses.field(default_factory=dict)

    def find(self, query_BTGK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns places [B, T, G, M] (0 for none) and which are entries."""
        assert self.entries is not None
        place = self.search(self.entries["version"], self.store_row_B, query_BTGK)
        # The index still has what a document that just began has left behind.
        there = self.take(self.entries["id"], place) >= 0
        return jnp.maximum(place, 0), (place >= 0) & there

    def take(self, array_RE: jax.Array, place: jax.Array) -> jax.Array:
        """Returns what stands at these places [B, ...] of the rows read."""
        return ops.take(array_RE, self.row_B, place)
