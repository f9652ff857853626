"""Where arrays live: batches split over all devices, everything else on each."""

from __future__ import annotations

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
