"""What a resumed run keeps: its config, and the schedule of its learning rate."""

from __future__ import annotations

import copy
import functools
import pathlib
from collections.abc import Collection
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.systems.registry import build_system
from jaxgpt.training.optimizers import make_optimizer, schedule_end
from jaxgpt.training.step import fresh_state


def check_same_config(
    old: ConfigDict,
    new: ConfigDict,
    workdir: pathlib.Path,
    allowed: Collection[str],
) -> None:
    """Raises UserError with a table of fields if a run belongs to another config.

    Args:
      old: of the run.
      new: of the command.
      allowed: keys that may differ besides the resumable ones, unless their new value
        changes the shape of an array.
    """
    free = set(configs.keys_that("resumable"))
    changed = {k: v for k, v in configs.differences(old, new).items() if k not in free}
    if schedule_end(old) == schedule_end(new):
        changed.pop("optimizer.decay_steps", None)
    fixed = [key for key in changed if changes_arrays(old, new, key)]
    changed = {k: v for k, v in changed.items() if k in fixed or k not in allowed}
    if changed:
        remedy = f"undo, or let them change with --allow={','.join(changed)}"
        if fixed:
            remedy = f"or undo ({', '.join(fixed)}: arrays of its checkpoints depend on"
            remedy += " it, and --allow does not change them)"
        rows = "\n".join(
            f"  {k}: {_shown(a)} there, {_shown(b)} now"
            for k, (a, b) in changed.items()
        )
        raise UserError(
            f"'{workdir}' belongs to another config: use another --workdir, {remedy}"
            f"\n{rows}"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def changes_arrays(old: ConfigDict, new: ConfigDict, key: str) -> bool:
    """Returns whether the new value of a key changes the shape of an array."""
    if configs.options()[key].architecture:
        return True
    changed = copy.deepcopy(old)
    try:
        configs.override(changed, {key: configs.flatten(new)[key]})
        return _state_shapes(changed) != _state_shapes(old)
    except UserError:  # It contradicts other fields.
        return True


def _state_shapes(config: ConfigDict) -> Any:
    system, optimizer = build_system(config), make_optimizer(config)
    init = functools.partial(fresh_state, system, optimizer)
    abstract = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def keep_schedule(
    config: ConfigDict, old: ConfigDict, workdir: pathlib.Path
) -> list[str]:
    """Keeps the learning rate's schedule when the number of steps has changed.

    The end of the cosine follows from `steps` in a new run only: in one that is resumed
    the rate would jump.

    Returns:
      Notes for the user.
    """
    c, end = config.optimizer, schedule_end(old)
    begun = (workdir / "metrics.jsonl").exists()
    if c.rates or c.decay_steps or not begun or end == config.steps:
        return []
    c.decay_steps = end
    if config.steps == old.steps:
        return []
    curriculum = config.system == "sigma" and config.sigma.order == "curriculum"
    return [
        f"{config.steps} steps instead of {old.steps}: the learning rate keeps its "
        f"schedule, which ends at step {end} with {c.min_learning_rate:g}; to stretch "
        f"it: --config.optimizer.decay_steps={config.steps} "
        "--allow=optimizer.decay_steps"
        + ("; the curriculum is stretched" if curriculum else "")
    ]
