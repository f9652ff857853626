"""How fast the sequences of σ-GPT's tasks are drawn, at the original's sizes.

    python -m benchmarks.sigma_tasks [--tasks=maze,snake] [--mazes=100000]

A row is the rate of one generator in one process, disk left out; the last row draws so
many distinct mazes of 13 x 21 as training would, overlaps sought and removed.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from benchmarks.alternate import machine

COUNT = 2000  # Sequences of a timing; of five the median counts.


def rate(name: str) -> tuple[int, float]:
    """Returns the length of a task's sequences, and how many are drawn a second."""
    from jaxgpt import config as configs
    from jaxgpt.systems.sigma.tasks.system import make_task

    task = make_task(configs.load(f"configs/sigma_task.py:{name}", {}))
    seconds = []
    for seed in range(5):
        began = time.perf_counter()
        task.sample(np.random.default_rng(seed), COUNT)
        seconds.append(time.perf_counter() - began)
    return task.length, COUNT / float(np.median(seconds))


def mazes(count: int) -> float:
    """Returns the seconds that so many distinct mazes of 13 x 21 take."""
    from jaxgpt import config as configs
    from jaxgpt.systems.sigma.tasks import dataset
    from jaxgpt.systems.sigma.tasks.system import make_task

    task = make_task(configs.load("configs/sigma_task.py:maze", {}))
    began = time.perf_counter()
    dataset.sample_split(task, "train", count, 0, np.zeros(0, np.uint64))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", default="", help="default: all that are drawn")
    parser.add_argument("--mazes", type=int, default=100000)
    args = parser.parse_args()
    from jaxgpt.systems.sigma.tasks.system import TASKS

    drawn = [name for name in TASKS if name not in ("mnist", "file")]
    names = args.tasks.split(",") if args.tasks else drawn
    result: dict = {"machine": machine(), "tasks": {}}
    print(result["machine"])
    print(f"{'task':>12} {'tokens':>7} {'sequences/s':>12}")
    for name in names:
        length, pace = rate(name)
        result["tasks"][name] = {"length": length, "sequences_per_second": pace}
        print(f"{name:>12} {length:>7} {pace:>12,.0f}", flush=True)
    result["mazes"], result["maze_seconds"] = args.mazes, mazes(args.mazes)
    print(f"{args.mazes:,} distinct mazes: {result['maze_seconds']:.1f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
