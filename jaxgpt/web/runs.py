"""The runs in a folder, and their curves."""

from __future__ import annotations

import math
import pathlib
from typing import Any

from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.training.metrics import read_rows

MOST_POINTS = 300  # Of a curve.


def find(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {name: folder} of the run in a folder, or of those in its subfolders.

    Raises:
      UserError: if there is none.
    """
    if (folder / "config.json").is_file():
        return {folder.resolve().name: folder}
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"--workdir='{folder}': {error.strerror}") from None
    found = {path.name: path for path in inside if (path / "config.json").is_file()}
    if not found:
        raise UserError(
            f"--workdir='{folder}' holds no run: name the folder of one, or of several"
        )
    return found


def listed(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns name, system and problem, if any, of each run."""
    found = []
    for name, run in find(folder).items():
        try:
            system, problem = configs.load_frozen(run).system, ""
        except UserError as error:
            system, problem = "", str(error)
        if not problem and not (run / "checkpoints").is_dir():
            problem = "it has no checkpoint yet"
        found.append({"name": name, "system": system, "problem": problem})
    return found


def curves(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns {name: (step, loss)} of what training has logged so far."""
    rows = read_rows(folder)
    found = {}
    for name in ("loss", "val_loss"):
        points = [
            (row["step"], row[name])
            for row in rows
            if isinstance(row.get(name), float) and math.isfinite(row[name])
        ]
        every = max(1, math.ceil(len(points) / MOST_POINTS))
        # Counted from the end, to keep the last point.
        found[name] = points[::-1][::every][::-1]
    return found
