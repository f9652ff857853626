"""Signals: the first ends a run cleanly, a second SIGINT at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jaxgpt.errors import log

# SIGUSR1, Slurm's warning before the time limit, is not on every system.
SIGNALS = [n for n in signal.Signals if n.name in ("SIGINT", "SIGTERM", "SIGUSR1")]


class Interrupted(BaseException):
    """An evaluation was interrupted; BaseException, so that nothing swallows it."""


class SignalHandler:
    """Within it the first signal is kept as `signal`; a second SIGINT exits at once."""

    def __init__(self, single_process: bool = True) -> None:
        """With several processes evaluations are not interrupted: all must end one."""
        self.signal = 0
        self._single_process = single_process
        self._evaluating = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        # Python delivers signals only to the main thread, and a notebook may train in
        # another.
        main = threading.current_thread() is threading.main_thread()
        for number in SIGNALS if main else ():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it a signal raises Interrupted: an evaluation may take minutes."""
        self._evaluating = self._single_process
        try:
            if self.signal and self._single_process:
                raise Interrupted
            yield
        finally:
            self._evaluating = False

    def _handle(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)
        self.signal = number
        log(f"{signal.Signals(number).name}: saving a checkpoint, then leaving")
        if self._evaluating:
            raise Interrupted
