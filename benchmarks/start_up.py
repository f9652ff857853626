"""Seconds from the start of `jaxgpt.sample` to its text, and to the screen of --live.

    python -m benchmarks.start_up --workdir=RUN [--rounds 5]

Each in turn, in a process of its own, as a user starts it. A first round, which fills
the compilation cache, does not count. On the wall, and of the processor, which other
programs disturb less: on an idle core the wall has little more.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.alternate import machine


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_to_text(options: list[str]) -> tuple[float, float]:
    began, before = time.perf_counter(), processor_seconds()
    command = [sys.executable, "-m", "jaxgpt.sample", *options]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began, processor_seconds() - before


def seconds_to_screen(options: list[str]) -> tuple[float, float]:
    ours, theirs = pty.openpty()
    began, before = time.perf_counter(), processor_seconds()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxgpt.sample", "--live", *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = b""
    while b"compiling" not in written:
        written += os.read(ours, 1 << 16)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    os.close(ours)
    return seconds, processor_seconds() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    run = f"--workdir={args.workdir}"
    contenders = {
        f"text, {sampler}": lambda name=sampler: seconds_to_text(
            [run, f"--sampler={name}"]
        )
        for sampler in ("ar", "exact-burst")
    }
    contenders["screen of --live"] = lambda: seconds_to_screen([run])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for measured in range(args.rounds + 1):
        for name, work in contenders.items():
            seconds = work()
            if measured:
                found[name].append(seconds)
    print(machine())
    for name, pairs in found.items():
        wall, used = (
            f"{statistics.median(times):5.2f} s ({min(times):.2f} - {max(times):.2f})"
            for times in zip(*pairs, strict=True)
        )
        print(f"{name:20} {wall}, of the processor {used}")
    print(json.dumps({"machine": machine(), "seconds": found}))


if __name__ == "__main__":
    main()
