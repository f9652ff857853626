"""Generating text with σ-GPT: our samplers against the original's, on equal weights.

    python -m benchmarks.sigma_sampling [--case=char-64 ...] [--batch 1 32] [--only ...]

The contenders load the same .pt file: `char-64` is the original's trained character
model of 64 tokens (parity_tests/golden), `random-256` one of 256 with fresh weights.
One token is given. The original's algorithms run in eager PyTorch (torch_sigma.py), in
float32. Its burst takes most of the time: `--only` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile

import numpy as np

from benchmarks.alternate import Timing, alternate, machine

GOLDEN = pathlib.Path("parity_tests/golden/sigma/char_sigma_d128.pt")
CASES = {"char-64": 64, "random-256": 256}
CACHED, BURST = "original, cached", "original, burst"
OURS = {
    "ar": {"sampler": "ar"},
    "exact-burst": {"sampler": "exact-burst"},
    "exact-burst, far-apart": {"sampler": "exact-burst", "order": "far-apart"},
    "burst": {"sampler": "burst"},
}
BF16 = ", bfloat16"  # Of model.dtype; the others compute in float32.
OURS |= {name + BF16: OURS[name] for name in ("ar", "exact-burst")}


def jaxgpt_sampler(weights: str, length: int, batch: int, sampling: dict, dtype: str):
    from jaxgpt import backend
    from jaxgpt.sampling.state import SamplingParams
    from jaxgpt.systems.registry import build_system

    backend.set_up_jax()
    import jax

    from jaxgpt.interop import formats

    original = formats.read_original("sigma-gpt", weights)
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


def torch_sampler(weights: str, length: int, batch: int, burst: bool):
    import torch

    from benchmarks.torch_sigma import SigmaTwin

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
    weights: str, length: int, batch: int, rounds: int, only: list[str]
) -> dict[str, Timing]:
    """Returns the timings of each contender's calls."""
    here = "benchmarks.sigma_sampling:"
    shared = {"weights": weights, "length": length, "batch": batch}
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
    heavy = length * batch > 4000
    if heavy and BURST in contenders:
        rounds = 1
    return alternate(contenders, rounds, 2 if heavy else 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[CACHED, BURST, *OURS])
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
                timings = measure(weights, length, batch, args.rounds, args.only)
                seconds = {name: timing.median for name, timing in timings.items()}
                print(f"{case}, batch {batch}: milliseconds, least and most, times")
                for name, timing in timings.items():
                    ratios = "".join(
                        f"{seconds[rival] / timing.median:7.2f} x {rival}"
                        for rival in (CACHED, BURST)
                        if name in OURS and rival in seconds
                    )
                    least, most = min(timing.wall), max(timing.wall)
                    print(
                        f"  {name:24} {1e3 * timing.median:9.1f} "
                        f"({1e3 * least:.1f} - {1e3 * most:.1f}) {ratios}",
                        flush=True,
                    )
                rows.append({"case": case, "batch": batch, "seconds": seconds})
    print(json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
