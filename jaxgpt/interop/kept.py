"""The original's settings that a run keeps, so that its export has them again."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from jaxgpt.errors import UserError, atomic_write

FILE = "original.json"


def write(workdir: pathlib.Path, settings: dict[str, Any]) -> None:
    """Writes settings, if there are any, into a run's folder."""
    if settings:
        with atomic_write(workdir / FILE) as stream:
            stream.write(json.dumps(settings) + "\n")


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what `write` wrote; UserError if that is damaged."""
    path = workdir / FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{path}' cannot be used: {error}: remove it") from None
