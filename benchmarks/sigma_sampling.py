"""Generating text with σ-GPT: our samplers against the original's, on equal weights.

    python -m benchmarks.sigma_sampling [--case=char-64 ...] [--batch 1 32] [--only ...]
    python -m benchmarks.sigma_sampling --rounds 1 --record=RUNS.jsonl

The contenders load the same .pt file: `char-64` is the original's trained character
model of 64 tokens (parity_tests/golden), `random-256` one of 256 with fresh weights.
One token is given. The original's algorithms run in eager PyTorch (torch_sigma.py), in
float32. Each contender has one core, and so PyTorch one thread: with two, each of its
small operations waits for the other thread, which takes the original several times as
long where other programs run (`--cores 2` measures it). Times are of the processor: on
an idle core as long as on the wall, and not disturbed by others.

--record adds a run to a file, and prints the medians of all runs that it has.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile

import numpy as np

from benchmarks.alternate import Timing, alternate, machine

GOLDEN = pathlib.Path("parity_tests/golden/sigma/char_sigma_d128.pt")
CASES = {"char-64": 64, "random-256": 256}
CACHED, BURST = "original, cached", "original, burst"
OURS = {"ar": {"sampler": "ar"}, "exact-burst": {"sampler": "exact-burst"}}
BF16 = ", bfloat16"  # Of model.dtype; the others compute in float32.
OURS |= {name + BF16: sampling for name, sampling in OURS.items()}


def use_cores(count: int) -> None:
    """Leaves this process so many of the cores it may use, the last ones."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def jaxgpt_sampler(
    weights: str, length: int, batch: int, cores: int, sampling: dict, dtype: str
):
    use_cores(cores)
    from jaxgpt import backend
    from jaxgpt.sampling.state import SamplingParams
    from jaxgpt.systems.registry import build_system

    backend.set_up_jax()
    import jax

    from jaxgpt.interop import formats

    original = formats.get_format("sigma-gpt").read(weights)
    original.config.model.dtype = dtype
    system = build_system(original.config)
    params = jax.device_put(original.params)
    tokens = np.zeros((batch, length), np.int32)
    known = np.arange(length) < np.ones((batch, 1))
    seeds = iter(range(1 << 30))

    def work():
        key = jax.random.key(next(seeds))
        return system.sample(params, tokens, known, key, SamplingParams(**sampling))

    return work


def torch_sampler(weights: str, length: int, batch: int, cores: int, burst: bool):
    use_cores(cores)
    import torch

    from benchmarks.torch_sigma import SigmaTwin

    torch.set_num_threads(cores)
    torch.manual_seed(0)
    twin = SigmaTwin.load(weights)
    tokens = torch.zeros((batch, length), dtype=torch.long)
    known = torch.arange(length).expand(batch, length) < 1
    return lambda: (twin.burst if burst else twin.cached)(tokens, known)


def fresh_weights(path: str, length: int) -> None:
    """Writes a checkpoint of the original's format with random weights."""
    import torch

    from parity_tests.torch_gpt import GPT, GPTConfig

    torch.manual_seed(0)
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": length}
    sizes |= {"vocab_size": 65, "bias": False, "dropout": 0.0}
    model = GPT(GPTConfig(**sizes, double=True))
    torch.save({"model": model.state_dict(), "model_args": sizes}, path)


def measure(
    weights: str, length: int, batch: int, cores: int, rounds: int, only: list[str]
) -> dict[str, Timing]:
    """Returns the timings of each contender's calls."""
    here = "benchmarks.sigma_sampling:"
    shared = {"weights": weights, "length": length, "batch": batch, "cores": cores}
    contenders = {
        CACHED: (here + "torch_sampler", shared | {"burst": False}),
        BURST: (here + "torch_sampler", shared | {"burst": True}),
    }
    for name, sampling in OURS.items():
        dtype = "bfloat16" if name.endswith(BF16) else "float32"
        arguments = shared | {"sampling": sampling, "dtype": dtype}
        contenders[name] = (here + "jaxgpt_sampler", arguments)
    if only:
        contenders = {name: contenders[name] for name in only}
    heavy = length * batch > 4000  # The original's burst takes a minute.
    return alternate(
        contenders, rounds, 3 if heavy else 5, slow={BURST} if heavy else ()
    )


def print_runs(records: list[dict]) -> None:
    """Prints medians over runs as a table, least and most of them in brackets."""

    def spread(values: list[float], form: str) -> str:
        middle, least, most = statistics.median(values), min(values), max(values)
        return f"{middle:{form}} ({least:{form}} - {most:{form}})"

    names = [f"{row['case']}, batch {row['batch']}" for row in records[0]["rows"]]
    runs = [[row["seconds"] for row in record["rows"]] for record in records]
    print(f"medians of {len(runs)} runs, ms a batch")
    print(f"| | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
    for name in runs[0][0]:
        cells = []
        for case in zip(*runs, strict=True):
            cells.append(spread([1e3 * seconds[name] for seconds in case], ",.1f"))
            if name in OURS and CACHED in case[0]:
                times = [seconds[CACHED] / seconds[name] for seconds in case]
                cells[-1] += f", {spread(times, '.1f')} x"
        print(f"| {name} | {' | '.join(cells)} |")
    if {"exact-burst", BURST} <= runs[0][0].keys():
        ratios = [
            spread([seconds[BURST] / seconds["exact-burst"] for seconds in case], ".1f")
            for case in zip(*runs, strict=True)
        ]
        print(f"| exact-burst, times as fast as {BURST} | {' | '.join(ratios)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[CACHED, BURST, *OURS])
    parser.add_argument("--cores", type=int, default=1, help="of each contender")
    parser.add_argument("--record", type=pathlib.Path, help="a file of runs, to add to")
    args = parser.parse_args()
    print(machine())
    rows = []
    for case in args.case:
        length = CASES[case]
        with tempfile.TemporaryDirectory() as folder:
            weights = str(GOLDEN)
            if case == "random-256":
                weights = f"{folder}/random.pt"
                fresh_weights(weights, length)
            for batch in args.batch:
                timings = measure(
                    weights, length, batch, args.cores, args.rounds, args.only
                )
                found = {
                    name: timing.cpu if args.cores == 1 else timing.wall
                    for name, timing in timings.items()
                }
                seconds = {name: statistics.median(t) for name, t in found.items()}
                print(f"{case}, batch {batch}: milliseconds, least and most, times")
                for name, times in found.items():
                    ratios = "".join(
                        f"{seconds[rival] / seconds[name]:7.2f} x {rival}"
                        for rival in (CACHED, BURST)
                        if name in OURS and rival in seconds
                    )
                    least, most = min(times), max(times)
                    print(
                        f"  {name:24} {1e3 * seconds[name]:9.1f} "
                        f"({1e3 * least:.1f} - {1e3 * most:.1f}) {ratios}",
                        flush=True,
                    )
                rows.append({"case": case, "batch": batch, "seconds": seconds})
    record = json.dumps({"machine": machine(), "rows": rows})
    if args.record:
        with open(args.record, "a") as stream:
            print(record, file=stream)
        print_runs([json.loads(line) for line in args.record.read_text().splitlines()])
    print(record)


if __name__ == "__main__":
    main()
