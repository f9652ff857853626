"""Trains the points of a study, optionally in parallel, and gathers the results."""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import os
import pathlib
import signal
import subprocess
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxgpt import config as configs
from jaxgpt import drawing
from jaxgpt.commands import study_plots
from jaxgpt.commands.power_law import PowerLaw
from jaxgpt.commands.study import Study, read_study
from jaxgpt.errors import UserError, log, require
from jaxgpt.parallel import hardware
from jaxgpt.training import signals

# All signals at which training saves a checkpoint and ends.
SIGNALS = [*signals.SIGNALS, *(n for n in signal.Signals if n.name == "SIGHUP")]


def execute(args: argparse.Namespace) -> int:
    """Runs the points, and gathers."""
    study, jobs = read_study(args.study), args.jobs
    folder = configs.user_path(args.workdir or f"runs/{study.name}")
    require(jobs >= 1, "--jobs", ">= 1", jobs)
    if jobs > 1 and (args.gather or args.point is not None):
        raise UserError("--jobs is for training all points: omit --point and --gather")
    if jobs > 1 and hardware.has_accelerator() and not hardware.cpu_requested():
        raise UserError(
            f"--jobs={jobs} shares out CPU cores, and this machine has an accelerator: "
            "set JAX_PLATFORMS=cpu, or run an array job (scripts/slurm_array.py)"
        )
    configs.make_folder(folder)
    if args.point is not None:
        last = len(study.points) - 1
        require(0 <= args.point <= last, "--point", f"in [0, {last}]", args.point)
        if study.test:
            return run(study, folder, 1, [args.point])
        words = study.train_command(folder, args.point)
        # Not a child process: a scheduler's signals must reach the run itself.
        os.execv(words[0], words)
    code = 0 if args.gather else run(study, folder, jobs, range(len(study.points)))
    found = gather(study, folder)
    log(f"{found} of {len(study.points)} runs in {folder / 'results.csv'}")
    return code


