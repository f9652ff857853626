"""Generating text with σ-GPT: our samplers against the original's, on equal weights.

    python -m benchmarks.sigma_sampling [--case=char-64 ...] [--batch 1 32]

The contenders load the same .pt file: `char-64` is the original's trained character
model of 64 tokens (parity_tests/golden), `random-256` one of 256 with fresh weights.
One token is given. The original's algorithms run in eager PyTorch (torch_sigma.py).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile

import numpy as np

from benchmarks.alternate import alternate, machine

GOLDEN = pathlib.Path("parity_tests/golden/sigma/char_sigma_d128.pt")
CASES = {"char-64": 64, "random-256": 256}
OURS = {
    "ar": {"sampler": "ar"},
    "exact-burst": {"sampler": "exact-burst"},
    "exact-burst, far-apart": {"sampler": "exact-burst", "order": "far-apart"},
    "burst": {"sampler": "burst"},
}
THEIRS = {"ar": "original, cached", "exact-burst": "original, burst"}


def jaxgpt_sampler(weights: str, length: int, batch: int, sampling: dict):
    from jaxgpt import backend
    from jaxgpt.sampling.state import SamplingParams
    from jaxgpt.systems.registry import build_system

    backend.set_up_jax()
    import jax

    from jaxgpt.interop import formats

    original = formats.read_original("sigma-gpt", weights)
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


def measure(weights: str, length: int, batch: int, rounds: int) -> dict[str, float]:
    """Returns the median seconds of one call of each contender."""
    here = "benchmarks.sigma_sampling:"
    shared = {"weights": weights, "length": length, "batch": batch}
    contenders = {
        "original, cached": (here + "torch_sampler", shared | {"burst": False}),
        "original, burst": (here + "torch_sampler", shared | {"burst": True}),
    }
    contenders |= {
        name: (here + "jaxgpt_sampler", shared | {"sampling": sampling})
        for name, sampling in OURS.items()
    }
    repeats = 2 if length * batch > 4000 else 5
    timings = alternate(contenders, rounds, repeats)
    return {name: timing.median for name, timing in timings.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
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
                heavy = length * batch > 4000
                seconds = measure(weights, length, batch, 1 if heavy else args.rounds)
                print(f"{case}, batch {batch}")
                for name, value in seconds.items():
                    ratio = ""
                    if name in OURS:
                        rival = THEIRS["ar" if name == "ar" else "exact-burst"]
                        ratio = f"{seconds[rival] / value:6.1f} times {rival}"
                    print(f"  {name:24} {1e3 * value:10.1f} ms {ratio}", flush=True)
                rows.append({"case": case, "batch": batch, "seconds": seconds})
    print(json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
