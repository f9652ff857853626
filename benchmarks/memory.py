"""The memory's search against a per-token loop, on the same work.

python -m benchmarks.memory

Two rows of 10,000 clustered vectors of width 768, 64 queries for each, 5 neighbours,
one thread, CPU time. The loop does what VardaGPT's does: for every row an IVF index
whose clusters are trained on zeros, one search for every token, a copy of every hit.
All sides take turns; medians of the rounds are printed.

python -m benchmarks.memory --large

A store of one row with 10,000 to 1,000,000 clustered vectors of width 128, each in a
process of its own: how long it takes to index them, how fast 64 queries at once are,
how much memory all of it takes, and how many bytes a file of it has.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import math
import multiprocessing
import resource
import statistics
import time

import numpy as np

from benchmarks.alternate import machine
from jaxgpt.systems.memory.config import IndexConfig
from jaxgpt.systems.memory.index import make_index

ROWS, SLOTS, WIDTH, TOKENS, K = 2, 10_000, 768, 64, 5
CENTRES = 200
ORIGINAL_CLUSTERS = 1024
KINDS = {
    "flat": IndexConfig(),
    "ivf, 8 probes": IndexConfig(index_type="ivf"),
    "ivf, 2 probes": IndexConfig(index_type="ivf", num_probes=2),
    "ivf, 1 probe": IndexConfig(index_type="ivf", num_probes=1),
    "compressed": IndexConfig(index_type="compressed", code_bytes=96, num_probes=2),
    "graph, ef 64": IndexConfig(index_type="graph"),
    "graph, ef 32": IndexConfig(index_type="graph", ef_search=32),
}


LARGE_SIZES = (10_000, 100_000, 1_000_000)
LARGE_WIDTH, LARGE_QUERIES, PER_CENTRE = 128, 256, SLOTS // CENTRES
LARGE_KINDS = ("flat", "ivf", "compressed", "graph")


def data() -> tuple[np.ndarray, np.ndarray]:
    """Returns clustered vectors [R, E, D], and queries [R, T, D] near some of them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, WIDTH))
    which = rng.integers(0, CENTRES, (ROWS, SLOTS))
    vectors = centres[which] + 0.5 * rng.normal(size=(ROWS, SLOTS, WIDTH))
    near = rng.integers(0, SLOTS, (ROWS, TOKENS))
    queries = np.take_along_axis(vectors, near[..., None], 1)
    queries = queries + 0.3 * rng.normal(size=queries.shape)
    return vectors.astype(np.float32), queries.astype(np.float32)


