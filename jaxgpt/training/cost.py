"""What a run has cost: its FLOPs per token, and seconds summed over its resumes."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Any

from jaxgpt.errors import atomic_write

NAME = "cost.json"


class Cost:
    """Counts seconds from its construction on, added to those on record.

    Steps that were lost and done again count twice. Imports, and opening the data
    before training, do not count.

    Attributes:
      fixed: what does not depend on how long the run has trained.
    """

    def __init__(self, workdir: pathlib.Path):
        """Reads what the run has cost before it was resumed."""
        self.workdir, self.fixed = workdir, dict[str, Any]()
        # A run that has begun and kept no record leaves the seconds unknown.
        unknown = (workdir / "metrics.jsonl").exists()
        before = read_cost(workdir)
        self.start: dict[str, float] = {}
        for name, now in _clocks().items():
            spent = before.get(name, None if unknown else 0.0)
            if spent is not None:
                self.start[name] = now - spent

    def write(self) -> None:
        """Writes cost.json; seconds of a run that kept no record of them are null.

        Raises:
          OSError: if it cannot be written.
        """
        now, start = _clocks(), self.start
        seconds = {n: now[n] - start[n] if n in start else None for n in now}
        with atomic_write(self.workdir / NAME) as stream:
            stream.write(json.dumps(self.fixed | seconds) + "\n")


def _clocks() -> dict[str, float]:
    return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def read_cost(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns {"parameters", "flops_per_token", "seconds", "cpu_seconds": value}.

    What a run has not recorded is None, or not there.
    """
    try:
        found = json.loads((workdir / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
