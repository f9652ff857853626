"""A step of a run done again, operation by operation, to see where it went wrong."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.extend.source_info_util import summarize
from ml_collections import ConfigDict

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.checkpoint import Checkpoints
from jaxgpt.errors import UserError, log
from jaxgpt.run import open_system
from jaxgpt.step import step_function
from jaxgpt.stepper import Stepper


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


def replay(config: ConfigDict, workdir: pathlib.Path, step: int) -> int:
    """Does a step of a run again, from the checkpoint before it, and changes nothing.

    Returns:
      The exit code: 0 where all of the step is finite, else 1, and the first tensor
      that is not has been named.

    Raises:
      UserError: where there is no such run or step.
    """
    frozen = configs.load_frozen(workdir)
    if not 1 <= step <= config.steps:
        raise UserError(f"--replay={step}: the steps are 1 .. {config.steps}")
    cli.use_float64(frozen.model.dtype)
    system, data = open_system(frozen)
    checkpoints = Checkpoints(workdir, read_only=True)
    stepper = Stepper(system, data, checkpoints, before=step)
    log(f"replaying step {step} from step {stepper.step}")
    while stepper.step < step - 1:
        stepper.run_step()
    batch = stepper.named_batch(step - 1)
    arguments = (stepper.state, np.int32(step - 1), stepper.batch(step - 1))
    _, origin = trace(step_function(system, stepper.optimizer), *arguments)
    metrics = {name: float(value) for name, value in stepper.run_step().items()}
    print(f"step {step}: " + ", ".join(f"{k} {v:.9g}" for k, v in metrics.items()))
    _compare(workdir / "nonfinite" / f"{step}.npz", batch, metrics)
    if origin is None:
        print("every tensor of it is finite")
        return 0
    print(f"first not finite: {origin}")
    return 1


def _compare(
    record: pathlib.Path, batch: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Says whether batch and metrics are those that `Guard` wrote down."""
    if record.exists():
        with np.load(record, allow_pickle=False) as written:
            same = all(
                np.array_equal(written[name], value, equal_nan=True)
                for name, value in (batch | metrics).items()
            )
        print(f"batch and metrics are {'' if same else 'NOT '}those in '{record}'")


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
