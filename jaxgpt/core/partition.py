"""Where activations live: hints to the compiler, which do nothing without a mesh.

The mesh is the one that the function is traced under (`under`), with
the axes "data", "fsdp" and "tensor".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

Axis = str | tuple[str, ...] | None
BATCH = ("data", "fsdp")
TENSOR = "tensor"


def size(axis: Axis, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Returns over how many devices an axis splits; 1 without a mesh."""
    shape = (mesh or _traced()).shape
    names = (axis,) if isinstance(axis, str) else axis or ()
    return math.prod(shape.get(name, 1) for name in names)


def fit(
    shape: tuple[int, ...], axes: tuple[Axis, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns the axes as a spec, without those that a dimension does not divide by."""
    return PartitionSpec(
        *(
            axis if length % size(axis, mesh) == 0 else None
            for length, axis in zip(shape, axes, strict=True)
        )
    )


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """Places x: one axis of the mesh, a tuple of them, or None for each dimension."""
    mesh = _traced()
    if mesh.size <= 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return x
    return jax.lax.with_sharding_constraint(x, fit(x.shape, axes, mesh))


def under(mesh: Mesh | None, function: Callable) -> Callable:
    """Returns the function, traced so that `constrain` knows the mesh."""
    if mesh is None:
        return function

    def traced(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced


def in_groups(tree: Any, groups: int) -> Any:
    """Returns arrays [B, ...] as [groups, B / groups, ...]."""
    return jax.tree.map(lambda a: a.reshape(groups, -1, *a.shape[1:]), tree)


def of_one_device(tree: Any) -> Any:
    """Returns arrays that every device has whole, as one of this process has them."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def _traced() -> AbstractMesh:
    return jax.sharding.get_abstract_mesh()
