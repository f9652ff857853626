"""Where arrays live: batches split over all devices, everything else on each."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgpt.config import UserError


def make_mesh(batch_size: int) -> jax.sharding.Mesh:
    """Returns a mesh with the axis "data" over all devices.

    Raises:
      UserError: where the batch does not divide by the number of devices.
    """
    count = jax.device_count()
    if batch_size % count:
        raise UserError(
            f"batch_size / accumulation is {batch_size}, which does not divide by "
            f"the {count} devices"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of parameters: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows split over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def of_rows(mesh: jax.sharding.Mesh, tree: Any, rows: int) -> Any:
    """Returns for arrays that begin with so many rows `by_row`, else `replicated`."""
    return jax.tree.map(
        lambda a: by_row(mesh) if a.shape[:1] == (rows,) else replicated(mesh), tree
    )
