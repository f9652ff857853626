"""A step of a run replayed, operation by operation, to find where it went wrong.

`jax.debug_nans` and `checkify` name a primitive and a line, but stop at the first NaN
(or at none, if the loss is infinite), even one that a mask discards later, and know
neither the module nor whether the operation's inputs were finite.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.source_info_util import summarize

from jaxgpt.errors import log
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import step_function
from jaxgpt.training.train_state import Setup, TrainState


class Replay(NamedTuple):
    """The result of a replayed step."""

    metrics: dict[str, float]  # Compiled as in training.
    origin: str | None  # Of the first tensor that is not finite, if there is one.
    record: pathlib.Path  # Written by `NonFinitePolicy` if the step was not finite.
    as_recorded: bool | None  # Are batch and metrics those of the record, if any?


def replay_step(setup: Setup, step: int) -> Replay:
    """Replays a step of a run from the checkpoint before it; writes nothing."""
    checkpoints = Checkpoints(setup.workdir, read_only=True)
    train_state = TrainState(setup, checkpoints, before=step)
    log(f"replaying step {step} from step {train_state.step}")
    while train_state.step < step - 1:
        train_state.run_step()
    values: dict[str, Any] = train_state.named_batch(step - 1)
    origin = find_origin(
        step_function(setup.system, setup.optimizer),
        train_state.arrays,
        np.int32(step - 1),
        train_state.batch(step - 1),
    )
    metrics = {name: float(value) for name, value in train_state.run_step().items()}
    values |= metrics
    record, as_recorded = setup.workdir / "nonfinite" / f"{step}.npz", None
    if record.exists():
        with np.load(record, allow_pickle=False) as recorded:
            as_recorded = all(
                np.array_equal(recorded[name], value, equal_nan=True)
                for name, value in values.items()
            )
    return Replay(metrics, origin, record, as_recorded)


def find_origin(function: Any, *arguments: Any) -> str | None:
    """Returns where the last output that is not finite comes from, if there is one.

    Every operation runs by itself, and hands on the origin of what is not finite in its
    inputs: so the origin of an output is an operation all of whose inputs are finite.
    """
    # Without jit scans are unrolled while tracing, so that each iteration has its own
    # operations to name.
    with jax.disable_jit():
        closed = jax.make_jaxpr(function)(*arguments)
    inputs = [
        _traced(array, f"input{jax.tree_util.keystr(path)}")
        for path, array in jax.tree.leaves_with_path(arguments)
    ]
    outputs = _run(closed, inputs, "")
    # The metrics come last: a loss is reported before its gradients.
    return next((out.origin for out in reversed(outputs) if out.origin), None)


class _Traced(NamedTuple):
    """An array, and where its entries that are not finite come from, if it has any."""

    array: Any
    origin: str | None = None


def _traced(array: Any, what: str, where: str = "", inputs: Any = ()) -> _Traced:
    """Returns an array that comes from inputs with an origin, or else from `what`."""
    bad = 0
    if hasattr(array, "dtype") and jnp.issubdtype(array.dtype, jnp.inexact):
        bad = int((~jnp.isfinite(array)).sum())
    if not bad:
        return _Traced(array)
    wrong = [value for value in inputs if value.origin]
    if wrong:
        # A NaN rather than an infinity, which may be that of a mask.
        nans = [value for value in wrong if jnp.isnan(value.array).any()]
        return _Traced(array, (nans or wrong)[0].origin)
    return _Traced(
        array,
        f"{what}, {array.dtype}{list(array.shape)}, {bad} of {array.size} "
        f"entries{where}",
    )


def _run(closed: Any, inputs: list[_Traced], scope: str) -> list[_Traced]:
    """Interprets a closed jaxpr; scope is the name stack of its caller."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, const in zip(jaxpr.constvars, closed.consts, strict=True):
        known[var] = _traced(const, "const")

    def read(atom: Any) -> _Traced:
        if isinstance(atom, core.Literal):
            return _traced(jnp.asarray(atom.val), "literal")
        return known[atom]

    for eqn in jaxpr.eqns:
        outputs = _apply(eqn, [read(atom) for atom in eqn.invars], scope)
        known.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, inputs: list[_Traced], scope: str) -> list[_Traced]:
    """Runs an equation: the body of a call, else its primitive."""
    name = eqn.primitive.name
    scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
    if name == "cond":
        branch = eqn.params["branches"][int(inputs[0].array)]
        return _run(branch, inputs[1:], scope)
    body = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
    if body is not None and name not in ("scan", "while", "shard_map", "pallas_call"):
        if isinstance(body, core.Jaxpr):
            body = core.ClosedJaxpr(body, ())
        return _run(body, inputs, scope)
    params = eqn.primitive.get_bind_params(eqn.params)
    found = eqn.primitive.bind(*(value.array for value in inputs), **params)
    where = f" ({summarize(eqn.source_info)}); its inputs are finite"
    return [
        _traced(array, "/".join(filter(None, (scope, name))), where, inputs)
        for array in (found if eqn.primitive.multiple_results else [found])
    ]
