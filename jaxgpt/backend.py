"""Sets up JAX in this process: its backend, its caches, its logs, its precision."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import tempfile
from typing import Any

import jax
from absl import logging as absl_logging

from jaxgpt.data.cache import cache_root
from jaxgpt.errors import UserError, keep_interrupt, log, one_line
from jaxgpt.model import cpu
from jaxgpt.parallel import hardware


def set_up_jax(computes: bool = True) -> None:
    """Quiets logs, enables the compilation cache and picks a backend.

    Must come before the first array.

    Args:
      computes: False for a program that only moves arrays, and saves memory.

    Raises:
      UserError: if JAX finds no device it can use.
    """
    hardware.set_environment()
    logging.getLogger("jax").setLevel(logging.ERROR)
    # `Checkpoints` reports a failed background save in one line, these in hundreds.
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = _ignore_orbax_coroutines
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not _unwritable():
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        # By default JAX caches only what took a second to compile: most of our programs
        # take less, but there are dozens of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    cpu_requested = os.environ.get("JAX_PLATFORMS") == "cpu"
    if "JAX_PLATFORMS" not in os.environ and hardware.only_cpu():
        jax.config.update("jax_platforms", "cpu")
    if computes and (cpu_requested or not hardware.has_accelerator()):
        # Before XLA starts its threads: each of them gets its own malloc arena, which
        # would return memory to the system after every step.
        cpu.keep_heap()
    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no device to run on ({one_line(error)}): stop what uses it, or "
            "set JAX_PLATFORMS=cpu"
        ) from None
    hardware.check_backend(backend)
    if not computes:
        cpu.return_memory()
    elif backend == "cpu":
        cpu.keep_heap()


def _unwritable() -> str:
    """Returns why compiled programs cannot be cached; "" if they can."""
    try:
        folder = cache_root() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"the cache '{folder}' cannot be written ({error.strerror})"
    except UserError as error:
        return str(error)


def warn_if_uncached() -> None:
    """Logs that compiled programs cannot be cached, and the remedy."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (why := _unwritable()):
        why = why.split(": set JAXGPT")[0]
        log(
            f"note: {why}: every command compiles from scratch; set JAXGPT_CACHE to a "
            "writable folder"
        )


def _ignore_orbax_coroutines(unraisable: Any) -> None:
    """Reports unraisable exceptions, except those of Orbax's abandoned saves.

    Orbax saves arrays concurrently. After a failure, which is reported, the others'
    coroutines were never awaited or find their event loop closed.
    """
    closed = "Event loop is closed" in str(unraisable.exc_value)
    coroutine = unraisable.object if inspect.iscoroutine(unraisable.object) else None
    if not closed and not (coroutine and "orbax" in coroutine.cr_code.co_filename):
        keep_interrupt(unraisable)


def use_float64(dtype: str) -> None:
    """Enables 64-bit arrays for a model that computes in float64."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
