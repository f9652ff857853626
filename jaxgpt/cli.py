"""What every command shares: options, one-line errors, the process's set-up."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jaxgpt.config import user_path
from jaxgpt.errors import CheckError, UserError


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line and no abbreviated options."""

    def __init__(self, module: str, description: str, **options: Any):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def add_run(self) -> None:
        """Adds the options of commands that read a finished run."""
        self.add_argument("--workdir", required=True, help="folder of the run")
        self.add_argument(
            "--step",
            default="best",
            help="checkpoint: its step, 'last', or 'best' by validation loss (default)",
        )
        self.add_json()

    def add_json(self) -> None:
        """Adds --json."""
        self.add_argument(
            "--json",
            choices=["-"],
            help="print one JSON object as the last line of standard output",
        )


def main(command: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command on the process's arguments and exits as the contract says."""
    try:
        status = command(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except CheckError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def print_json(value: dict) -> None:
    """Prints a JSON object as one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def set_up_jax() -> None:
    """Prepares the process before JAX makes its first array.

    Quiet logs, a compilation cache that outlives the process, and on a CPU the heap
    of `core.cpu.keep_heap`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _give_virtual_devices_threads()
    import logging

    import jax
    from absl import logging as absl_logging

    from jaxgpt.model import cpu

    logging.getLogger("jax").setLevel(logging.ERROR)
    # A failed background save is one line of Checkpoints', not the hundreds of these.
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = _without_coroutines
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("JAXGPT_CACHE", "~/.cache/jaxgpt")
        cache = user_path(home) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    from jaxgpt.parallel import distributed

    if "JAX_PLATFORMS" not in os.environ and distributed.only_cpu():
        jax.config.update("jax_platforms", "cpu")
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"JAX finds no device to run on ({reason}): end what uses it, or set "
            "JAX_PLATFORMS=cpu"
        ) from None
    distributed.check_backend(backend)
    if backend == "cpu":
        cpu.keep_heap()


def _give_virtual_devices_threads() -> None:
    """Sees to it that XLA's pool holds a callback of every device beside its work.

    With too few threads an all-reduce waits for a device whose callback waits for a
    thread, until XLA ends the process.
    """
    wanted = re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if wanted and int(wanted[1]) > 1:
        os.environ.setdefault("NPROC", str(2 * int(wanted[1]) + 4))


def _without_coroutines(unraisable: Any) -> None:
    """Reports what no one can catch, but for saves and reads that end after a failure.

    Orbax does several at once, in coroutines; the first failure is the one to report.
    """
    closed = "Event loop is closed" in str(unraisable.exc_value)
    coroutine = unraisable.object if inspect.iscoroutine(unraisable.object) else None
    if not closed and not (coroutine and "orbax" in coroutine.cr_code.co_filename):
        sys.__unraisablehook__(unraisable)


def use_float64(dtype: str) -> None:
    """Allows 64-bit arrays where a model computes in them."""
    if dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
