"""Run a study: a training run for every point of a grid, one CSV, one figure.

python -m jaxgpt.grid --study=studies/gssm_modes.yaml

A study is a YAML or JSON file: `config`, `overrides` of it, `grid` (a list of values
for each field: every combination is a point), `y` (a name in metrics.csv), `x` and
`lines` (fields of the grid), and the `title` of the figure. The same command resumes.
"""

from __future__ import annotations

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
from collections.abc import Mapping
from typing import Any

import yaml

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, log

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
FIELDS = {"config", "overrides", "grid", "x", "y", "lines", "title"}


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked study; points are the overrides of each run, those of the grid last."""

    name: str
    config: str
    grid: dict[str, list]
    points: list[dict[str, str]]
    x: str
    y: str
    lines: str
    title: str

    def workdir(self, folder: pathlib.Path, point: int) -> pathlib.Path:
        """Returns the folder of a point's run."""
        parts = [
            f"{key.rsplit('.', 1)[-1]}={short(self.points[point][key])}"
            for key in self.grid
        ]
        name = re.sub(r"[^\w.=-]+", "_", "-".join(parts))[:100]
        return folder / f"{point:03}-{name}"


def short(value: str) -> str:
    """Returns a value of a grid as it is shown: a file's name without folder, suffix.

    0.05 is no file 0 of suffix .05.
    """
    try:
        float(value)
    except ValueError:
        return pathlib.Path(value).stem
    return value


def read(name: str) -> Study:
    """Reads a study file and checks the config of every point.

    Raises:
      UserError: naming what is wrong in it.
    """
    path = configs.user_path(name)
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"study '{name}' cannot be read: {reason}") from None
    where = f"study '{name}'"
    if not isinstance(spec, Mapping):
        raise UserError(f"{where} has no fields {', '.join(sorted(FIELDS))}")
    if unknown := sorted(map(str, set(spec) - FIELDS)):
        raise UserError(f"{where} has unknown '{unknown[0]}'")
    spec = {"overrides": {}, "lines": "", "title": path.stem, **spec}
    for key, kind in (("config", str), ("grid", Mapping), ("x", str), ("y", str)):
        if not isinstance(spec.get(key), kind):
            raise UserError(f"{where} has no {key}, or not of its kind")
    if not isinstance(spec["overrides"], Mapping):
        raise UserError(f"{where}: overrides are values of fields")
    grid = dict(spec["grid"])
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: grid.{key} is a list of values")
    for key in ("x", "lines"):
        if spec[key] and spec[key] not in grid:
            raise UserError(f"{where}: {key} '{spec[key]}' is no field of its grid")
    fixed = {str(key): str(value) for key, value in spec["overrides"].items()}
    points = [
        fixed | {str(k): str(v) for k, v in zip(grid, values, strict=True)}
        for values in itertools.product(*grid.values())
    ]
    for point in points:
        configs.load(spec["config"], point)
    return Study(
        path.stem, spec["config"], grid, points, spec["x"], spec["y"],
        spec["lines"] or "", str(spec["title"]),
    )  # fmt: skip


def arguments(study: Study, folder: pathlib.Path, point: int) -> list[str]:
    """Returns the command that trains a point."""
    overrides = [f"--config.{k}={v}" for k, v in study.points[point].items()]
    workdir = study.workdir(folder, point)
    command = [sys.executable, "-m", "jaxgpt.train", f"--config={study.config}"]
    return [*command, f"--workdir={workdir}", *overrides]


def last_row(study: Study, folder: pathlib.Path, point: int) -> dict[str, Any] | None:
    """Returns the last row of a finished run; None where it is not finished.

    A run killed within its last evaluation has a row of the last step without one.
    """
    from jaxgpt.training.metrics import out_of_patience, read_rows

    rows = read_rows(study.workdir(folder, point))
    c = configs.load(study.config, study.points[point])
    if not rows or "val_loss" not in rows[-1]:
        return None
    ended = rows[-1]["step"] >= c.steps or out_of_patience(rows, c.patience)
    return rows[-1] if ended else None


