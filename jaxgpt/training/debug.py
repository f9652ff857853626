"""A step of a run done again, operation by operation, to see where it went wrong."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.extend.source_info_util import summarize

from jaxgpt.errors import log
from jaxgpt.systems.base import System
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import step_function
from jaxgpt.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where numbers that are not finite come from: an operation, or an input."""

    what: str
    where: str
    shape: tuple[int, ...]
    dtype: str
    bad: int

    def __str__(self) -> str:
        size = int(np.prod(self.shape))
        return (
            f"{self.what}, {self.dtype}{list(self.shape)}, {self.bad} of {size} "
            f"entries{self.where}"
        )


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came of a step done again.

    Attributes:
      metrics: of the step, compiled as in training.
      origin: where the first tensor that is not finite comes from, if there is one.
      record: where a bad step is written down.
      as_recorded: whether batch and metrics are those written there; None where
        nothing is.
    """

    metrics: dict[str, float]
    origin: Origin | None
    record: pathlib.Path
    as_recorded: bool | None


def replay_step(system: System, data: Any, workdir: pathlib.Path, step: int) -> Replay:
    """Does a step of a run again, from the checkpoint before it; writes nothing."""
    checkpoints = Checkpoints(workdir, read_only=True)
    train_state = TrainState(system, data, checkpoints, before=step)
    log(f"replaying step {step} from step {train_state.step}")
    while train_state.step < step - 1:
        train_state.run_step()
    batch = train_state.named_batch(step - 1)
    arguments = (train_state.state, np.int32(step - 1), train_state.batch(step - 1))
    _, origin = trace(step_function(system, train_state.optimizer), *arguments)
    metrics = {name: float(value) for name, value in train_state.run_step().items()}
    record = workdir / "nonfinite" / f"{step}.npz"
    return Replay(metrics, origin, record, _equals(record, batch | metrics))


def _equals(record: pathlib.Path, values: dict[str, Any]) -> bool | None:
    """Returns whether values are those that `NonFinitePolicy` wrote down, if it did."""
    if not record.exists():
        return None
    with np.load(record, allow_pickle=False) as written:
        return all(
            np.array_equal(written[name], value, equal_nan=True)
            for name, value in values.items()
        )


def trace(function: Any, *arguments: Any) -> tuple[Any, Origin | None]:
    """Returns a function's outputs, and where the first one not finite comes from.

    Every operation is run by itself. From an output that is not finite the search goes
    back through inputs that are not either, to an operation all of whose inputs are.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    walk = _Walk()
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    given = [
        _Value(value, f"input{jax.tree_util.keystr(path)}") for path, value in leaves
    ]
    out = walk.run(closed.jaxpr, closed.consts, given)
    outputs = jax.tree.unflatten(
        jax.tree.structure(shape), [value.array for value in out]
    )
    # The metrics come last: a loss that is not finite is told before its gradients.
    wrong = [value for value in reversed(out) if not value.finite]
    return outputs, wrong[0].origin() if wrong else None


class _Value:
    """An array, what made it, and out of what."""

    def __init__(
        self, array: Any, what: str, where: str = "", inputs: tuple[_Value, ...] = ()
    ):
        self.array, self.what, self.where, self.inputs = array, what, where, inputs
        self.bad = 0
        if hasattr(array, "dtype") and jax.numpy.issubdtype(
            array.dtype, jax.numpy.inexact
        ):
            self.bad = int((~jax.numpy.isfinite(array)).sum())

    @property
    def finite(self) -> bool:
        return self.bad == 0

    def origin(self) -> Origin:
        """Returns where this value's bad entries come from."""
        value = self
        while True:
            wrong = [v for v in value.inputs if not v.finite]
            if not wrong:
                break
            # Rather follow numbers that are none than the infinity of a mask.
            value = max(wrong, key=lambda v: bool(jax.numpy.isnan(v.array).any()))
        array = value.array
        return Origin(value.what, value.where, array.shape, str(array.dtype), value.bad)


class _Walk:
    """An interpreter of jaxprs that keeps what every value was made of."""

    def run(
        self, jaxpr: core.Jaxpr, consts: Any, given: list[_Value], scope: str = ""
    ) -> list[_Value]:
        known: dict[Any, _Value] = {}
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            known[var] = const if isinstance(const, _Value) else _Value(const, "const")
        known.update(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> _Value:
            if isinstance(atom, core.Literal):
                return _Value(jax.numpy.asarray(atom.val), "literal")
            return known[atom]

        for eqn in jaxpr.eqns:
            outputs = self.apply(eqn, [read(atom) for atom in eqn.invars], scope)
            known.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def apply(self, eqn: Any, inputs: list[_Value], scope: str) -> list[_Value]:
        """Runs an equation: opened up where it calls a function, else as it is."""
        name, own = eqn.primitive.name, str(eqn.source_info.name_stack)
        scope = "/".join(filter(None, (scope, own)))
        if name == "scan":
            return self.scan(eqn, inputs, scope)
        if name == "cond":
            index = int(inputs[0].array)
            branch = eqn.params["branches"][index]
            return self.run(branch.jaxpr, branch.consts, inputs[1:], scope)
        inner = eqn.params.get("call_jaxpr") or eqn.params.get("jaxpr")
        if inner is not None and name not in ("while", "shard_map", "pallas_call"):
            consts = getattr(inner, "consts", ())
            return self.run(getattr(inner, "jaxpr", inner), consts, inputs, scope)
        params = eqn.primitive.get_bind_params(eqn.params)
        arrays = [value.array for value in inputs]
        found = eqn.primitive.bind(*arrays, **params)
        found = found if eqn.primitive.multiple_results else [found]
        what = f"{scope}/{name}" if scope else name
        where = f" ({summarize(eqn.source_info)}); its inputs are finite"
        return [_Value(array, what, where, tuple(inputs)) for array in found]

    def scan(self, eqn: Any, inputs: list[_Value], scope: str) -> list[_Value]:
        """Runs a scan as a loop in Python."""
        p = eqn.params
        fixed, carried = p["num_consts"], p["num_consts"] + p["num_carry"]
        consts, carry, xs = inputs[:fixed], inputs[fixed:carried], inputs[carried:]
        body, rows = p["jaxpr"], []
        times = range(p["length"])
        for t in reversed(times) if p["reverse"] else times:
            row = [_Value(x.array[t], x.what, x.where, (x,)) for x in xs]
            out = self.run(body.jaxpr, body.consts, [*consts, *carry, *row], scope)
            carry, ys = out[: len(carry)], out[len(carry) :]
            rows.append(ys)
        if p["reverse"]:
            rows.reverse()
        stacked = [
            _Value(
                jax.numpy.stack([y.array for y in column]), "scan", "", tuple(column)
            )
            for column in zip(*rows, strict=True)
        ]
        return [*carry, *stacked]
