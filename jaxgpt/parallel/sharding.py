"""Where arrays live: a mesh, and rules that place every parameter on it.

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
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jaxgpt.errors import UserError

# A parameter's path ends in one of these, the first that fits; the axes are those of
# its last dimensions. An axis that a dimension does not divide by is left out.
RULES: tuple[tuple[str, tuple[Axis, ...]], ...] = (
    (r"positions/table", (None, "fsdp")),
    (r"table", ("tensor", "fsdp")),
    (r"(qkv|up|unembed)/kernel", ("fsdp", "tensor")),
    (r"(out|down)/kernel", ("tensor", "fsdp")),
    (r"(qkv|up|unembed)/bias", ("tensor",)),
    (r"kernel", ("fsdp", None)),
    (r"(scale|bias|gate)", (None,)),
    (r"sharpness", ()),
)


def make_mesh(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of `config.mesh` over the devices: all there are by default.

    Raises:
      UserError: where the devices or the batch do not divide by it.
    """
    devices = jax.devices() if devices is None else devices
    c, count = config.mesh, len(devices)
    data = c.data or max(count // (c.fsdp * c.tensor), 1)
    if data * c.fsdp * c.tensor != count:
        raise UserError(
            f"mesh.data x mesh.fsdp x mesh.tensor is {data} x {c.fsdp} x {c.tensor}, "
            f"but there are {count} devices"
        )
    rows = config.batch_size // config.accumulation
    if rows % (data * c.fsdp):
        raise UserError(
            f"batch_size / accumulation is {rows}, which does not divide by the "
            f"{data * c.fsdp} devices that share a batch (mesh.data x mesh.fsdp)"
        )
    if config.deterministic:
        _check_deterministic(config, count)
    return jax.make_mesh(
        (data, c.fsdp, c.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


def _check_deterministic(config: ConfigDict, count: int) -> None:
    if config.mesh.fsdp * config.mesh.tensor > 1:
        raise UserError(
            "deterministic goes with mesh.data alone: leave mesh.fsdp and mesh.tensor "
            "at 1"
        )
    if config.deterministic_groups % count:
        raise UserError(
            f"deterministic_groups {config.deterministic_groups} do not divide by the "
            f"{count} devices"
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and where each array of a training state lives on it."""

    mesh: Mesh
    state: Any

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Rows of a batch split."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH))

    def abstract(self, state: Any) -> Any:
        """Returns the shapes of a state with their places."""
        return jax.tree.map(
            lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
            state,
            self.state,
        )

    def put_rows(self, array: Any) -> jax.Array:
        """Puts a batch that every process has on the devices, each its own rows."""
        if self.rows.is_fully_addressable:
            return jax.device_put(array, self.rows)
        array = np.asarray(array)
        return jax.make_array_from_callback(
            array.shape, self.rows, lambda index: array[index]
        )


def layout(
    state: dict[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    batch_size: int,
) -> Layout:
    """Returns the layout of a training state (see `step.init_state`) or its shapes.

    What a system carries is split where it begins with the rows of a batch.
    """
    params = of_params(state["params"], mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        state["opt_state"],
        params,
        transform_non_params=lambda _: everywhere,
    )
    rows = NamedSharding(mesh, PartitionSpec(BATCH))
    carried = jax.tree.map(
        lambda a: rows if a.shape[:1] == (batch_size,) else everywhere,
        state.get("carried", {}),
    )
    places = {"params": params, "opt_state": moments, "ema": params}
    places["carried"] = carried
    return Layout(mesh, {name: places[name] for name in state})


def of_params(params: dict, mesh: Mesh) -> dict:
    """Returns the place of every parameter, by `RULES`."""
    return jax.tree.map_with_path(
        lambda path, leaf: NamedSharding(
            mesh,
            spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf, mesh),
        ),
        params,
    )


def spec(path: str, leaf: Any, mesh: Mesh) -> PartitionSpec:
    """Returns the axes of one parameter.

    Raises:
      LookupError: where no rule speaks of it.
    """
    for pattern, axes in RULES:
        if re.search(rf"(^|/){pattern}$", path):
            shared = leaf.ndim - len(axes)
            return fit(leaf.shape, (*(None,) * shared, *axes), mesh)
    raise LookupError(
        f"no rule in jaxgpt/parallel/sharding.py places the parameter '{path}'"
    )


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
