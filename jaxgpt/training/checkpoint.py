"""Checkpoints: Orbax, and digests, since Orbax restores flipped bits silently.

Every array has a digest, and so has every file, in a manifest (manifest.py).

To resume a run:
  1. the new config must equal the run's, except for resumable fields and what the
     command allows;
  2. the newest checkpoint is restored whose files and arrays all have the digest, dtype
     and shape they were saved with; damaged ones are named and set aside as
     `N.damaged`;
  3. if there are checkpoints and none is whole, the run stops, rather than start over
     silently;
  4. metrics after the restored step are dropped, and training continues from there.
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
from orbax.checkpoint.path import atomicity

from jaxgpt.errors import UserError, log
from jaxgpt.parallel import distributed
from jaxgpt.parallel.sharding import path_name
from jaxgpt.training import manifest

State = dict[str, Any]
# The item of NumPy arrays that a system keeps on the host: any names and shapes, which
# only the checkpoint knows; absent if there are none.
HOST = "host"
# Of a save. Orbax's default is minutes on the wall clock, which may be set forward.
SAVE_TIMEOUT_S = 7 * 24 * 3600


class DamagedError(Exception):
    """A checkpoint that differs from what was saved; the message says where."""


class MismatchError(Exception):
    """A checkpoint with other arrays than the config's; the message says which."""


def digests(state: State) -> dict[str, list]:
    """Returns {path: [sha256, dtype, shape]} of every array."""
    result = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        raw = np.ascontiguousarray(_gathered(leaf)).reshape(-1).view(np.uint8)
        digest = hashlib.sha256(raw.data).hexdigest()
        result[path_name(path)] = [digest, str(leaf.dtype), list(leaf.shape)]
    return result


