"""Several processes train one run: connected by JAX's runtime, ended together.

Every process runs the same program; the first writes the files.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxgpt.errors import UserError, log, require, silence_non_primary
from jaxgpt.parallel import hardware

WAITING_NOTICE_S = 60  # Between two notices that others are missing.
JOIN_TIMEOUT_S = 600  # After which a process no longer waits for the others.
HEARTBEAT_TIMEOUT_S = 30  # Of silence, after which a process counts as lost.
EXIT_DELAY_S = 1  # Of process 0, when all are done.
LIVENESS_INTERVAL_S = 1  # Between two checks that all processes are there.
_START_HINT = (
    "start the same command on every host (on a TPU VM, gcloud ... --worker=all)"
)
_finished = threading.Event()


def start(args: argparse.Namespace) -> bool:
    """Connects to the other processes, if there are any; call before JAX is used.

    Args:
      args: with the options of `cli.Parser.add_processes`.

    Returns:
      Whether there are several. The process exits (2) if the others do not come.

    Raises:
      UserError: for missing or wrong options.
    """
    options = [args.coordinator, args.num_processes, args.process_id]
    explicit = any(value is not None for value in options)
    # A host of a TPU slice finds the others in its metadata, which JAX reads.
    tpu = hardware.has_tpu() and not hardware.cpu_requested()
    if args.num_processes == 1 or not (explicit or in_cluster() or tpu):
        return False
    if explicit and None in options:
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: pass all "
            "three, or none under Slurm and on TPU VMs"
        )
    if explicit:
        most = 1 << 20
        count, process, address = args.num_processes, args.process_id, args.coordinator
        require(1 <= count <= most, "--num_processes", f"in [1, {most}]", count)
        rule = f"between 0 and --num_processes - 1 = {count - 1}"
        require(0 <= process < count, "--process_id", rule, process)
        port = re.fullmatch(r".*[^:]:([0-9]{1,5})", address)
        valid = port is not None and 0 < int(port[1]) < 1 << 16
        require(valid, "--coordinator", "HOST:PORT, like 10.0.0.1:1234", address)
    # Without it JAX aborts every process, with pages of stacks, when one is lost;
    # `exit_when_one_is_lost` ends them with a line instead.
    jax.config.update("jax_enable_recoverability", True)
    joined = threading.Event()
    threading.Thread(target=_log_waiting, args=(args, joined), daemon=True).start()
    try:
        jax.distributed.initialize(
            args.coordinator,
            args.num_processes,
            args.process_id,
            initialization_timeout=JOIN_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except ValueError as error:
        if not (explicit or in_cluster()):
            return False  # A TPU VM that is the only host of its slice.
        raise UserError(f"cannot find the processes of this run: {error}") from None
    except RuntimeError:
        log(f"error: not all processes joined within {JOIN_TIMEOUT_S} s: {_START_HINT}")
        os._exit(2)  # JAX's clean-up would end in a traceback.
    finally:
        joined.set()
    if jax.process_index():
        silence_non_primary()
    return True


def in_cluster() -> bool:
    """Returns whether the environment says that there are other processes."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    named = "JAX_COORDINATOR_ADDRESS" in os.environ
    return named or int(tasks) > 1 or "," in hosts


def _log_waiting(args: argparse.Namespace, joined: threading.Event) -> None:
    """Logs that processes are missing until all have joined."""
    this = ""
    if args.num_processes:
        this = f" (this is process {args.process_id} of {args.num_processes})"
    waited = 0
    while not joined.wait(WAITING_NOTICE_S):
        waited += WAITING_NOTICE_S
        log(f"waiting for other processes{this} after {waited} s: {_START_HINT}")


def exit_when_one_is_lost() -> None:
    """Starts a thread that ends this process when another one of the run is lost.

    The main thread may not notice: some collectives wait forever for a lost process.
    """

    def watch() -> None:
        while not _finished.wait(LIVENESS_INTERVAL_S):
            try:
                with multihost_utils.live_devices(jax.devices()) as live:
                    if len(live) < jax.device_count():
                        raise RuntimeError(f"{live} of {jax.devices()} are left")
            except Exception as error:
                if not _finished.is_set():
                    exit_after_loss(error)

    threading.Thread(target=watch, daemon=True).start()


def shutdown(status: int) -> None:
    """Ends this process (status) if it is not the first, once all of them are done."""
    _finished.set()
    multihost_utils.sync_global_devices("shutdown")
    # Recoverable processes have no barrier at their end, and JAX aborts one whose
    # coordinator, process 0, is gone. So the others exit at once, without JAX's
    # clean-up, and process 0 a moment later.
    if jax.process_index():
        sys.stdout.flush()
        os._exit(status)
    time.sleep(EXIT_DELAY_S)
    jax.distributed.shutdown()


def exit_after_loss(error: Exception) -> NoReturn:
    """Ends this process (1) since another one is lost.

    At once: an orderly exit would wait for the lost process.
    """
    reason = " ".join(str(error).split())[:200]
    log(
        f"error: another process of this run is gone ({reason}): this one ends too; "
        "the same command on every host resumes from the last checkpoint"
    )
    os._exit(1)


def max_over_processes(value: int) -> int:
    """Returns the largest of all processes' values, in each of them; waits for them."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


class PipelinedMax:
    """The maximum over processes, one call late.

    Asking at every step whether to stop, the host would wait for the devices if it
    needed that step's answer; the answer of the step before is there already.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._sharding = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
        self._max = jax.jit(
            lambda values: values.max(), out_shardings=jax.NamedSharding(mesh, jax.P())
        )
        self._single_process = jax.process_count() == 1
        self._previous: jax.Array | None = None

    def __call__(self, value: int) -> int:
        """Submits a value; returns the maximum of the values submitted before it."""
        if self._single_process:
            return value
        found = 0 if self._previous is None else int(self._previous)
        values = jax.make_array_from_callback(
            (self._sharding.num_devices,),
            self._sharding,
            lambda _: np.full(1, value, np.int32),
        )
        self._previous = self._max(values)
        return found
