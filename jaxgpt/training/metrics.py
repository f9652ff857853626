"""The metrics of a run: files always, trackers if they work."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from jaxgpt.errors import atomic_write, log
from jaxgpt.training import plots
from jaxgpt.training.cost import NAME as COST
from jaxgpt.training.cost import Cost

# Training draws figures at most this often, as each takes it half a second.
DRAWING_INTERVAL_S = 10.0

Row = dict[str, Any]
Tracker = Callable[[Row], None]


class Recorder:
    """Writes metrics.jsonl as it goes, metrics.csv and figures at evaluations."""

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        trackers: list[Tracker],
        writes: bool = True,
        cost: Cost | None = None,
    ):
        """Keeps the rows up to step `start`; without `writes` another process writes.

        At step 0 it keeps none, as step 0 is evaluated again. `cost` is written with
        every row, and at the end.
        """
        self.workdir, self.trackers, self.writes = workdir, trackers, writes
        self.cost = cost
        self.unwritable: set[str] = set()
        self.curves: dict[str, Any] = {}
        self.drawn = time.monotonic()
        before = read_rows(workdir) if start else []
        self.rows = [row for row in before if row["step"] <= start]
        if writes:
            self._rewrite()

    def _rewrite(self) -> None:
        with atomic_write(self.workdir / "metrics.jsonl") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in self.rows)

    def write(self, row: Row) -> None:
        """Appends a row, or adds it to that of the same step.

        A tracker that fails is dropped, with a warning.
        """
        again = self.rows and self.rows[-1]["step"] == row["step"]
        self.rows.append(self.rows.pop() | row if again else row)
        if not self.writes:
            return
        path = self.workdir / "metrics.jsonl"
        with self._tolerating_a_full_disk(path):
            if again or not path.exists():
                self._rewrite()
            else:
                with open(path, "a") as stream:
                    stream.write(json.dumps(row) + "\n")
        self._write_cost()
        for tracker in list(self.trackers):
            try:
                tracker(row)
            except Exception as error:
                self.trackers.remove(tracker)
                log(f"warning: a tracker failed and is disabled: {error}")

    def summarise(self, last: bool = True) -> None:
        """Rewrites metrics.csv, and the figures unless they are recent.

        Args:
          last: draws the figures in any case, since nothing comes after.
        """
        if not self.writes:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        path = self.workdir / "metrics.csv"
        with self._tolerating_a_full_disk(path), atomic_write(path) as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.rows)
        self._write_cost()
        now = time.monotonic()
        if not last and now - self.drawn < DRAWING_INTERVAL_S:
            return
        self.drawn = now
        path = self.workdir / "loss.png"
        with self._tolerating_a_full_disk(path):
            plots.plot_losses(self.rows, path)
        path = self.workdir / "position.png"
        if self.curves:
            with self._tolerating_a_full_disk(path):
                plots.plot_positions(self.curves, path)

    def write_positions(self, curves: dict[str, Any]) -> None:
        """Rewrites position.csv, means [T] at an evaluation; `summarise` draws them."""
        if not curves or not self.writes:
            return
        self.curves = curves
        path = self.workdir / "position.csv"
        with self._tolerating_a_full_disk(path):
            write_curves(curves, path)

    def _write_cost(self) -> None:
        if self.cost:
            with self._tolerating_a_full_disk(self.workdir / COST):
                self.cost.write()

    @contextlib.contextmanager
    def _tolerating_a_full_disk(self, path: pathlib.Path) -> Iterator[None]:
        """Logs, once for each file, that it cannot be written, and continues."""
        try:
            yield
        except OSError as error:
            if path.name not in self.unwritable:
                log(f"warning: '{path}' cannot be written: {error}")
            self.unwritable.add(path.name)


def write_curves(curves: dict[str, Any], path: pathlib.Path) -> None:
    """Writes {name: means [T]} as columns, after one of positions from 1."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream)
        writer.writerow(["position", *curves])
        values = zip(*curves.values(), strict=True)
        writer.writerows([i + 1, *row] for i, row in enumerate(values))


def read_rows(workdir: pathlib.Path) -> list[Row]:
    """Returns the rows of metrics.jsonl; a line cut off by a crash is left out."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def out_of_patience(rows: list[Row], patience: int) -> bool:
    """Returns whether the best validation loss was too many evaluations ago."""
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    if not (losses and patience):
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def open_trackers(config: ConfigDict, workdir: pathlib.Path) -> list[Tracker]:
    """Returns the trackers of the config; one that cannot be opened is logged."""
    trackers = []
    for name, enabled, open_tracker in (
        ("tensorboard", config.tensorboard, _open_tensorboard),
        ("wandb", config.wandb_project, _open_wandb),
    ):
        if enabled:
            try:
                trackers.append(open_tracker(config, workdir))
            except (Exception, SystemExit) as error:  # W&B may exit where it fails.
                log(f"warning: {name} is disabled: {error or type(error).__name__}")
    return trackers


def _open_tensorboard(config: ConfigDict, workdir: pathlib.Path) -> Tracker:
    from tensorboardX import SummaryWriter  # An optional dependency.

    writer = SummaryWriter(str(workdir / "tensorboard"))

    def track(row: Row) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, row["step"])

    return track


def _open_wandb(config: ConfigDict, workdir: pathlib.Path) -> Tracker:
    import wandb  # An optional dependency.

    file = workdir / "wandb_id"
    if not file.exists():
        # Not the folder's name, which may be the same elsewhere; runs that old versions
        # began have it as their id, and keep it.
        began = (workdir / "wandb").exists()
        with atomic_write(file) as stream:
            stream.write(workdir.name if began else uuid.uuid4().hex)
    run = wandb.init(
        project=config.wandb_project,
        name=workdir.name,
        dir=str(workdir),
        id=file.read_text().strip(),
        resume="allow",
        config=config.to_dict(),
    )
    return lambda row: run.log(row, step=row["step"])
