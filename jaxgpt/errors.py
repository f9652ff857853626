"""Exceptions, the log line, atomic writes, and the checks that every layer needs."""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import secrets
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from typing import IO, Any

_silent = False


class UserError(Exception):
    """Wrong usage or input: one line naming the thing and the remedy (exit code 2)."""


class CheckError(Exception):
    """A result that cannot be right: one line naming it (exit code 1)."""


def require(condition: bool, name: str, rule: str, got: Any, remedy: str = "") -> None:
    """Raises UserError, "NAME must be RULE, got GOT: REMEDY", unless it holds."""
    if not condition:
        shown = repr(got) if isinstance(got, str) else " ".join(str(got).split())
        end = f": {remedy}" if remedy else ""
        raise UserError(f"{name} must be {rule}, got {shorten(shown)}{end}")


def shorten(text: str, most: int = 200) -> str:
    """Returns a text, cut off after `most` characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def one_line(error: Exception, most: int = 200) -> str:
    """Returns an error's message without line breaks, cut off like `shorten`."""
    return shorten(" ".join(str(error).split()), most)


def listed(items: Collection[object], most: int = 3) -> str:
    """Returns the first items as text, and how many more there are."""
    text = ", ".join(map(str, list(items)[:most]))
    return text + (f" and {len(items) - most} more" if len(items) > most else "")


def import_optional(name: str, message: str) -> Any:
    """Imports a package that jaxgpt does not depend on.

    Raises:
      UserError: with the message, if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(message) from None


@contextlib.contextmanager
def os_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Turns an OSError into UserError("WHAT: REASON: REMEDY")."""
    try:
        yield
    except OSError as error:
        end = f": {remedy}" if remedy else ""
        raise UserError(f"{what}: {error.strerror or error}{end}") from None


def keep_interrupt(ignored: sys.UnraisableHookArgs) -> None:
    """Repeats a Ctrl-C that Python drops; for `sys.unraisablehook`.

    A signal during a garbage collection arrives in a callback of JAX's, out of which no
    exception comes.
    """
    if ignored.exc_type is KeyboardInterrupt:
        # To that thread: another one's would not wake it from a wait.
        main = threading.main_thread().ident
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(ignored)


def silence_non_primary() -> None:
    """Logs only errors from now on: the first of several processes logs the rest."""
    global _silent
    _silent = True


def log(message: str) -> None:
    """Prints a line for the person watching: on stderr, so that stdout stays data."""
    # A run continues even if nobody reads its output any more.
    with contextlib.suppress(OSError):
        if not _silent or message.startswith("error"):
            print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path, which is renamed to `path` once it is complete.

    At any moment, also after a kill, a reader finds the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: pathlib.Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens the temporary file of `atomic_path` for writing; text is UTF-8."""
    encoding = None if "b" in mode else "utf-8"
    with (
        atomic_path(path) as temporary,
        open(temporary, mode, encoding=encoding) as stream,
    ):
        yield stream
