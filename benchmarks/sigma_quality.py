"""Losses of σ-GPT, of σ-GPT with its additions, and of a plain GPT, at equal tokens.

    python -m benchmarks.sigma_quality [--seeds 0 1 2] [--steps=5000] [--only=NAME ...]

Trains each contender from scratch with every seed, and scores the same characters of
every whole validation window: all but each window's first, in the fixed random orders
of evaluation and left to right. Finished runs are kept in --workdir and not repeated.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

from benchmarks.alternate import machine

PLUS = "configs/sigma_plus_char.py"
CONTENDERS = {
    "plain GPT": ("configs/sigma_char.py", {"system": "causal"}),
    "σ-GPT": ("configs/sigma_char.py", {}),
    "σ-GPT plus": (PLUS, {}),
    "plus, QK-norm": (PLUS, {"model.qk_norm": "true"}),
    "plus, no adaptive norm": (PLUS, {"sigma.adaptive_norm": "false"}),
    "plus, no left-to-right share": (PLUS, {"sigma.left_to_right_share": "0"}),
    "plus, no averaging": (PLUS, {"optimizer.ema_decay": "0"}),
}
DEFAULT = ("plain GPT", "σ-GPT", "σ-GPT plus")


def score(workdir: pathlib.Path, block: int) -> dict[str, float]:
    """Returns the mean negative log-likelihood in random order and left to right."""
    import jax
    import numpy as np

    from jaxgpt.core import random
    from jaxgpt.run import open_run
    from jaxgpt.systems.sigma import orders

    run = open_run(str(workdir), "last")
    tokens_NT = run.system.open_data().fixed("val", block)
    N = len(tokens_NT)
    straight = np.asarray(orders.left_to_right(N, block))
    kinds = {"left_to_right": straight}
    if run.config.system == "sigma":
        key = random.stream(0, "eval_order")
        kinds["random"] = np.asarray(orders.random(key, N, block))
    nll = jax.jit(lambda tokens, order: run.system.score(run.params, tokens, order)[1])
    found = {}
    for kind, order_NT in kinds.items():
        parts = [
            np.asarray(nll(tokens_NT[i : i + 64], order_NT[i : i + 64]))
            for i in range(0, N, 64)
        ]
        found[kind] = float(np.concatenate(parts).mean(dtype=np.float64))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--variant", default="laptop")
    parser.add_argument("--only", nargs="+", default=DEFAULT, choices=list(CONTENDERS))
    parser.add_argument("--workdir", default="runs/sigma_quality")
    args = parser.parse_args()
    from jaxgpt import cli, config
    from jaxgpt.train import train

    cli.set_up_jax()
    print(machine())
    rows = []
    for seed in args.seeds:
        for name in args.only:
            file, changes = CONTENDERS[name]
            changes = changes | {"seed": str(seed), "steps": str(args.steps)}
            c = config.load(f"{file}:{args.variant}", changes)
            slug = f"{name.replace(' ', '_').replace(',', '')}-{args.steps}-{seed}"
            workdir = pathlib.Path(args.workdir) / slug
            if status := train(c, workdir):
                sys.exit(status)
            rows.append(
                {"name": name, "seed": seed} | score(workdir, c.model.block_size)
            )
            print(rows[-1], flush=True)
    print(f"{'':30} {'random':>20} {'left to right':>20}")
    for name in args.only:
        line = f"{name:30}"
        for kind in ("random", "left_to_right"):
            found = [r[kind] for r in rows if r["name"] == name and kind in r]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            line += (
                f" {statistics.mean(found):12.4f} ± {spread:.4f}" if found else " " * 21
            )
        print(line)
    print(json.dumps({"machine": machine(), "steps": args.steps, "runs": rows}))


if __name__ == "__main__":
    main()
