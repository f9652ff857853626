"""How close a transformer comes to the exact entropy, in the minutes a CPU has.

    python -m benchmarks.gssm_learning [--only=easy ...] [--workdir=runs/gssm_learning]

Trains configs/gssm.py:NAME and prints what its last evaluation says of the same
held-out sequences, with the time and the CPU time of the whole process.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

from benchmarks.alternate import machine

NAMES = ("easy", "low_entropy", "two_chains")


def learn(name: str, folder: pathlib.Path) -> dict:
    """Trains one config from scratch in a process of its own; returns its figures."""
    from jaxgpt.training.metrics import read_rows

    workdir = folder / name
    if workdir.exists():
        raise SystemExit(f"{workdir} exists: name another --workdir")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = ["-m", "jaxgpt.train", f"--config=configs/gssm.py:{name}"]
    subprocess.run([sys.executable, *command, f"--workdir={workdir}"], check=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = read_rows(workdir)[-1]
    return {
        "name": name,
        "steps": row["step"],
        "exact": row["val_loss_exact"],
        "gap": row["val_gap"],
        "gap_error": row["val_gap_error"],
        "bigram": row["val_loss_bigram"] - row["val_loss_exact"],
        "unigram": row["val_loss_unigram"] - row["val_loss_exact"],
        "wall": wall,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=NAMES)
    parser.add_argument("--workdir", default="runs/gssm_learning")
    args = parser.parse_args()
    rows = [learn(name, pathlib.Path(args.workdir)) for name in args.only]
    print(machine())
    print(
        "graph          steps   exact     gap ± error    bigram  unigram   wall   CPU"
    )
    for r in rows:
        print(
            f"{r['name']:14} {r['steps']:5} {r['exact']:7.3f} {r['gap']:7.4f} ± "
            f"{r['gap_error']:.4f} {r['bigram']:8.3f} {r['unigram']:8.3f} "
            f"{r['wall']:5.0f}s {r['cpu']:4.0f}s"
        )
    print(json.dumps({"machine": machine(), "runs": rows}))


if __name__ == "__main__":
    main()
