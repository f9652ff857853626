"""Where arrays live: a device mesh, and rules that place every parameter on it.

"data" and "fsdp" split the rows of a batch, "fsdp" also parameters and moments,
"tensor" also heads, the width of feed-forwards and the vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxgpt.errors import UserError, require

# A mesh axis, or several of them, that one dimension of an array is split over.
Axis = str | tuple[str, ...] | None
BATCH = ("data", "fsdp")
TENSOR = "tensor"

# The first pattern that the end of a parameter's path matches gives the axes of its
# last dimensions; dimensions before those (stacked layers) are never split.
RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"positions/(target_)?table", (None, "fsdp")),
    (r"table", ("tensor", "fsdp")),
    (r"(qkv|up|unembed)/kernel", ("fsdp", "tensor")),
    (r"(out|down)/kernel", ("tensor", "fsdp")),
    (r"(qkv|up|unembed)/bias", ("tensor",)),
    (r"kernel", ("fsdp", None)),
    (r"(scale|bias|gate|nu_log|theta_log)", (None,)),
    (r"sharpness", ()),
)


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of `config.mesh` over the devices (default: all of them).

    Raises:
      UserError: if the devices or the batch are not divisible by it.
    """
    devices = jax.devices() if devices is None else devices
    c, count = config.mesh, len(devices)
    data = c.data or max(count // (c.fsdp * c.tensor), 1)
    if data * c.fsdp * c.tensor != count:
        raise UserError(
            f"mesh.data x mesh.fsdp x mesh.tensor is {data} x {c.fsdp} x {c.tensor}, "
            f"but the number of devices is {count}"
        )
    rows, shares = config.batch_size // config.accumulation, data * c.fsdp
    require(
        rows % shares == 0,
        "batch_size / accumulation",
        f"divisible by mesh.data x mesh.fsdp = {shares}",
        rows,
    )
    if config.deterministic:
        require(
            c.fsdp * c.tensor == 1,
            "mesh.fsdp x mesh.tensor",
            "1 with deterministic=true",
            c.fsdp * c.tensor,
            "split the batch by mesh.data only",
        )
        groups = config.deterministic_groups
        rule = f"divisible by the {count} devices"
        require(groups % count == 0, "deterministic_groups", rule, groups)
    return jax.make_mesh(
        (data, c.fsdp, c.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and the sharding of every array of a training state on it."""

    mesh: Mesh
    state: Any

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """The rows of a batch, split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH))

    def abstract(self, state: Any) -> Any:
        """Returns the state as ShapeDtypeStructs with shardings."""
        return jax.tree.map(
            lambda a, sharding: jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=sharding
            ),
            state,
            self.state,
        )

    def put_rows(self, array: Any) -> jax.Array:
        """Puts a batch that every process holds whole on the devices, split by rows."""
        if self.rows.is_fully_addressable:
            return jax.device_put(array, self.rows)
        array = np.asarray(array)
        return jax.make_array_from_callback(
            array.shape, self.rows, lambda index: array[index]
        )


def layout(state: dict[str, Any], mesh: Mesh, batch_size: int) -> Layout:
    """Returns the layout of a training state (see `step.init_state`) or its shapes.

    Carried arrays are split if their first dimension is the batch.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    params = jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), leaf, mesh)),
        state["params"],
    )
    shardings = {
        "params": params,
        "ema": params,
        "opt_state": _like_params(state, params, replicated),
        "carried": jax.tree.map(
            lambda a: rows if a.shape[:1] == (batch_size,) else replicated,
            state.get("carried", {}),
        ),
    }
    return Layout(mesh, {name: shardings[name] for name in state})


def _like_params(state: dict[str, Any], params: dict, replicated: NamedSharding) -> Any:
    """Returns the shardings of the optimizer state: a moment lives with its parameter.

    A leaf belongs to the parameter whose path its own path ends in. This needs no help
    from the optimizer, so it holds for masked, chained, partitioned and injected states
    alike. A leaf of another shape (a factored moment, a counter) is replicated.
    """
    known = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(state["params"]),
            jax.tree.leaves(params),
            strict=True,
        )
    }

    def place(path: tuple, leaf: Any) -> NamedSharding:
        ends = (known.get(path[start:]) for start in range(len(path)))
        shape, sharding = next(filter(None, ends), (None, replicated))
        return sharding if leaf.shape == shape else replicated

    return jax.tree.map_with_path(place, state["opt_state"])


def path_name(path: tuple) -> str:
    """Returns a key path of a pytree as "blocks/0/qkv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec(path: str, leaf: Any, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Returns the axes of one parameter by `RULES`.

    Raises:
      LookupError: if no rule matches it.
    """
    for pattern, axes in RULES:
        if re.search(rf"(^|/){pattern}$", path):
            stacked = (None,) * (leaf.ndim - len(axes))
            return fit(leaf.shape, (*stacked, *axes), mesh)
    raise LookupError(
        f"no rule in jaxgpt/parallel/sharding.py matches the parameter '{path}'"
    )


def size(axis: Axis, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Returns how many devices an axis splits over; 1 without a mesh."""
    shape = (mesh or jax.sharding.get_abstract_mesh()).shape
    names = (axis,) if isinstance(axis, str) else axis or ()
    return math.prod(shape.get(name, 1) for name in names)


def fit(
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    mesh: Mesh | AbstractMesh | None = None,
) -> PartitionSpec:
    """Returns the axes as a spec, without those that do not divide a dimension.

    The mesh is by default that of the function that is traced; see `under`.
    """
    return PartitionSpec(
        *(
            axis if length % size(axis, mesh) == 0 else None
            for length, axis in zip(shape, axes, strict=True)
        )
    )


def is_split() -> bool:
    """Returns whether XLA splits the arrays of the traced function over a mesh.

    Within `by_device` it does not: there an array is already a device's own part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)


def constrain(x: jax.Array, *axes: Axis) -> jax.Array:
    """Constrains the sharding of x in a traced function: one axis per dimension."""
    if not is_split():
        return x
    return jax.lax.with_sharding_constraint(x, fit(x.shape, axes))


def by_device(
    function: Callable[..., Any],
    in_specs: tuple[PartitionSpec, ...],
    out_specs: PartitionSpec,
) -> Callable[..., Any]:
    """Returns the function, which each device runs on its own part of the arrays.

    For what XLA cannot split, as a kernel, or would let devices wait for each other in,
    as a loop over tokens.

    Args:
      function: of arrays or trees of them.
      in_specs, out_specs: of each argument, and of all results; see `fit`.
    """
    if not is_split():
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def under(mesh: Mesh | None, function: Callable) -> Callable:
    """Returns the function, traced with the mesh that `constrain` looks up."""
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
    """Returns this process's first copy of arrays that are replicated."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)
