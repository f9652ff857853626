"""Losses of σ-GPT, of what improves it, and of a plain GPT, at equal CPU time.

    python -m benchmarks.sigma_quality [--seeds 0 1 2] [--only NAME ...]
    python -m benchmarks.sigma_quality --speed

Trains each contender from scratch with every seed, and scores the same characters of
every whole validation window: all but each window's first, in the fixed random orders
of evaluation and left to right. Finished runs are kept in --workdir and not repeated.
--speed times a training step of each instead, taking turns: the steps of the contenders
were chosen by it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import statistics
import sys

from benchmarks.alternate import alternate, machine


@dataclasses.dataclass(frozen=True)
class Contender:
    """A config, its changes, and its optimizer steps."""

    file: str
    changes: dict[str, str]
    steps: int


SIGMA, QUICK = "configs/sigma_char.py:laptop", "configs/quickstart.py"
ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": "2e-3"}
CAUSAL = {"system": "causal", "optimizer.learning_rate": "8e-3"}
CONTENDERS = {
    "plain GPT, AdamW": Contender(SIGMA, CAUSAL | ADAMW, 5000),
    "σ-GPT, AdamW": Contender(SIGMA, ADAMW, 5000),
    "plain GPT": Contender(SIGMA, CAUSAL, 3800),
    "plain GPT, RoPE": Contender(SIGMA, CAUSAL | {"model.positions": "rope"}, 3600),
    "σ-GPT": Contender(SIGMA, {}, 3600),
    "σ-GPT, 40 % of the time": Contender(SIGMA, {}, 1440),
    "σ-GPT plus": Contender("configs/sigma_plus_char.py:laptop", {}, 3300),
    "quickstart": Contender(QUICK, {}, 3600),
    "quickstart, random only": Contender(
        QUICK, {"sigma.left_to_right_share": "0", "sigma.infill_share": "0"}, 3600
    ),
    "quickstart, learned positions": Contender(
        QUICK, {"model.positions": "learned"}, 3600
    ),
    "judge": Contender(SIGMA, CAUSAL, 15_200),
    "quickstart, AdamW": Contender(QUICK, ADAMW, 4800),
}
DEFAULT = (
    "plain GPT",
    "σ-GPT, AdamW",
    "σ-GPT",
    "σ-GPT, 40 % of the time",
    "quickstart",
)


def step(file: str, changes: dict):
    from jaxgpt import backend, config
    from jaxgpt.systems.registry import build_system
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    backend.set_up_jax()
    import jax
    import numpy as np

    c = config.load(file, {"model.vocab_size": "65"} | changes)
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


def speeds(contenders: dict[str, Contender]) -> dict[str, float]:
    """Prints and returns the median CPU seconds of a step of each contender."""
    chosen = {}
    for name, one in contenders.items():
        arguments = {"file": one.file, "changes": one.changes}
        chosen[name] = ("benchmarks.sigma_quality:step", arguments)
    timings = alternate(chosen, rounds=8, repeats=8)
    found = {name: statistics.median(t.cpu) for name, t in timings.items()}
    for name, seconds in found.items():
        total = seconds * contenders[name].steps
        print(f"{name:30} {1e3 * seconds:8.1f} CPU-ms a step {total:8.0f} CPU-s in all")
    return found


def score(workdir: pathlib.Path, block: int) -> dict[str, float]:
    """Returns the mean negative log-likelihood in random order and left to right."""
    import jax
    import numpy as np

    from jaxgpt.model import rng
    from jaxgpt.run import open_run
    from jaxgpt.systems.sigma import orders

    run = open_run(str(workdir), "last")
    tokens_NT = run.open_data().eval_windows("val", block)
    N = len(tokens_NT)
    straight = np.asarray(orders.left_to_right(N, block))
    kinds = {"left_to_right": straight}
    if run.config.system == "sigma":
        key = rng.stream(0, "eval_order")
        kinds["random"] = np.asarray(orders.random(key, N, block))
    # Without the token read first, which not every model predicts.
    nll = jax.jit(lambda *args: run.system.score(run.params, *args)[1][:, 1 - block :])
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
    parser.add_argument("--only", nargs="+", default=DEFAULT, choices=list(CONTENDERS))
    parser.add_argument("--workdir", default="runs/sigma_quality")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    from jaxgpt import backend, config
    from jaxgpt.commands.train import train

    backend.set_up_jax()
    print(machine())
    if args.speed:
        seconds = speeds({name: CONTENDERS[name] for name in args.only})
        print(json.dumps({"machine": machine(), "seconds": seconds}))
        return
    rows = []
    for seed in args.seeds:
        for name in args.only:
            one = CONTENDERS[name]
            fixed = {"seed": str(seed), "steps": str(one.steps)}
            c = config.load(one.file, one.changes | fixed)
            slug = re.sub(r"\W+", "_", name) + f"-{one.steps}-{seed}"
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
    print(json.dumps({"machine": machine(), "runs": rows}))


if __name__ == "__main__":
    main()
