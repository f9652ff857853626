"""What goes wrong, and the line in which a person is told: the lowest layer."""

from __future__ import annotations

import sys

_silent = False


class UserError(Exception):
    """Wrong usage or input: one line naming the thing and the remedy (exit code 2)."""


class CheckError(Exception):
    """A result that cannot be right: one line naming it (exit code 1)."""


def silence_non_primary() -> None:
    """Leaves all but errors to the first of several processes."""
    global _silent
    _silent = True


def log(message: str) -> None:
    """Prints a line for the person watching: on stderr, so that stdout stays data."""
    if not _silent or message.startswith("error"):
        print(message, file=sys.stderr, flush=True)