def _gathered(leaf: Any) -> Any:
    """Returns the whole of an array, of which this process may have only a part."""
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        return leaf
    return multihost_utils.process_allgather(leaf, tiled=True)


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns a shape with its sharding; by default on the first local device."""
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def json_digest(value: Any) -> str:
    """Returns the sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of one run: items of a state, each a tree of arrays."""

    def __init__(
        self,
        workdir: pathlib.Path,
        keep: int = 1,
        read_only: bool = False,
        memory: int | None = None,
    ):
        """Opens them; with `memory`, saves hold about that many bytes of an item.

        It must be more than the largest array has.
        """
        self.folder = workdir.resolve() / "checkpoints"
        self.read_only = read_only
        self.saving: int | None = None  # The step of the save in progress.
        self.losses: dict[int, float] = {}
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_BestAndLatest(keep, self.val_loss),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
                async_options=ocp.AsyncOptions(timeout_secs=SAVE_TIMEOUT_S),
                temporary_path_class=_WithManifest,
            ),
            handler_registry=_handlers(memory) if memory else None,
        )

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: State, metrics: dict[str, float] | None) -> None:
        """Starts saving in the background; "val_loss" in metrics ranks the checkpoint.

        A failure of this save or the one before is logged, not raised: a full
        disk must not end a run.
        """
        self.report_errors(wait=True)
        if step in self.steps():
            return
        items = {name: ocp.args.StandardSave(item) for name, item in state.items()}
        loss = metrics["val_loss"] if metrics else None
        summary: dict[str, Any] = {"arrays": digests(state), "val_loss": loss}
        summary["manifest"] = True  # Old checkpoints have none; a new one must.
        summary["digest"] = json_digest(summary)
        items["digests"] = ocp.args.JsonSave(summary)
        self.losses[step] = math.inf if loss is None else loss
        self.saving = step
        try:
            # force: when to save is decided by the loop, not by Orbax's policies.
            self.manager.save(step, args=ocp.args.Composite(**items), force=True)
        except (OSError, ValueError, RuntimeError) as error:
            self._log_failure(str(error))

    def report_errors(self, wait: bool = False) -> None:
        """Logs a background save that failed; with wait, after waiting for its end."""
        if self.saving is None:
            return
        try:
            if wait:
                self.manager.wait_until_finished()
            else:
                self.manager.check_for_errors()
        except Exception as error:  # Orbax re-raises whatever the file system raised.
            self._log_failure(str(error) or type(error).__name__)
            return
        if not wait and self.manager.is_saving_in_progress():
            return
        # Orbax loses the error of a save that fails at once: only the disk can tell.
        if (self.folder / str(self.saving)).is_dir():
            self.saving = None
        else:
            self._log_failure("it is not on the disk")

    def _log_failure(self, message: str) -> None:
        line = message.strip().splitlines()[0]
        reason = line.split(" [os_error_code")[0].rsplit(": ", 1)[-1][:200]
        with contextlib.suppress(OSError):
            self.manager.reload()
        log(
            f"warning: checkpoint {self.saving} could not be saved ({reason}); kept "
            f"steps: {self.listed()}"
        )
        self.saving = None

    def listed(self, without: int | None = None) -> str:
        """Returns the steps as text, "20, 40" or "none"."""
        return ", ".join(str(s) for s in self.steps() if s != without) or "none"

    def restore(self, step: int, abstract: State, with_host: bool = False) -> State:
        """Restores items of one checkpoint; checks its files and their arrays.

        Extra files are ignored: they change nothing.

        Args:
          abstract: the items as ShapeDtypeStructs; need not be all that were saved.
          with_host: restores the item `HOST` too, if there is one.

        Raises:
          DamagedError: naming the array or file that is not what was saved.
          MismatchError: if arrays of other names, dtypes or shapes were saved.
        """
        self._check_files(self.folder / str(step))
        saved = self._summary(step)["arrays"]
        abstract = jax.tree.map(_with_sharding, abstract)
        if with_host:
            host = {
                name.removeprefix(f"{HOST}/"): jax.ShapeDtypeStruct(shape, dtype)
                for name, (_, dtype, shape) in saved.items()
                if name.startswith(f"{HOST}/")
            }
            abstract |= {HOST: host} if host else {}
        for path, leaf in jax.tree.leaves_with_path(abstract):
            name, expected = path_name(path), [str(leaf.dtype), list(leaf.shape)]
            if name not in saved:
                raise MismatchError(f"it has no array {name}")
            if saved[name][1:] != expected:
                raise MismatchError(
                    f"array {name} is {saved[name][1:]}, not {expected}"
                )
        items = {name: ocp.args.StandardRestore(a) for name, a in abstract.items()}
        try:
            restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # TensorStore, JSON and msgpack each have their own.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DamagedError(lines[0][:200]) from None
        state = {name: restored[name] for name in abstract}
        for name, value in digests(state).items():
            if value != saved[name]:
                raise DamagedError(f"array {name} differs from its digest")
        return state

    @staticmethod
    def _check_files(folder: pathlib.Path) -> None:
        # The processes share a file system: the first one reads for all of them.
        wrong = []
        if jax.process_index() == 0 and manifest.belongs_to(folder):
            wrong = manifest.differences(folder, extra=False)
        if number := distributed.max_over_processes(len(wrong)):
            first = wrong[0] if wrong else "a file is changed"  # Process 0 names it.
            raise DamagedError(
                f"{first}, and {number - 1} more" if number > 1 else first
            )

    def _summary(self, step: int) -> dict[str, Any]:
        """Returns what was saved with the arrays: their digests, and the loss.

        Raises:
          DamagedError: if it does not have its own digest.
        """
        item = ocp.args.Composite(digests=ocp.args.JsonRestore())
        try:
            summary = self.manager.restore(step, args=item)["digests"]
            whole = summary.pop("digest") == json_digest(summary)
        except Exception:  # Not JSON, or other JSON: there are many ways to fail.
            whole = False
        if not whole:
            raise DamagedError("the file of digests is not what was saved")
        return summary

    def restore_newest(
        self, abstract: State, before: float = math.inf, with_host: bool = False
    ) -> tuple[int, State] | None:
        """Restores the newest whole checkpoint of a step < before.

        Damaged ones are set aside as STEP.damaged, so that their steps can be saved
        again. The other arguments are as in `restore`.

        Returns:
          (step, state); None if there is no checkpoint at all.

        Raises:
          UserError: if there are checkpoints and every one is damaged, or one is of
            another config.
        """
        damaged: dict[int, DamagedError] = {}
        for step in reversed([step for step in self.steps() if step < before]):
            try:
                state = self.restore(step, abstract, with_host)
            except MismatchError as error:
                raise UserError(
                    f"checkpoint {step} in '{self.folder}' does not fit this config "
                    f"({error}): undo what changed, or use another --workdir"
                ) from None
            except DamagedError as error:
                damaged[step] = error
                continue
            for bad, why in damaged.items():
                log(f"warning: checkpoint {bad} is damaged ({why}); using step {step}")
                if not self.read_only and jax.process_index() == 0:
                    folder = self.folder / str(bad)
                    folder.rename(_unused(folder.with_name(f"{bad}.damaged")))
            if damaged:
                self.manager.reload()
            return step, state
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise UserError(
                f"no checkpoint in '{self.folder}' can be restored (step {step}: "
                f"{reason}): restore a copy, or start over in another --workdir"
            )
        return None

    def pick(self, wanted: str) -> int:
        """Returns the step that "best", "last" or a number names.

        Raises:
          UserError: listing the steps there are.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"'{self.folder}' holds no finished checkpoint")
        if wanted == "best":
            return _best(steps, self.val_loss)
        if wanted == "last":
            return steps[-1]
        digits = wanted.isascii() and wanted.isdigit() and len(wanted) < 20
        if digits and int(wanted) in steps:
            return int(wanted)
        raise UserError(
            f"no checkpoint '{wanted[:60]}': there are best, last, {self.listed()}"
        )

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