def gather(study: Study, folder: pathlib.Path) -> int:
    """Writes results.csv and results.png of the finished runs; returns their number.

    Raises:
      UserError: where a finished run has no figure named `study.y`.
    """
    results = []
    for point, values in enumerate(study.points):
        row = last_row(study, folder, point)
        if row is not None:
            if study.y not in row:
                raise UserError(
                    f"study '{study.name}': its runs have no '{study.y}': there are "
                    f"{', '.join(row)}"
                )
            results.append({"point": point} | {k: values[k] for k in study.grid} | row)
    if results:
        names = list(dict.fromkeys(name for row in results for name in row))
        with open(folder / "results.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(results)
        plot(study, results, folder / "results.png")
    return len(results)


def plot(study: Study, results: list[dict], path: pathlib.Path) -> None:
    """Draws y of every run over x, and a line through the medians, for each line."""
    from matplotlib.figure import Figure

    labels = [str(value) for value in study.grid[study.x]]
    try:
        places = {label: float(label) for label in labels}
    except ValueError:
        places = {label: float(i) for i, label in enumerate(labels)}
    numbers = sorted(places.values())
    numeric = [float(i) for i in range(len(labels))] != numbers
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = study.grid[study.lines] if study.lines else [""]
    for line in map(str, lines):
        runs = [r for r in results if not study.lines or r[study.lines] == line]
        by_x: dict[float, list[float]] = {}
        for run in runs:
            by_x.setdefault(places[run[study.x]], []).append(run[study.y])
        xs = sorted(by_x)
        medians = [statistics.median(by_x[x]) for x in xs]
        label = short(line) or "median"
        (drawn,) = axes.plot(xs, medians, marker="_", markersize=14, label=label)
        dots = [(x, y) for x in xs for y in by_x[x]]
        axes.plot(*zip(*dots, strict=True), "o", color=drawn.get_color(), alpha=0.4)
    if all(run[study.y] > 0 for run in results):
        axes.set_yscale("log")
    if numeric and numbers[0] > 0 and numbers[-1] > 8 * numbers[0]:
        axes.set_xscale("log")
    if not numeric or axes.get_xscale() == "log":
        axes.set_xticks(list(places.values()), [short(label) for label in labels])
        axes.xaxis.minorticks_off()
    axes.set(xlabel=study.x, ylabel=study.y.replace("_", " "), title=study.title)
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title=study.lines or None)
    figure.savefig(path, dpi=120)


def supervise(words: list[str]) -> int:
    """Runs a process to its end and hands on the signals that end it.

    It has a process group of its own: a terminal's Ctrl-C, sent to both and handed on,
    would be the second one, at which training quits without a checkpoint.

    Returns:
      Its exit code, 128 + the signal where one was handed on.
    """
    started: list[subprocess.Popen] = []
    asked: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        asked.append(number)
        for process in started:
            process.send_signal(number)

    # Under nohup SIGHUP stays ignored.
    heard = [n for n in ENDING if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, hand_on) for number in heard}
    try:
        started.append(subprocess.Popen(words, process_group=0))
        code = started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + asked[0] if asked else code


def run(study: Study, folder: pathlib.Path) -> int:
    """Trains what is not finished, one process at a time; returns an exit code."""
    failed = []
    for point in range(len(study.points)):
        shown = study.workdir(folder, point).name
        if last_row(study, folder, point) is not None:
            log(f"[{point + 1}/{len(study.points)}] {shown}: finished before")
            continue
        log(f"[{point + 1}/{len(study.points)}] {shown}")
        code = supervise(arguments(study, folder, point))
        if code > 128:
            return code
        if code:
            failed.append(shown)
    if failed:
        log(f"error: {len(failed)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def command(argv: list[str]) -> int:
    """Parses arguments, runs the points, and gathers."""
    parser = cli.Parser("jaxgpt.grid", __doc__)
    parser.add_argument("--study", required=True, help="YAML or JSON file")
    parser.add_argument("--workdir", help="default: runs/NAME of the study")
    parser.add_argument("--point", type=int, help="train this one only, and gather not")
    parser.add_argument(
        "--gather", action="store_true", help="train nothing: write CSV and figure"
    )
    args = parser.parse_args(argv)
    study = read(args.study)
    folder = configs.user_path(args.workdir or f"runs/{study.name}")
    configs.make_folder(folder)
    if args.point is not None:
        if not 0 <= args.point < len(study.points):
            raise UserError(
                f"--point is 0 .. {len(study.points) - 1} in this study: not "
                f"{args.point}"
            )
        words = arguments(study, folder, args.point)
        # The run itself gets the signals that a scheduler sends.
        os.execv(words[0], words)
    code = 0 if args.gather else run(study, folder)
    found = gather(study, folder)
    log(f"{found} of {len(study.points)} runs in {folder / 'results.csv'}")
    return code


if __name__ == "__main__":
    cli.main(command)
