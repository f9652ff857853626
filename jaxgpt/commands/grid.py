"""Trains the points of a study, and gathers and draws their results."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
from typing import Any

import yaml

from jaxgpt import config as configs
from jaxgpt import drawing
from jaxgpt.errors import UserError, log, require
from jaxgpt.training import signals
from jaxgpt.training.metrics import out_of_patience, read_rows

# All signals at which training saves a checkpoint and ends.
SIGNALS = [*signals.SIGNALS, *(n for n in signal.Signals if n.name == "SIGHUP")]
KEYS = {
    "config": str, "overrides": dict, "grid": dict, "points": list, "x": str, "y": str,
    "lines": str, "title": object,
}  # fmt: skip
FIELDS = "a mapping of config fields"
METRICS = {
    "val_loss": "validation loss, nats per token",
    "val_gap": "validation loss above the floor,\nnats per token",
}


def execute(args: argparse.Namespace) -> int:
    """Runs the points, and gathers."""
    study = read_study(args.study)
    folder = configs.user_path(args.workdir or f"runs/{study.name}")
    configs.make_folder(folder)
    if args.point is not None:
        last = len(study.points) - 1
        require(0 <= args.point <= last, "--point", f"in [0, {last}]", args.point)
        words = study.train_command(folder, args.point)
        # Not a child process: a scheduler's signals must reach the run itself.
        os.execv(words[0], words)
    code = 0 if args.gather else run(study, folder)
    found = gather(study, folder)
    log(f"{found} of {len(study.points)} runs in {folder / 'results.csv'}")
    return code


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study.

    changes are what distinguishes the runs, points all overrides of each. grid and x
    are empty where the study lists its points.
    """

    name: str
    config: str
    grid: dict[str, list]
    changes: list[dict[str, str]]
    points: list[dict[str, str]]
    x: str
    y: str
    lines: str
    title: str

    def label(self, point: int) -> str:
        """Returns what a point changes, for people to read."""
        parts = [
            f"{key.rsplit('.', 1)[-1]}={short(value)}"
            for key, value in self.changes[point].items()
        ]
        return "-".join(parts) or "unchanged"

    def workdir(self, folder: pathlib.Path, point: int) -> pathlib.Path:
        """Returns the folder of a point's run."""
        name = re.sub(r"[^\w.=-]+", "_", self.label(point))[:100]
        return folder / f"{point:03}-{name}"

    def train_command(self, folder: pathlib.Path, point: int) -> list[str]:
        """Returns the command that trains a point."""
        overrides = [f"--config.{k}={v}" for k, v in self.points[point].items()]
        command = [sys.executable, "-m", "jaxgpt.train", f"--config={self.config}"]
        return [*command, f"--workdir={self.workdir(folder, point)}", *overrides]

    def last_row(self, folder: pathlib.Path, point: int) -> dict[str, Any] | None:
        """Returns the last metrics of a point's run, None unless it is finished."""
        rows = read_rows(self.workdir(folder, point))
        # A run killed in its last evaluation has a row of the last step without one.
        if not rows or "val_loss" not in rows[-1]:
            return None
        c = configs.load(self.config, self.points[point])
        ended = rows[-1]["step"] >= c.steps or out_of_patience(rows, c.patience)
        return rows[-1] if ended else None


def short(value: str) -> str:
    """Returns a value as shown in names: of a file, its name without folder, suffix."""
    try:
        float(value)  # 0.05 is not a file 0 with suffix .05.
    except ValueError:
        return pathlib.Path(value).stem
    return value


def read_study(name: str) -> Study:
    """Reads a study file and checks the config of every point.

    Raises:
      UserError: naming what is wrong in it.
    """
    path, where = configs.find_path(name), f"study '{name}'"
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} cannot be read: {reason}") from None
    if not isinstance(spec, dict):
        raise UserError(f"{where} must be a mapping with keys among {', '.join(KEYS)}")
    if unknown := sorted(map(str, set(spec) - set(KEYS))):
        raise UserError(f"{where} has an unknown key '{unknown[0]}'")
    given = {key: value for key, value in spec.items() if value is not None}
    listed = "points" in given
    if clash := [key for key in ("grid", "x", "lines") if listed and key in given]:
        raise UserError(f"{where} lists its points: remove '{clash[0]}'")
    absent = {"grid": {}, "x": ""} if listed else {"points": []}
    spec = {"overrides": {}, "lines": "", "title": path.stem} | absent | given
    rules: dict[Any, str] = {dict: FIELDS, list: "a list of changes"}
    for key, kind in KEYS.items():
        valid = isinstance(spec.get(key), kind)
        require(valid, f"{where}: {key}", rules.get(kind, "text"), spec.get(key))
    grid, changes = spec["grid"], spec["points"]
    if listed:
        valid = bool(changes) and all(isinstance(change, dict) for change in changes)
        require(valid, f"{where}: points", f"a list, each {FIELDS}", changes)
    else:
        for key, values in grid.items():
            valid = isinstance(values, list) and len(values) > 0
            require(valid, f"{where}: grid.{key}", "a list of values", values)
        for key in ("x", "lines"):
            valid = spec[key] in grid or (key == "lines" and not spec[key])
            require(valid, f"{where}: {key}", "a field of its grid", spec[key])
        combined = itertools.product(*grid.values())
        changes = [dict(zip(grid, values, strict=True)) for values in combined]
    fixed, *changes = (
        {str(key): str(value) for key, value in change.items()}
        for change in (spec["overrides"], *changes)
    )
    points = [fixed | change for change in changes]
    for point in points:
        configs.load(spec["config"], point)
    shown = {key: str(spec[key]) for key in ("config", "x", "y", "lines", "title")}
    return Study(path.stem, grid=grid, changes=changes, points=points, **shown)


