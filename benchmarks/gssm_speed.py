"""GSSM: drawing and scoring 128 sequences of 2,048 tokens, and training on them.

    python -m benchmarks.gssm_speed [--rounds=4]

Times are CPU times, medians; contenders take turns in processes of their own.
The NumPy loop draws the same graphs with the same tables: a step of time at a time, new
states by comparing a uniform number with every cumulative probability.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks.alternate import alternate, machine

ROWS, LENGTH = 128, 2048
README = ("base", "sparse", "dense")
# Four latents of six states each, in a chain, as large as two_chains.
CHAIN = [
    {"name": f"Z{i}", "state_dim": 6, "alpha": 0.3, "parents": [f"Z{i - 1}"] * (i > 1)}
    for i in range(1, 5)
] + [{"name": "X", "state_dim": 32, "alpha": 0.05, "parents": ["Z2", "Z4"]}]
CONFIG = "configs/gssm.py:easy"


def process_of(name: str):
    from jaxgpt import backend
    from jaxgpt.systems.gssm import graph_files, kernels, process

    backend.set_up_jax()
    text = json.dumps(CHAIN) if name == "chain" else f"data/graphs/{name}.yaml"
    nodes = graph_files.load_graph(text)
    return process.GraphProcess(nodes, kernels.draw_tables(nodes, 0, 1e-10))


def compiled(name: str) -> Callable[[], None]:
    """Returns a function that draws a batch as training does."""
    import itertools

    from jaxgpt.systems.gssm.process import Stream

    made, steps = process_of(name), itertools.count()
    stream = Stream(0, "train", ROWS)
    return lambda: made.sample(stream, next(steps), LENGTH).block_until_ready()


def numpy_loop(name: str) -> Callable[[], None]:
    """Returns a function that draws a batch, step by step on the host."""
    made = process_of(name)
    nodes, X = made.graph, made.graph.observed.name
    sums = {
        node.name: made.tables[node.name].reshape(-1, node.state_dim).cumsum(-1)
        for node in nodes.order
    }
    generator = np.random.default_rng(0)

    def draw() -> np.ndarray:
        states = {node.name: np.zeros(ROWS, np.int64) for node in nodes.order}
        tokens = np.zeros((LENGTH, ROWS), np.int64)
        for t in range(1, LENGTH):
            for node in nodes.order:
                inputs = [states[parent] for parent in nodes.inputs(node)]
                row = np.ravel_multi_index(inputs, nodes.shape(node)[:-1])
                u = generator.random(ROWS)[:, None]
                states[node.name] = (sums[node.name][row] <= u).sum(-1)
                np.minimum(states[node.name], node.state_dim - 1, out=states[node.name])
            tokens[t] = states[X]
        return tokens

    return draw


def exact(name: str, dtype: str = "float32", wanted: str = "nll") -> Callable[[], None]:
    """Returns a function that scores a batch exactly, or finds what else is wanted."""
    from jaxgpt.systems.gssm.process import Stream

    made = process_of(name)
    tokens = np.asarray(made.sample(Stream(0, "val", ROWS), 0, LENGTH))
    return lambda: made.score(tokens, dtype, wanted)


def training(online: bool) -> Callable[[], None]:
    """Returns a function that takes 20 training steps, on new or the same tokens."""
    from jaxgpt import backend, config
    from jaxgpt.systems.registry import build_system, system_class
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    backend.set_up_jax()
    import jax

    c = config.load(CONFIG, {})
    system_class(c.system).resolve(c)
    c.model.vocab_size = 16
    system = build_system(c)
    data, optimizer = system.open_data(), optimizers.make_optimizer(c)
    advance = make_step(system, optimizer)
    state = init_state(jax.jit(system.init)(jax.random.key(0)), optimizer, ema=False)
    index = 0
    same = jax.block_until_ready(data.batch_at(0, "train", 0, 32, system.window))

    def steps() -> None:
        nonlocal state, index
        for _ in range(20):
            tokens = same
            if online:
                tokens = data.batch_at(0, "train", index, 32, system.window)
            state, _ = advance(state, np.int32(index), tokens)
            index += 1
        jax.block_until_ready(state)

    return steps


def _predictive_ratio(name: str, rounds: int) -> dict[str, float]:
    """Times the distributions of all next tokens against the likelihood alone."""
    options = {"name": name, "dtype": "float64"}
    found = alternate(
        {
            wanted: ("benchmarks.gssm_speed:exact", options | {"wanted": wanted})
            for wanted in ("nll", "predictive")
        },
        rounds,
        3,
    )
    alone, cpu = (found[wanted].cpu for wanted in ("nll", "predictive"))
    ratios = [a / b for a, b in zip(cpu, alone, strict=True)]
    middle = statistics.median(cpu) / statistics.median(alone)
    print(
        f"{name:36} {statistics.median(cpu):8.2f} {statistics.median(alone):8.2f} "
        f"{middle:5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    return {"ratio": middle, "least": min(ratios), "most": max(ratios)}


def _peak(name: str) -> float:
    exact(name)()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    print(machine())
    figures: dict = {}
    tokens = ROWS * LENGTH / 1e6
    print(f"{'draw, million tokens per CPU second':36} {'NumPy':>8} {'ours':>8} ratio")
    for name in README:
        found = alternate(
            {
                "numpy": ("benchmarks.gssm_speed:numpy_loop", {"name": name}),
                "ours": ("benchmarks.gssm_speed:compiled", {"name": name}),
            },
            args.rounds,
            5,
        )
        speed = {k: tokens / statistics.median(t.cpu) for k, t in found.items()}
        ratio = speed["ours"] / speed["numpy"]
        print(f"{name:36} {speed['numpy']:8.2f} {speed['ours']:8.1f} {ratio:5.1f}")
        figures[f"draw {name}"] = speed | {"ratio": ratio}
    print(f"{'score exactly':36} {'CPU s':>8} {'wall s':>8}")
    for name in (*README, "chain"):
        timing = alternate(
            {name: ("benchmarks.gssm_speed:exact", {"name": name})}, args.rounds, 3
        )[name]
        cpu, wall = statistics.median(timing.cpu), statistics.median(timing.wall)
        print(f"{name:36} {cpu:8.2f} {wall:8.2f}")
        figures[f"score {name}"] = {"cpu": cpu, "wall": wall}
    print(f"{'of all next tokens, in float64':36} {'CPU s':>8} {'alone':>8} ratio")
    for name in (*README, "chain"):
        ratio = _predictive_ratio(name, args.rounds)
        figures[f"predictive {name}"] = ratio
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures["peak MiB, chain"] = pool.apply(_peak, ("chain",))
    print(f"peak memory of scoring the chain: {figures['peak MiB, chain']:.0f} MiB")
    found = alternate(
        {
            "fixed": ("benchmarks.gssm_speed:training", {"online": False}),
            "online": ("benchmarks.gssm_speed:training", {"online": True}),
        },
        args.rounds,
        5,
    )
    ratio = found["fixed"].median / found["online"].median
    print(f"training with drawing, of the speed on a fixed batch: {ratio:.3f} (wall)")
    figures["training ratio"] = ratio
    print(json.dumps({"machine": machine()} | figures))


if __name__ == "__main__":
    main()