def gather(study: Study, folder: pathlib.Path) -> int:
    """Writes results.csv and results.png of the finished runs; returns their number.

    Power laws fitted to them are logged and written to results.json.

    Raises:
      UserError: if a finished run has no column that the study names as x or y.
    """
    results = []
    fields = dict.fromkeys(key for change in study.changes for key in change)
    for point, values in enumerate(study.points):
        row = study.result(folder, point)
        if row is None:
            continue
        changed = {key: values.get(key, "") for key in fields}
        results.append({"point": point} | changed | row)
    if results:
        names = list(dict.fromkeys(name for row in results for name in row))
        with open(folder / "results.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(results)
        for row in results:
            for key in ("y", "x") if study.grid else ("y",):
                name, rule = getattr(study, key), f"a column: {', '.join(row)}"
                require(name in row, f"study '{study.name}': {key}", rule, name)
        picture = folder / "results.png"
        laws = study_plots.draw(study, results, picture)
        for line, law in laws.items():
            log(f"{study.fit}{line and f', {study.lines}={line}'}: {law}")
        if study.fit:
            found = {
                line: vars(law) if isinstance(law, PowerLaw) else {"none": law}
                for line, law in laws.items()
            }
            record = {"x": study.x, "y": study.y, "fit": study.fit, "lines": found}
            drawing.write_record(record, picture)
    return len(results)


class Supervisor:
    """A context that runs processes, and forwards to them signals that end training.

    Attributes:
      code: 128 + the first signal that was forwarded or that ended a run, or 0; other
        than 0, no more runs begin.
    """

    def __init__(self) -> None:
        self.code = 0
        self._processes: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Supervisor:
        for number in SIGNALS:
            # Ignored signals stay ignored, as SIGHUP does under nohup.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _: Any) -> None:
        with self._lock:
            self.code = self.code or 128 + number
            if (count := len(self._processes)) > 1:
                log(f"{signal.Signals(number).name}: ending {count} runs")
            for process in self._processes:
                process.send_signal(number)

    def run(self, words: Sequence[str], **streams: Any) -> int:
        """Runs a process; not for the main thread, which handles signals.

        Args:
          words: the command.
          **streams: files for its stdout and stderr, if not those of this process.

        Returns:
          Its exit code, or 128 + the first signal forwarded.
        """
        with self._lock:
            if self.code:
                return self.code
            # Its own process group: otherwise a terminal's Ctrl-C would reach it twice,
            # and at the second one training quits without a checkpoint.
            process = subprocess.Popen(words, process_group=0, **streams)
            self._processes.add(process)
        code = process.wait()
        with self._lock:
            self._processes.discard(process)
            if code > 128:
                self.code = self.code or code
        return self.code or code


def run(study: Study, folder: pathlib.Path, jobs: int, points: Collection[int]) -> int:
    """Trains the points that are not finished, `jobs` at a time.

    Returns:
      128 + a signal that ended it, 1 if any failed, or 0.
    """
    pins = hasattr(os, "sched_setaffinity")  # Linux; elsewhere jobs compete.
    cores = shares(sorted(os.sched_getaffinity(0)), jobs) if pins else []
    left = []
    for point in points:  # Before any is trained: a folder may be of another study.
        if study.result(folder, point) is None:
            left.append(point)
        else:
            log(f"{shown(study, folder, point)}: already finished")

    def pin() -> None:
        # This thread's processes inherit its affinity: XLA starts one thread for each
        # allowed core.
        if pins:
            os.sched_setaffinity(0, cores.pop())

    with (
        Supervisor() as supervisor,
        ThreadPoolExecutor(jobs, initializer=pin) as pool,
    ):
        train = functools.partial(run_point, study, folder, supervisor, jobs > 1)
        codes = list(pool.map(train, left))
    if supervisor.code:
        return supervisor.code
    ended = zip(left, codes, strict=True)
    failed = [study.workdir(folder, point).name for point, code in ended if code]
    if failed:
        log(f"error: {len(failed)} runs failed: {', '.join(failed)}")
    return 1 if failed else 0


def shares(cores: Sequence[int], jobs: int) -> list[Sequence[int]]:
    """Returns the cores of each job: neighbours, and one where there are too few."""
    n = len(cores)
    parts = [cores[i * n // jobs : (i + 1) * n // jobs] for i in range(jobs)]
    return parts if n >= jobs else [[cores[i % n]] for i in range(jobs)]


def shown(study: Study, folder: pathlib.Path, point: int) -> str:
    """Returns what a point is called in the log."""
    return f"[{point + 1}/{len(study.points)}] {study.workdir(folder, point).name}"


def run_point(
    study: Study,
    folder: pathlib.Path,
    supervisor: Supervisor,
    logs_to_file: bool,
    point: int,
) -> int:
    """Trains a point, and tests it if the study does; returns an exit code."""
    if supervisor.code:
        return supervisor.code
    workdir, name = study.workdir(folder, point), shown(study, folder, point)
    log(name)
    said = workdir.with_name(f"{workdir.name}.log")
    with contextlib.ExitStack() as files:
        streams: dict[str, Any] = {}
        if logs_to_file:
            stream = files.enter_context(open(said, "a"))
            streams = {"stdout": stream, "stderr": stream}
        code = 0
        if study.last_row(folder, point) is None:
            code = supervisor.run(study.train_command(folder, point), **streams)
        if study.test and not code:
            stream = files.enter_context(open(study.test_file(folder, point), "w"))
            words = study.test_command(folder, point)
            code = supervisor.run(words, **streams | {"stdout": stream})
    if code:
        end = f", see {said}" if logs_to_file else ""
        log(f"{name}: ended with exit code {code}{end}")
    elif row := study.result(folder, point):
        if study.y in row:
            parts = [f"{study.y} {row[study.y]:.4g}"]
        else:  # Said before the other runs are trained.
            parts = [f"finished, without y, '{study.y}'"]
        if (seconds := row.get("cpu_seconds")) is not None:
            parts.append(f"{seconds:.0f} CPU seconds of training")
        log(f"{name}: {', '.join(parts)}")
    return code
