"""Tries faults on real runs, and prints how many were survived.

python -m scripts.reliability [--kills=30] [--mutations=1000] [--every=1]

Kills a training process before every change it makes to a file (--every=N: before
every N-th), and at random moments, and resumes each to its end; damages checkpoint
files and restores. Takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import tempfile
from collections import Counter

from jaxgpt import backend
from tests import faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--every", type=int, default=1)
    args = parser.parse_args()
    backend.set_up_jax()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(pathlib.Path(folder), args)
    print(f"{'fault':44}{'tried':>7}{'detected':>10}{'recovered':>11}{'lost':>6}")
    for name, row in found.items():
        numbers = "".join(f"{row[k]:>{w}}" for k, w in WIDTHS.items())
        print(f"{name:44}{numbers}")
    print(json.dumps(found))


WIDTHS = {"tried": 7, "detected": 10, "recovered": 11, "lost": 6}


def campaign(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, dict]:
    """Returns {fault: {"tried", "detected", "recovered", "lost"}}."""
    straight = folder / "straight"
    assert faults.finish(faults.start(straight))[0] == 0
    found = {}
    numbers = range(1, faults.count_changes(folder) + 1, args.every)
    ends = [
        faults.resumes_to(straight, faults.killed_at(folder, number))
        for number in numbers
    ]
    found["kill -9 before a change of a file"] = killed(ends)
    often, chance = folder / "often", random.Random(0)
    assert faults.finish(faults.start(often, faults.OFTEN))[0] == 0
    ends = []
    for _ in range(args.kills):
        workdir = faults.killed_after(folder, chance.uniform(0, 1.5))
        ends.append(faults.resumes_to(often, workdir, faults.OFTEN))
    found["kill -9 at a random moment"] = killed(ends)
    outcomes: Counter = faults.mutations(folder, args.mutations)
    found["a checkpoint file damaged"] = {
        "tried": outcomes.total(),
        "detected": outcomes["detected"],
        "recovered": outcomes["detected"],
        "lost": outcomes["lost"],
    }
    return found


def killed(ends: list[bool]) -> dict[str, int]:
    """Returns a row of runs that were resumed: recovered is bit-equal at the end."""
    tried, recovered = len(ends), sum(ends)
    return {
        "tried": tried,
        "detected": tried,
        "recovered": recovered,
        "lost": tried - recovered,
    }


if __name__ == "__main__":
    main()
