"""What all commands share: options, one-line errors, and setting up JAX."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import os
import pathlib
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
    """Runs a command and exits: 2 for wrong usage, 1 for a wrong result, 130 for ^C."""
    try:
        status = command(sys.argv[1:]) or 0
        sys.stdout.flush()
    except (UserError, CheckError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # The reader, `head` say, has enough: nothing to report.
        # Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def print_json(value: dict) -> None:
    """Prints a JSON object as one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def set_up_jax() -> None:
    """Quiets logs, enables the compilation cache and picks a backend.

    Must come before the first array. The imports are here since a command parses its
    arguments first: with JAX, --help would take seconds.

    Raises:
      UserError: if JAX finds no device it can use.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    devices = re.search(
        r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
    )
    if devices and int(devices[1]) > 1:
        # XLA's pool needs a thread for a callback of every virtual device beside its
        # work: with fewer, an all-reduce waits for a device whose callback waits for a
        # thread, until XLA aborts the process.
        os.environ.setdefault("NPROC", str(2 * int(devices[1]) + 4))
    import jax
    from absl import logging as absl_logging

    from jaxgpt.data.cache import cache_root
    from jaxgpt.model import cpu
    from jaxgpt.parallel import hardware

    logging.getLogger("jax").setLevel(logging.ERROR)
    # Checkpoints reports a failed background save in one line; these print hundreds.
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = _ignore_orbax_coroutines
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if "JAX_PLATFORMS" not in os.environ and hardware.only_cpu():
        jax.config.update("jax_platforms", "cpu")
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"JAX finds no device to run on ({reason}): stop what uses it, or set "
            "JAX_PLATFORMS=cpu"
        ) from None
    hardware.check_backend(backend)
    if backend == "cpu":
        cpu.keep_heap()


def _ignore_orbax_coroutines(unraisable: Any) -> None:
    """Reports unraisable exceptions, except for Orbax's saves that others outlived.

    It saves arrays concurrently: the first failure is reported, and leaves coroutines
    that were never awaited or find their event loop closed.
    """
    closed = "Event loop is closed" in str(unraisable.exc_value)
    coroutine = unraisable.object if inspect.iscoroutine(unraisable.object) else None
    if not closed and not (coroutine and "orbax" in coroutine.cr_code.co_filename):
        sys.__unraisablehook__(unraisable)


def use_float64(dtype: str) -> None:
    """Enables 64-bit arrays for a model that computes in float64."""
    if dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)


def output_path(
    option: str, name: str, suffixes: tuple[str, ...] = ("",)
) -> pathlib.Path:
    """Returns the path of a file to write that an option names.

    Raises:
      UserError: where it is a folder, its folder is missing, or it ends in another way.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"--{option}='{name}' is a folder: name a file")
    if not path.parent.is_dir():
        raise UserError(f"--{option}='{name}': folder '{path.parent}' does not exist")
    if not name.lower().endswith(suffixes):
        raise UserError(f"--{option}='{name}' must end in {' or '.join(suffixes)}")
    return path
