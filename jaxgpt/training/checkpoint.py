"""Checkpoints: Orbax, and a digest of every array, since Orbax restores flipped bits.

Resume, in this order:
  1. the config of the run must equal the one asked for, but for resumable fields
     and what the command allows;
  2. the newest checkpoint whose arrays all have the dtype, shape and digest they
     were saved with is restored; damaged ones are named, set aside as `N.damaged`,
     and the one before is taken;
  3. with checkpoints on disk and none of them whole, the run stops: nothing is
     started over silently;
  4. metrics after the restored step are dropped; training goes on with the next step.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from jaxgpt.config import differences, keys_that
from jaxgpt.errors import UserError, log

State = dict[str, Any]
# An item of arrays by name that may have any shape, and need not be there.
AS_SAVED = "host"
# Orbax limits a save by the clock on the wall, which may be set forward within it.
SAVE_LIMIT_S = 7 * 24 * 3600


class DamagedError(Exception):
    """A checkpoint that does not hold what was saved; the message says where."""


def check_same_config(
    old: ConfigDict, new: ConfigDict, workdir: pathlib.Path, allowed: Sequence[str]
) -> None:
    """Raises UserError with a table where a run belongs to another config."""
    free = {*keys_that("resumable"), *allowed}
    changed = {k: v for k, v in differences(old, new).items() if k not in free}
    if changed:
        rows = "\n".join(
            f"  {k}: {a!r} there, {b!r} now" for k, (a, b) in changed.items()
        )
        raise UserError(
            f"'{workdir}' belongs to another config: take another --workdir, undo, or "
            f"let them change with --allow={','.join(changed)}\n{rows}"
        )


def digests(state: State) -> dict[str, list]:
    """Returns {path: [sha256, dtype, shape]} of every array."""
    result = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        raw = np.ascontiguousarray(_whole(leaf)).reshape(-1).view(np.uint8)
        digest = hashlib.sha256(raw.data).hexdigest()
        result[_name(path)] = [digest, str(leaf.dtype), list(leaf.shape)]
    return result


def _whole(leaf: Any) -> Any:
    """Returns an array that this process may have only a part of."""
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array with a place: by default the first device."""
    place = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def digest(value: Any) -> str:
    """Returns the sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Checkpoints:
    """The checkpoints of one run: items of a state, each a tree of arrays."""

    def __init__(self, workdir: pathlib.Path, keep: int = 1, read_only: bool = False):
        self.folder = workdir.resolve() / "checkpoints"
        self.read_only = read_only
        self.saving: int | None = None
        self.losses: dict[int, float] = {}
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_BestAndLatest(keep, self.val_loss),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
                async_options=ocp.AsyncOptions(timeout_secs=SAVE_LIMIT_S),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: State, metrics: dict[str, float] | None) -> None:
        """Starts saving in the background; metrics rank it among the best.

        A failure of this or the save before is said in one line; the run goes on.
        """
        self.report_errors(wait=True)
        if step in self.steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in state.items()}
        loss = metrics["val_loss"] if metrics else None
        summary: dict[str, Any] = {"arrays": digests(state), "val_loss": loss}
        summary["digest"] = digest(summary)
        items["digests"] = ocp.args.JsonSave(summary)
        self.losses[step] = math.inf if loss is None else loss
        self.saving = step
        try:
            self.manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            self._say_failed(str(error))

    def report_errors(self, wait: bool = False) -> None:
        """Says in one line if a background save failed; wait waits until it is done."""
        if self.saving is None:
            return
        try:
            if wait:
                self.manager.wait_until_finished()
            else:
                self.manager.check_for_errors()
        except Exception as error:  # Orbax wraps whatever the file system raised.
            self._say_failed(str(error) or type(error).__name__)
            return
        if not wait and self.manager.is_saving_in_progress():
            return
        # Orbax loses errors of saves that fail at once: only the disk knows.
        if (self.folder / str(self.saving)).is_dir():
            self.saving = None
        else:
            self._say_failed("it is not on the disk")

    def _say_failed(self, message: str) -> None:
        line = message.strip().splitlines()[0]
        reason = line.split(" [os_error_code")[0].rsplit(": ", 1)[-1][:200]
        with contextlib.suppress(OSError):
            self.manager.reload()
        left = ", ".join(map(str, self.steps())) or "none"
        log(
            f"warning: checkpoint {self.saving} could not be saved ({reason}); kept "
            f"steps: {left}"
        )
        self.saving = None

    def restore(self, step: int, abstract: State, as_saved: str = "") -> State:
        """Restores the items of abstract from one checkpoint, and proves them.

        Args:
          step: of the checkpoint.
          abstract: shapes, dtypes and shardings; a subset of the saved items may do.
          as_saved: an item that is restored in the shapes it has, if it is there.

        Raises:
          DamagedError: naming the array or file that is not what was saved.
        """
        abstract = jax.tree.map(_placed, abstract)
        try:
            saved = self._summary(step)["arrays"]
            shapes = {
                name.removeprefix(f"{as_saved}/"): jax.ShapeDtypeStruct(shape, dtype)
                for name, (_, dtype, shape) in saved.items()
                if as_saved and name.startswith(f"{as_saved}/")
            }
            if shapes:
                abstract = abstract | {as_saved: shapes}
            self._check_shapes(abstract, saved)
            restored = self._read(
                step,
                {name: ocp.args.StandardRestore(a) for name, a in abstract.items()},
            )
            state = {name: restored[name] for name in abstract}
        except (UserError, DamagedError):
            raise
        except Exception as error:  # TensorStore, JSON and msgpack each have their own.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DamagedError(lines[0][:200]) from None
        for name, value in digests(state).items():
            if value != saved[name]:
                raise DamagedError(f"array {name} differs from its digest")
        return state

    def _summary(self, step: int) -> dict[str, Any]:
        """Returns what was saved beside the arrays: their digests, the loss."""
        items = {"digests": ocp.args.JsonRestore()}
        try:
            summary = self._read(step, items)["digests"]
            whole = summary.pop("digest") == digest(summary)
        except Exception:  # JSON that is none, or not ours.
            whole = False
        if not whole:
            raise DamagedError("the file of digests is not what was saved")
        return summary

    def _read(self, step: int, items: dict) -> Any:
        return self.manager.restore(step, args=ocp.args.Composite(**items))

    def _check_shapes(self, abstract: State, saved: dict[str, list]) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
            name = _name(path)
            if name not in saved:
                raise DamagedError(f"array {name} has no digest")
            want = [str(leaf.dtype), list(leaf.shape)]
            if saved[name][1:] != want:
                raise DamagedError(f"array {name} is {saved[name][1:]}, not {want}")

    def restore_newest(
        self, abstract: State, before: float = math.inf, as_saved: str = ""
    ) -> tuple[int, State] | None:
        """Restores the newest whole checkpoint; None where there is none at all.

        Args:
          abstract: as in `restore`.
          before: only steps below it.

        Raises:
          UserError: where there are checkpoints and every one is damaged.
        """
        damaged: dict[int, str] = {}
        for step in reversed([step for step in self.steps() if step < before]):
            try:
                state = self.restore(step, abstract, as_saved)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, step)
            return step, state
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise UserError(
                f"no checkpoint in '{self.folder}' can be restored (step {step}: "
                f"{reason}): bring back a copy, or start over in another --workdir"
            )
        return None

    def _set_aside(self, damaged: dict[int, str], used: int) -> None:
        """Renames damaged checkpoints, so that their steps can be saved again."""
        for step, reason in damaged.items():
            log(f"warning: checkpoint {step} is damaged ({reason}); using step {used}")
            if not self.read_only and not jax.process_index():
                folder = self.folder / str(step)
                folder.rename(_unused(folder.with_name(f"{step}.damaged")))
        if damaged:
            self.manager.reload()

    def pick(self, wanted: str) -> int:
        """Returns the step that "best", "last" or a number names.

        Raises:
          UserError: listing the steps there are.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"'{self.folder}' holds no finished checkpoint")
        if wanted == "best":
            losses = {step: self.val_loss(step) for step in steps}
            return min(steps, key=lambda step: (losses[step], -step))
        if wanted == "last":
            return steps[-1]
        if wanted.isascii() and wanted.isdigit() and int(wanted) in steps:
            return int(wanted)
        known = ", ".join(map(str, steps))
        raise UserError(f"no checkpoint '{wanted}': there are best, last, {known}")

    def val_loss(self, step: int) -> float:
        """Returns the validation loss a step was saved with; infinity without one."""
        if step not in self.losses:
            try:
                loss = self._summary(step)["val_loss"]
            except DamagedError:
                loss = None
            self.losses[step] = math.inf if loss is None else loss
        return self.losses[step]

    def close(self) -> None:
        """Waits for the last save and frees the manager."""
        self.report_errors(wait=True)
        self.manager.close()


def _unused(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, or where it exists the first free one of path-2, path-3."""
    found = path
    for number in itertools.count(2):
        if not found.exists():
            break
        found = path.with_name(f"{path.name}-{number}")
    return found


class _BestAndLatest:
    """Orbax's preservation policy: the latest, and the lowest validation loss."""

    def __init__(self, keep: int, val_loss: Callable[[int], float]):
        self.keep, self.val_loss = keep, val_loss

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """Returns, for each checkpoint, ascending, whether it stays."""
        del context
        steps = [info.step for info in checkpoints]
        losses = {step: self.val_loss(step) for step in steps}
        best = min(steps, key=lambda step: (losses[step], -step), default=None)
        return [step in steps[-self.keep :] or step == best for step in steps]
