"""Times contenders fairly: each in its own process, taking turns on an idle machine.

A contender is a function, named "module:function", that takes keyword arguments,
prepares, and returns another without arguments: one piece of work. Only one process
works at a time; thread pools sleep rather than spin (OMP_WAIT_POLICY=PASSIVE).
"""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each piece of work: on the wall, and of processor time."""

    wall: list[float]
    cpu: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def _serve(connection, target: str, arguments: dict, warm_up: bool) -> None:
    module, name = target.split(":")
    work = getattr(importlib.import_module(module), name)(**arguments)
    if warm_up:
        work()
    connection.send("ready")
    while (count := connection.recv()) is not None:
        times = []
        for _ in range(count):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
        connection.send(times)


def alternate(
    contenders: dict[str, tuple[str, dict]],
    rounds: int,
    repeats: int,
    slow: Collection[str] = (),
) -> dict[str, Timing]:
    """Returns the timings of contenders that take turns, repeats at a turn.

    Those that are slow have one piece of work a turn, and none before to warm up.
    """
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (target, arguments) in contenders.items():
        here, there = context.Pipe()
        process = context.Process(
            target=_serve,
            args=(there, target, arguments, name not in slow),
            daemon=True,
        )
        process.start()
        there.close()
        here.recv()
        workers[name] = (process, here)
    found: dict[str, list] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (_, connection) in workers.items():
            connection.send(1 if name in slow else repeats)
            # The first of a turn finds cold caches.
            found[name] += connection.recv()[name not in slow :]
    for process, connection in workers.values():
        connection.send(None)
        process.join()
    return {
        name: Timing([t[0] for t in times], [t[1] for t in times])
        for name, times in found.items()
    }


def machine() -> str:
    """Returns the processor, its cores, and the load of the last minute."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            name = next(
                line.split(":")[1].strip() for line in info if "model name" in line
            )
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
