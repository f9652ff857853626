"""Several processes train one run: started where asked for or found, ended together.

JAX's own runtime connects them and notices who is gone. Every process runs the same
program; the first writes the files.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import importlib.util
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgpt.errors import UserError, log, silence_non_primary

if TYPE_CHECKING:
    import jax

PATIENCE = 60  # Seconds of waiting for other processes before it is said.
TIMEOUT = 600  # Seconds after which waiting ends.
HEARTBEAT = 30  # Seconds of silence after which a process counts as gone.
ESTABLISHED = "01"
# PCI's names of Google and of its TPUs; its network cards have others.
GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where this process stands among others."""
    group = parser.add_argument_group(
        "several processes", "found by themselves under Slurm and on TPU VMs"
    )
    group.add_argument("--coordinator", help="HOST:PORT where process 0 listens")
    group.add_argument("--num_processes", type=int, help="of the run; 1 looks for none")
    group.add_argument("--process_id", type=int, help="of this one, from 0")


def start(args: argparse.Namespace) -> bool:
    """Connects to the other processes, if there are any; before JAX is used.

    Raises:
      UserError: where options are missing. The process ends where the others do not
        come.
    """
    given = [args.coordinator, args.num_processes, args.process_id]
    asked = any(v is not None for v in given)
    # A host of a TPU slice learns of the others from its metadata, which JAX reads.
    tpu = has_tpu() and "cpu" not in os.environ.get("JAX_PLATFORMS", "")
    if args.num_processes == 1 or not (asked or told_of_others() or tpu):
        return False
    if asked and None in given:
        raise UserError(
            "--coordinator, --num_processes and --process_id go together: give all "
            "three, or none under Slurm and on TPU VMs"
        )
    if args.coordinator and not 0 <= args.process_id < args.num_processes:
        raise UserError(
            f"--process_id={args.process_id} is none of the {args.num_processes} "
            "processes, counted from 0"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    waiting = _Waiting(args)
    try:
        with waiting, _lines_for_the_lost():
            jax.distributed.initialize(
                args.coordinator,
                args.num_processes,
                args.process_id,
                initialization_timeout=TIMEOUT,
                heartbeat_timeout_seconds=HEARTBEAT,
                shutdown_timeout_seconds=HEARTBEAT,
            )
    except ValueError as error:
        if not (asked or told_of_others()):
            return False  # A TPU of one host, which knows of no others.
        raise UserError(f"the processes of this run cannot be found: {error}") from None
    except RuntimeError:
        log(f"error: not all processes came within {TIMEOUT} s: {_HINT}")
        os._exit(2)  # JAX's clean-up would end in a traceback.
    if jax.process_index():
        silence_non_primary()
    return True


def told_of_others() -> bool:
    """Returns whether the environment says that there are other processes."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    named = "JAX_COORDINATOR_ADDRESS" in os.environ
    return named or int(tasks) > 1 or "," in hosts


class _Waiting:
    """Says every minute how many processes have not come."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.over = args, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *_: Any) -> None:
        self.over.set()

    def _watch(self) -> None:
        waited = 0
        while not self.over.wait(PATIENCE):
            waited += PATIENCE
            log(f"{self._missing()} after {waited} s: {_HINT}")

    def _missing(self) -> str:
        count, address = self.args.num_processes, self.args.coordinator
        if count and self.args.process_id == 0:
            come = connections(int(address.rpartition(":")[2]))
            return f"waiting for {max(count - come, 1)} of {count} processes"
        if count:
            return f"process {self.args.process_id} of {count} waits for {address}"
        return "waiting for the other processes"


_HINT = "start the same command on every host (on a TPU VM, gcloud ... --worker=all)"


def connections(port: int, tables: str = "/proc/net") -> int:
    """Returns how many connections to a port of this machine there are (Linux)."""
    count = 0
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows = (pathlib.Path(tables) / name).read_text().splitlines()[1:]
            for row in rows:
                _, local, _, state, *_ = row.split()
                count += state == ESTABLISHED and local.endswith(f":{port:04X}")
    return count


@contextlib.contextmanager
def _lines_for_the_lost() -> Iterator[None]:
    """Within it a client is made that ends with one line when another process is gone.

    JAX's own answer is an abort with pages of stacks. Its client takes another, but
    `jax.distributed.initialize` hands none on, and jaxlib 0.10 ends in
    std::terminate on the way to it: so `leave` is what terminates.
    """
    from jax._src import distributed as runtime

    original = runtime._jax.get_distributed_runtime_client
    runtime._jax.get_distributed_runtime_client = functools.partial(
        original, missed_heartbeat_callback=lambda *_: leave()
    )
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL("libstdc++.so.6")
        library._ZSt13set_terminatePFvvE(_terminate)
    try:
        yield
    finally:
        runtime._jax.get_distributed_runtime_client = original


def leave() -> None:
    """Ends this process at once, since another one is gone."""
    log(
        "error: another process of this run is gone: this one ends too; the same "
        "command on every host resumes from the last checkpoint"
    )
    os._exit(1)


_terminate = ctypes.CFUNCTYPE(None)(leave)


def agree(value: int) -> int:
    """Returns the largest of the processes' values, in all of them; waits for them."""
    import jax

    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


class Agreement:
    """What `agree` finds, one question later and without waiting in between."""

    def __init__(self, mesh: jax.sharding.Mesh):
        import jax

        self._places = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
        self._largest = jax.jit(
            lambda values: values.max(), out_shardings=jax.NamedSharding(mesh, jax.P())
        )
        self._alone = jax.process_count() == 1
        self._asked: jax.Array | None = None

    def ask(self, value: int) -> int:
        """Asks for the largest value, returns the answer to the question before."""
        if self._alone:
            return value
        import jax

        answer = 0 if self._asked is None else int(self._asked)
        shape = (self._places.num_devices,)
        values = jax.make_array_from_callback(
            shape, self._places, lambda _: np.full(1, value, np.int32)
        )
        self._asked = self._largest(values)
        return answer


def check_backend(backend: str, devices: str = "/sys/bus/pci/devices") -> None:
    """Raises UserError where a TPU is there and JAX has silently taken the CPU."""
    if backend != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return
    if has_tpu(devices):
        raise UserError(_TPU_MESSAGE.format(owner=_owner()))


def has_tpu(devices: str = "/sys/bus/pci/devices") -> bool:
    """Returns whether this machine has a TPU, whoever uses it."""
    return any(
        vendor.read_text().strip() == GOOGLE
        and vendor.with_name("device").read_text().strip() in TPUS
        for vendor in pathlib.Path(devices).glob("*/vendor")
    )


def only_cpu() -> bool:
    """Returns whether there is no accelerator, though a TPU's library is installed.

    JAX would try that library first, and it complains at length.
    """
    others = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return (
        importlib.util.find_spec("libtpu") is not None
        and not has_tpu()
        and not any(map(os.path.exists, others))
    )


_TPU_MESSAGE = (
    "this machine has a TPU that JAX cannot use{owner}: end what uses it, install "
    "'jaxgpt[tpu]', or set JAX_PLATFORMS=cpu to train on the CPU"
)


def _owner() -> str:
    """Returns " (process N has it)" where that can be seen."""
    for link in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(("/dev/accel", "/dev/vfio/")):
                return f" (process {link.parts[2]} has it)"
    return ""
