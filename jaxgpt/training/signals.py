"""Signals: the first ends a run in good order, a second SIGINT at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from jaxgpt.errors import log


class Interrupted(BaseException):
    """An evaluation was broken off; BaseException, so that nothing swallows it."""


class SignalHandler:
    """Turns the first signal into a flag; a second SIGINT quits at once.

    SIGUSR1 is the warning that Slurm sends before the time is up.
    """

    def __init__(self, alone: bool = True) -> None:
        """With others (not alone) an evaluation is not broken off: all must end it."""
        self.signal = 0
        self._alone = alone
        self._evaluating = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it a signal raises Interrupted: an evaluation may take minutes."""
        self._evaluating = self._alone
        try:
            if self.signal and self._alone:
                raise Interrupted
            yield
        finally:
            self._evaluating = False

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)
        self.signal = number
        log(f"{signal.Signals(number).name}: saving a checkpoint, then leaving")
        if self._evaluating:
            raise Interrupted
