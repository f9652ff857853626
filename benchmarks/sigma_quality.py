"""Losses of σ-GPT, of σ-GPT with its additions, and of a plain GPT, at equal tokens.

    python -m benchmarks.sigma_quality [--seeds 0 1 2] [--steps=5000] [--only NAME ...]
    python -m benchmarks.sigma_quality --speed

Trains each contender from scratch with every seed, and scores the same characters of
every whole validation window: all but each window's first, in the fixed random orders
of evaluation and left to right. Finished runs are kept in --workdir and not repeated.
--speed times a training step of each instead, taking turns.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

from benchmarks.alternate import alternate, machine

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


def step(file: str, changes: dict):
    from jaxgpt import backend, config
    from jaxgpt.systems.registry import build_system
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    backend.set_up_jax()
    import jax
    import numpy as np

    c = config.load(file, changes | {"model.vocab_size": "65"})
    system, optimizer = build_system(c), optimizers.make_optimizer(c)
    params = jax.jit(system.init)(jax.random.key(0))
    state = init_state(params, optimizer, c.optimizer.ema_decay > 0)
    advance = make_step(system, optimizer)
    tokens = np.random.default_rng(0).integers(0, 65, (c.batch_size, system.window))

    def work():
        nonlocal state
        state, metrics = advance(state, np.int32(1000), tokens.astype(np.int32))
        return float(metrics["loss"])

    return work


def speeds(variant: str, names: list[str]) -> dict[str, float]:
    """Prints and returns the median seconds of a step of each contender."""
    chosen = {}
    for name in names:
        file, changes = CONTENDERS[name]
        arguments = {"file": f"{file}:{variant}", "changes": changes}
        chosen[name] = ("benchmarks.sigma_quality:step", arguments)
    timings = alternate(chosen, rounds=8, repeats=8)
    base = timings["σ-GPT"].median
    for name, timing in timings.items():
        ratio = timing.median / base
        print(f"{name:30} {1e3 * timing.median:8.1f} ms a step {ratio:6.2f}")
    return {name: timing.median for name, timing in timings.items()}


def score(workdir: pathlib.Path, block: int) -> dict[str, float]:
    """Returns the mean negative log-likelihood in random order and left to right."""
    import jax
    import numpy as np

    from jaxgpt.model import rng
    from jaxgpt.run import open_run
    from jaxgpt.systems.sigma import orders

    run = open_run(str(workdir), "last")
    tokens_NT = run.system.open_data().eval_windows("val", block)
    N = len(tokens_NT)
    straight = np.asarray(orders.left_to_right(N, block))
    kinds = {"left_to_right": straight}
    if run.config.system == "sigma":
        key = rng.stream(0, "eval_order")
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
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    from jaxgpt import backend, config
    from jaxgpt.commands.train import train

    backend.set_up_jax()
    print(machine())
    if args.speed:
        seconds = speeds(args.variant, args.only)
        print(json.dumps({"machine": machine(), "seconds": seconds}))
        return
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