class Loop:
    """The per-token loop."""

    def __init__(self, vectors: np.ndarray):
        import faiss

        faiss.omp_set_num_threads(1)
        began = time.process_time()
        self.vectors, self.indices = vectors, []
        for _ in vectors:
            quantizer = faiss.IndexFlatL2(WIDTH)
            index = faiss.IndexIVFFlat(quantizer, WIDTH, ORIGINAL_CLUSTERS)
            index.train(np.zeros((SLOTS, WIDTH), np.float32))
            self.indices.append((quantizer, index))
        self.construction = time.process_time() - began
        for (_, index), row in zip(self.indices, vectors, strict=True):
            index.add(row)

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Returns the vectors found [R, T, K, D]."""
        import faiss

        faiss.omp_set_num_threads(1)
        rows = []
        for token in range(TOKENS):
            found = []
            for row, (_, index) in enumerate(self.indices):
                _, ids = index.search(queries[row, token][None], K)
                found.append(np.stack([self.vectors[row][i] for i in ids[0]]))
            rows.append(np.stack(found))
        return np.stack(rows, 1)


class Indices:
    """An index of the package for every row."""

    def __init__(self, vectors: np.ndarray, config: IndexConfig):
        began = time.process_time()
        self.vectors = vectors
        self.rows = [make_index(SLOTS, WIDTH, config) for _ in vectors]
        self.construction = time.process_time() - began
        began = time.process_time()
        for row, given in zip(self.rows, vectors, strict=True):
            row.add(np.arange(SLOTS), given)
        self.filling = time.process_time() - began

    def __call__(self, queries: np.ndarray) -> np.ndarray:
        """Returns the vectors found [R, T, K, D]."""
        return np.stack(
            [
                vectors[row.search(asked, K)]
                for row, vectors, asked in zip(
                    self.rows, self.vectors, queries, strict=True
                )
            ]
        )

    def recall(self, queries: np.ndarray) -> float:
        """Returns the share of the true nearest neighbours that is found."""
        hits = 0
        for row, asked in zip(self.rows, queries, strict=True):
            alive = np.flatnonzero(row.used)
            found = row.search(asked, K)
            far = ((asked[:, None] - row.vectors[alive][None]) ** 2).sum(-1)
            true = alive[np.argsort(far, 1)[:, :K]]
            hits += sum(len(set(a) & set(b)) for a, b in zip(found, true, strict=True))
        return hits / (ROWS * TOKENS * K)


def large_config(kind: str, count: int) -> IndexConfig:
    """Returns the defaults, with as many clusters as suit this many vectors."""
    clusters = min(4 * math.isqrt(count), count // 100)
    return IndexConfig(index_type=kind, num_clusters=clusters)


def measure_large(kind: str, count: int, rounds: int) -> dict[str, float]:
    """Returns CPU seconds, recall, bytes and peak memory of a store of this size."""
    import faiss
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save

    from jaxgpt import backend
    from jaxgpt.systems.memory import entries as ops
    from jaxgpt.systems.memory.store import Store

    backend.set_up_jax()
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    keys = normal(count // PER_CENTRE, LARGE_WIDTH).repeat(PER_CENTRE, 0)
    rng.shuffle(keys)
    keys += 0.5 * normal(count, LARGE_WIDTH)
    near = rng.integers(0, count, LARGE_QUERIES)
    queries = keys[near] + 0.3 * normal(LARGE_QUERIES, LARGE_WIDTH)
    faiss.omp_set_num_threads(1)
    true = faiss.knn(queries, keys, K)[1]
    numbers = jnp.arange(count, dtype=jnp.int32)[None]
    entries = ops.empty(1, count, (1, LARGE_WIDTH), {}) | {
        "key": jnp.asarray(keys)[None, :, None],
        "strength": jnp.ones((1, count)),
        **dict.fromkeys(("id", "stamp"), numbers),
        **dict.fromkeys(("next_id", "clock"), jnp.full(1, count, jnp.int32)),
    }
    del keys
    began = time.process_time()
    store = Store(entries, large_config(kind, count))
    build = time.process_time() - began
    times, found = [], []
    for turn in range(rounds * LARGE_QUERIES // TOKENS):
        at = TOKENS * turn % LARGE_QUERIES
        asked = queries[None, at : at + TOKENS, None]
        began = time.process_time()
        found.append(store.search(store.version, [0], asked, K)[0, :, 0])
        times.append(time.process_time() - began)
    pairs = zip(np.concatenate(found), itertools.cycle(true))
    hits = sum(len(set(a) & set(b)) for a, b in pairs)
    arrays = flatten_dict(entries, sep=".") | store.host_state()
    file = save({name: np.asarray(array) for name, array in arrays.items()})
    return {
        "build_s": build,
        "queries_per_second": TOKENS / statistics.median(times),
        "recall": hits / (K * TOKENS * len(times)),
        "peak_gb": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9,
        "file_mb": len(file) / 1e6,
    }


def large(sizes: list[int], rounds: int) -> None:
    """Prints a table of `measure_large`."""
    print(machine())
    print(
        "  entries  index       clusters  build s  queries/s  recall  peak GB  file MB"
    )
    jobs = list(itertools.product(sizes, LARGE_KINDS))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, context, max_tasks_per_child=1
    ) as pool:
        results = [pool.submit(measure_large, kind, n, rounds) for n, kind in jobs]
        for (count, kind), result in zip(jobs, results, strict=True):
            f = result.result()
            clustered = kind in ("ivf", "compressed")
            clusters = large_config(kind, count).num_clusters if clustered else ""
            print(
                f"{count:9,}  {kind:10}  {clusters:8}  {f['build_s']:7.2f}  "
                f"{f['queries_per_second']:9,.0f}  {f['recall']:6.3f}  "
                f"{f['peak_gb']:7.2f}  {f['file_mb']:7.1f}",
                flush=True,
            )


def host_share() -> dict[str, float]:
    """Returns CPU seconds of a step of GPT-2 124M with a memory, and its host part."""
    import jax

    from jaxgpt import backend
    from jaxgpt import config as configs
    from jaxgpt.systems.registry import build_system
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    backend.set_up_jax()
    changes = {"init_from": "", "model.vocab_size": 50257, "model.block_size": TOKENS}
    c = configs.load("configs/memory_gpt2.py", changes)
    system = build_system(c)
    optimizer = optimizers.make_optimizer(c)
    params = jax.jit(system.init)(jax.random.key(0))
    state = init_state(params, optimizer, False, system.host.recurrent_state(ROWS))
    system.host.on_restore(state["carried"], {})
    store, host = system.host.stores[0], [0.0]

    def timed(function):
        def wrapped(*args, **kwargs):
            began = time.thread_time()
            result = function(*args, **kwargs)
            host[0] += time.thread_time() - began
            return result

        return wrapped

    store.search = timed(store.search)
    store.update = timed(store.update)
    advance = make_step(system, optimizer)
    rng, steps = np.random.default_rng(0), []
    # Enough segments to fill the memory would take long: it is filled beforehand.
    key = rng.normal(size=(ROWS, SLOTS, 1, WIDTH)).astype(np.float32)
    entries = state["carried"]["entries"]
    entries |= {
        "key": jax.numpy.asarray(key / np.linalg.norm(key, axis=-1, keepdims=True)),
        "id": jax.numpy.tile(jax.numpy.arange(SLOTS), (ROWS, 1)),
        "stamp": jax.numpy.tile(jax.numpy.arange(SLOTS), (ROWS, 1)),
        "next_id": jax.numpy.full(ROWS, SLOTS),
        "clock": jax.numpy.full(ROWS, SLOTS),
        "strength": jax.numpy.ones((ROWS, SLOTS)),
    }
    store.update(entries)
    for index in range(6):
        batch = {
            "tokens": rng.integers(0, 50257, (ROWS, TOKENS + 1)).astype(np.int32),
            "document": np.zeros(ROWS, np.int32),
            "start": np.full(ROWS, TOKENS * (index + 1), np.int32),
            "weight": np.ones((ROWS, TOKENS), np.float32),
        }
        host[0], began = 0.0, time.process_time()
        state, _ = advance(state, np.int32(index), batch)
        jax.block_until_ready(state)
        system.host.on_step_end(state["carried"])
        steps.append((time.process_time() - began, host[0]))
    whole, part = (statistics.median(column) for column in zip(*steps[2:], strict=True))
    return {"step": whole, "host": part, "share": part / whole}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--step", action="store_true", help="also a step of GPT-2 124M")
    parser.add_argument("--large", action="store_true", help="only the large stores")
    parser.add_argument("--sizes", type=int, nargs="+", default=LARGE_SIZES)
    args = parser.parse_args()
    if args.large:
        return large(args.sizes, args.rounds)
    vectors, queries = data()
    sides = {"loop": Loop(vectors)}
    sides |= {name: Indices(vectors, config) for name, config in KINDS.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, side in sides.items():
            began = time.process_time()
            side(queries)
            times[name].append(time.process_time() - began)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(machine())
    print("index           ms   queries/s  times the loop  construction s  recall at 5")
    result = {"machine": machine()}
    for name, side in sides.items():
        recall = side.recall(queries) if isinstance(side, Indices) else 1.0
        figures = {
            "ms": 1e3 * median[name],
            "queries_per_second": ROWS * TOKENS / median[name],
            "ratio": median["loop"] / median[name],
            "construction_s": side.construction,
            "recall": recall,
        }
        print(
            f"{name:13} {figures['ms']:6.1f} {figures['queries_per_second']:11,.0f} "
            f"{figures['ratio']:15.1f} {figures['construction_s']:15.3f} {recall:12.3f}"
        )
        result[name] = figures
    graph = sides["graph, ef 32"]
    for row in graph.rows:
        row.remove(np.arange(SLOTS // 2 - 1))
    result["graph_half_dead_recall"] = graph.recall(queries)
    print(f"graph, ef 32, half its entries dead: recall {graph.recall(queries):.3f}")
    if args.step:
        result["gpt2_124m"] = share = host_share()
        print(
            f"a step of GPT-2 124M: {share['step']:.2f} CPU-s, of which the host part "
            f"{share['share']:.1%}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