def _best(steps: Sequence[int], val_loss: Callable[[int], float]) -> int:
    """Returns the step of the lowest loss, the latest of several."""
    return min(steps, key=lambda step: (val_loss(step), -step))


def _unused(path: pathlib.Path) -> pathlib.Path:
    """Returns the path, or if it exists the first free one of path-2, path-3."""
    numbered = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def _handlers(memory: int) -> ocp.handlers.CheckpointHandlerRegistry:
    """Returns Orbax's usual handlers, but with fewer arrays compressed at a time."""
    standard = ocp.StandardCheckpointHandler(save_concurrent_gb=memory / 1e9)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(None, ocp.args.StandardSave, standard)
    registry.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return registry


class _WithManifest(atomicity.AtomicRenameTemporaryPath):
    """The folder that Orbax writes a checkpoint to, and renames to the step's.

    The manifest is written in between: so no finished checkpoint is without one. Orbax
    has no hook there, so it is made to finalize to a third name, which we rename.
    """

    async def finalize(self) -> None:
        """Lets Orbax write its last files, adds the manifest, and renames."""
        if atomicity.TMP_DIR_SUFFIX in self.get_final().parent.name:
            return await super().finalize()  # An item's folder within a step's.
        written = self.get()
        complete = written.with_name(f"{written.name}-complete")
        complete.rmtree(missing_ok=True)  # Left by a save that failed here.
        await atomicity.AtomicRenameTemporaryPath(
            written,
            complete,
            checkpoint_metadata_store=self._checkpoint_metadata_store,
        ).finalize()
        manifest.write(pathlib.Path(complete))
        complete.rename(self.get_final())


class _BestAndLatest:
    """Orbax's preservation policy: the latest, and the lowest validation loss.

    Orbax's own takes the loss from an item that no digest protects.
    """

    def __init__(self, keep: int, val_loss: Callable[[int], float]):
        self.keep, self.val_loss = keep, val_loss

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """Returns, for each checkpoint, ascending, whether it stays."""
        del context
        steps = [info.step for info in checkpoints]
        best = _best(steps, self.val_loss) if steps else None
        return [step in steps[-self.keep :] or step == best for step in steps]
