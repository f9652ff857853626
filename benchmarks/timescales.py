"""Slow and fast latents: when, where and how linearly a transformer knows them.

    python -m benchmarks.timescales --workdir=runs/timescales --figure=F.png

X reads three latents that differ in one thing: slow, middle and fast leave their state
with probability 0.025, 0.1 and 0.4 a token, for one of the other three. All begin in a
state drawn at random. X's distributions are drawn for all 64 joint states. Each seed
has three runs, in which the latents change places, so that what is drawn favours none.

Prints, for each latent, means over runs with standard errors over seeds: what linear
probes of the exact belief read after each block, what probes with random features as
well read after the last, and when, in steps, half of what the blocks add was there.
The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgpt
from benchmarks.alternate import machine
from jaxgpt import drawing
from jaxgpt import gssm as graphs
from jaxgpt.commands.probe import probe
from jaxgpt.errors import log
from jaxgpt.model import rng
from jaxgpt.systems.base import System
from jaxgpt.systems.gssm import probes
from jaxgpt.systems.gssm.graph import LatentGraph, Node
from jaxgpt.systems.gssm.kernels import Tables, tables_to_json
from jaxgpt.training.metrics import read_rows

RATES = {"slow": 0.025, "middle": 0.1, "fast": 0.4}
STATES, TOKENS, ALPHA = 4, 24, 0.1
STEPS, EVERY = 1500, 150
SEQUENCES = 512
FEATURES = 512  # Random ones.


def make(seed: int, rotation: int) -> tuple[tuple[Node, ...], Tables]:
    """Returns the nodes and kernels of a run."""
    names = [*RATES][rotation:] + [*RATES][:rotation]
    # State and token 0 are those of time 0 alone: nothing is known of the latents then.
    kernels: Tables = {}
    for name in names:
        leave = RATES[name]
        kernels[name] = table = np.zeros((STATES + 1, STATES + 1))
        table[0, 1:] = 1 / STATES
        table[1:, 1:] = leave / (STATES - 1)
        np.fill_diagonal(table[1:, 1:], 1 - leave)
    drawn = np.random.default_rng(seed).dirichlet(
        np.full(TOKENS, ALPHA), (STATES,) * len(names)
    )
    kernels["X"] = np.zeros((STATES + 1,) * len(names) + (TOKENS + 1,))
    kernels["X"][..., 0] = 1
    kernels["X"][1:, 1:, 1:] = np.pad(drawn, [(0, 0)] * len(names) + [(1, 0)])
    latents = [Node(name, STATES + 1, 1.0) for name in names]
    return (*latents, Node("X", TOKENS + 1, 1.0, tuple(names), observed=True)), kernels


def measure(seed: int, rotation: int, folder: pathlib.Path) -> dict[str, Any]:
    """Trains a run and probes it; returns its figures, kept in the folder."""
    record = folder / "probed.json"
    if record.exists():
        return json.loads(record.read_text())
    nodes, kernels = make(seed, rotation)
    config = jaxgpt.config(
        "configs/gssm.py:easy",
        **{
            "gssm.graph": LatentGraph(nodes).to_json(),
            "gssm.kernels": tables_to_json(kernels),
            "model.n_layer": 4,
            "seed": seed,
            "steps": STEPS,
            "eval_interval": EVERY,
            "checkpoint_interval": EVERY,
            "keep": STEPS // EVERY,
        },
    )
    jaxgpt.train(config, folder)
    found = probe(str(folder), "all", SEQUENCES)
    graph = graphs.Graph(nodes, kernels=kernels)
    tokens_NT = graphs.sample(graph, SEQUENCES, config.model.block_size + 1)
    last = jaxgpt.load(folder, step="last")
    metrics = read_rows(folder)[-1]
    found |= {
        "gap": metrics["val_gap"],
        "bigram": metrics["val_loss_bigram"] - metrics["val_loss_exact"],
        "information": {
            name: figures["information"]
            for name, figures in graphs.decompose(graph, tokens_NT)["latents"].items()
        },
        "features": with_features(last.system, last.params),
        "untrained_features": with_features(
            last.system, last.system.init(rng.stream(seed, "params"))
        ),
    }
    record.write_text(json.dumps(found))
    return found


def with_features(system: System, params: dict) -> dict[str, float]:
    """Returns {latent: R^2} of probes that also see random ReLU features.

    Of the residual stream after the last block: what a probe that is not linear reads.
    """
    of = probes.Probes(system, SEQUENCES)
    D = system.config.model.n_embd
    keys = jax.random.split(jax.random.key(0))
    weight_DF = jax.random.normal(keys[0], (D, FEATURES)) / math.sqrt(D)
    bias_F = jax.random.normal(keys[1], (FEATURES,))

    @jax.jit
    def read(tokens_BT):
        x_BTD = probes.hidden_states(system.model(params), tokens_BT)[-1]
        scale = jax.lax.rsqrt((x_BTD**2).mean(-1, keepdims=True))
        features_BTF = jax.nn.relu(x_BTD * scale @ weight_DF + bias_F)
        return [jnp.concatenate([x_BTD, features_BTF], -1)]

    found = probes.measure(
        lambda tokens_BT: jax.device_get(read(tokens_BT)), of.fitting, of.scored, 64
    )
    return {name: values["r2"][0] for name, values in found.items()}


def half_time(by_step: dict[int, float], start: float) -> float:
    """Returns the step at which half of the way from `start` to the end was made."""
    steps, values = [0, *by_step], np.array([start, *by_step.values()])
    target = (start + values[-1]) / 2
    after = int(np.argmax(values >= target))
    low, high = values[after - 1], values[after]
    part = (target - low) / (high - low)
    return float(steps[after - 1] + part * (steps[after] - steps[after - 1]))


def summary(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the figures of each latent, [mean, standard error], of runs by seed."""

    def over_seeds(values: list[list[Any]]) -> list[Any]:
        means = np.array(values, float).mean(1)
        error = means.std(0, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else None
        return [means.mean(0).tolist(), None if error is None else error.tolist()]

    def figures(run: dict[str, Any], latent: str) -> dict[str, Any]:
        models = run["models"]
        trained = {int(s): m[latent]["r2"] for s, m in models.items() if s.isdigit()}
        last = trained[STEPS]
        ends = {step: r2[-1] for step, r2 in trained.items()}
        return {
            "r2": last,
            "untrained": models["untrained"][latent]["r2"],
            "accuracy": models[str(STEPS)][latent]["accuracy"][-1],
            "best_accuracy": run["latents"][latent]["belief"],
            "features": run["features"][latent],
            "untrained_features": run["untrained_features"][latent],
            "by_step": [*ends.values()],
            "half_time": half_time(ends, last[0]),
            "information": run["information"][latent],
        }

    found: dict[str, Any] = {}
    for latent in RATES:
        each = [[figures(run, latent) for run in of_seed] for of_seed in runs]
        found[latent] = {
            key: over_seeds([[run[key] for run in of_seed] for of_seed in each])
            for key in each[0][0]
        }
    for key in ("gap", "bigram"):
        found[key] = over_seeds([[run[key] for run in of_seed] for of_seed in runs])
    return found


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the figure."""
    found = record["figures"]
    steps = range(EVERY, STEPS + 1, EVERY)
    with drawing.picture(path, 4.5) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        drawing.heading(figure, "R² of linear probes of the exact belief")
        for axes, key in ((left, "r2"), (right, "by_step")):
            lines = []
            for latent, colour in zip(RATES, drawing.COLOURS, strict=False):
                mean, error = found[latent][key]
                mean, error = np.array(mean), np.array(error or [0.0] * len(mean))
                places = np.array(steps if key == "by_step" else range(len(mean)))
                lines += axes.plot(places, mean, "o-", color=colour)
                axes.fill_between(
                    places, mean - error, mean + error, color=colour, alpha=0.2, lw=0
                )
                if key == "r2":
                    untrained = found[latent]["untrained"][0]
                    axes.plot(untrained, "--", lw=1.2, color=colour)
                    axes.plot(places[-1], found[latent]["features"][0], "D", mfc="none",
                              color=colour)  # fmt: skip
            drawing.label_ends(axes, lines, [*RATES])
        blocks = [f"block\n{i}" for i in range(len(found["slow"]["r2"][0]) - 1)]
        left.set_xticks(range(len(blocks) + 1), ["embed-\nding", *blocks])
        left.set_ylim(0, 1)
        left.set(title="by layer", xlabel=f"at step {STEPS}")
        for style, label in (("--", "untrained"), ("D", "with ReLU features")):
            left.plot(
                [], [], style, color=drawing.GREY, lw=1.2, mfc="none", label=label
            )
        left.legend(loc="upper left")
        right.set(title="by step", xlabel="step, after the last block")


def main() -> None:
    """Trains, probes, prints a table and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/timescales")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", help=".png; what it shows is written as .json")
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        runs.append([])
        for rotation in range(len(RATES)):
            folder = pathlib.Path(args.workdir) / f"seed={seed}-rotation={rotation}"
            runs[-1].append(measure(seed, rotation, folder))
            log(f"probed {folder}")
    record = {"machine": machine(), "seeds": args.seeds, "figures": summary(runs)}
    found = record["figures"]
    shown = lambda pair: (
        f"{pair[0]:.3f} ± {pair[1]:.3f}" if pair[1] else f"{pair[0]:.3f}"
    )
    for latent in RATES:
        print(latent)
        for key, (mean, error) in found[latent].items():
            if isinstance(mean, list):
                several = zip(mean, error or [None] * len(mean), strict=True)
                print(f"  {key:>14}  {'  '.join(map(shown, several))}")
            elif key == "half_time":
                print(f"  {key:>14}  {mean:.0f}" + (f" ± {error:.0f}" if error else ""))
            else:
                print(f"  {key:>14}  {shown((mean, error))}")
    print(f"gap {shown(found['gap'])}; bigram above exact {shown(found['bigram'])}")
    if args.figure:
        path = pathlib.Path(args.figure)
        drawing.write_record(record, path)
        draw(record, path)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