def gather(study: Study, folder: pathlib.Path) -> int:
    """Writes results.csv and results.png of the finished runs; returns their number.

    Raises:
      UserError: if a finished run has no metric `study.y`.
    """
    results = []
    fields = dict.fromkeys(key for change in study.changes for key in change)
    for point, values in enumerate(study.points):
        row = study.last_row(folder, point)
        if row is not None:
            metrics = f"a metric of its runs: {', '.join(row)}"
            require(study.y in row, f"study '{study.name}': y", metrics, study.y)
            changed = {key: values.get(key, "") for key in fields}
            results.append({"point": point} | changed | row)
    if results:
        names = list(dict.fromkeys(name for row in results for name in row))
        with open(folder / "results.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(results)
        draw = plot if study.grid else plot_points
        draw(study, results, folder / "results.png")
    return len(results)


def plot_points(study: Study, results: list[dict], path: pathlib.Path) -> None:
    """Draws y of every run as a row of its own, and a line at that of the first."""
    with drawing.picture(path, 1.2 + 0.25 * len(results)) as figure:
        axes = figure.subplots()
        values = [run[study.y] for run in results]
        axes.plot(values, range(len(results)), "o")
        axes.axvline(values[0], color=drawing.GREY, linewidth=1)
        labels = [study.label(run["point"]) for run in results]
        axes.set_yticks(range(len(results)), labels)
        axes.invert_yaxis()
        axes.set(xlabel=y_name(study).replace("\n", " "))
        drawing.heading(figure, study.title)  # The labels are long: above them too.


def plot(study: Study, results: list[dict], path: pathlib.Path) -> None:
    """Draws y of every run over x, and the medians, for each line.

    The medians are joined where x is a number.
    """
    labels = [str(value) for value in study.grid[study.x]]
    try:
        x_of, numeric = {label: float(label) for label in labels}, True
    except ValueError:
        x_of, numeric = {label: float(i) for i, label in enumerate(labels)}, False
    numbers = sorted(x_of.values())
    ticks, x_name = [short(label) for label in labels], study.x
    if not numeric and (common := common_start(ticks)):
        ticks = [tick.removeprefix(common) for tick in ticks]
        x_name = f"{study.x}: {common}…"
    lines = list(map(str, study.grid[study.lines])) if study.lines else [""]
    with drawing.picture(path, 4.5) as figure:
        axes = figure.subplots()
        drawn = []
        for line, color in zip(lines, itertools.cycle(drawing.COLOURS), strict=False):
            by_x: dict[float, list[float]] = {}
            for run in results:
                if not study.lines or run[study.lines] == line:
                    by_x.setdefault(x_of[run[study.x]], []).append(run[study.y])
            xs = sorted(by_x)
            medians = [statistics.median(by_x[x]) for x in xs]
            style: dict[str, Any] = {"marker": "_", "markersize": 18}
            style |= {"markeredgewidth": 2}
            style |= {"linestyle": "-" if numeric else "", "color": color}
            drawn += axes.plot(xs, medians, **style)
            for x in xs:
                ys = by_x[x]
                axes.plot([x] * len(ys), ys, "o", color=color, alpha=0.4)
        if all(run[study.y] > 0 for run in results):
            drawing.log_scale(axes, "y")
        if numeric and numbers[0] > 0 and numbers[-1] > 8 * numbers[0]:
            axes.set_xscale("log")
        if not numeric or axes.get_xscale() == "log":
            axes.set_xticks(list(x_of.values()), ticks)
            axes.xaxis.minorticks_off()
        if not numeric:
            axes.set_xlim(-0.3, len(labels) - 0.7)
        axes.set(xlabel=x_name, ylabel=y_name(study), title=study.title)
        field = study.lines.rpartition(".")[2]
        named = [f"{field} {short(line)}" if line else "median" for line in lines]
        drawing.label_ends(axes, drawn, named)


def y_name(study: Study) -> str:
    """Returns what the metric of a study is, with its unit where that is known."""
    return METRICS.get(study.y, study.y.replace("_", " "))


def common_start(words: list[str]) -> str:
    """Returns what all words begin with, up to the last underscore in it."""
    alike = itertools.takewhile(
        lambda letters: len(set(letters)) == 1, zip(*words, strict=False)
    )
    start = "".join(letters[0] for letters in alike)
    return start[: start.rfind("_") + 1]


def supervise(words: list[str]) -> int:
    """Runs a process to its end, and forwards the signals that end training to it.

    Returns:
      Its exit code, or 128 + the first signal forwarded.
    """
    received: list[int] = []
    process = None

    def forward(number: int, _: Any) -> None:
        received.append(number)
        if process:
            process.send_signal(number)

    # Ignored signals stay ignored, as SIGHUP does under nohup.
    heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        # A process group of its own: otherwise a terminal's Ctrl-C would reach it
        # twice, and at the second one training quits without a checkpoint.
        process = subprocess.Popen(words, process_group=0)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else code


def run(study: Study, folder: pathlib.Path) -> int:
    """Trains the runs that are not finished, one at a time; returns an exit code."""
    failed = []
    for point in range(len(study.points)):
        shown = study.workdir(folder, point).name
        finished = study.last_row(folder, point) is not None
        end = ": already finished" if finished else ""
        log(f"[{point + 1}/{len(study.points)}] {shown}{end}")
        if finished:
            continue
        code = supervise(study.train_command(folder, point))
        if code > 128:
            return code
        if code:
            failed.append(shown)
    if failed:
        log(f"error: {len(failed)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0
