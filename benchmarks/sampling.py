"""Generating 255 characters one by one: cached, uncached, and in eager PyTorch.

    python -m benchmarks.sampling [--batch=1]

σ-GPT, 4 layers, 4 heads, width 128, block 256, one given token, random order.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from benchmarks.alternate import alternate, machine

L, H, D, T, VOCAB = 4, 4, 128, 256, 65


def jaxgpt_sampler(batch: int, cached: bool):
    from jaxgpt import backend, config
    from jaxgpt.sampling.state import SamplingParams
    from jaxgpt.systems.registry import build_system

    backend.set_up_jax()
    import jax

    model = {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T}
    changes = {f"model.{k}": v for k, v in (model | {"vocab_size": VOCAB}).items()}
    system = build_system(config.override(config.base(), changes))
    params = jax.jit(system.init)(jax.random.key(0))
    tokens = np.zeros((batch, T), np.int32)
    known = np.arange(T) < np.ones((batch, 1))
    seeds = iter(range(1 << 30))

    def work():
        key = jax.random.key(next(seeds))
        sampling = SamplingParams("ar", cached=cached)
        return system.sample(params, tokens, known, key, sampling)

    return work


def torch_sampler(batch: int):
    import torch

    from parity_tests.torch_gpt import GPT, GPTConfig

    torch.manual_seed(0)
    model = GPT(GPTConfig(L, H, D, T, VOCAB, double=True)).eval()

    def work():
        order = torch.stack([torch.randperm(T) for _ in range(batch)])
        where = (order, order.roll(-1, 1))
        start = torch.zeros((batch, 1), dtype=torch.long)
        return model.generate(start, where, T).numpy()

    return work


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ours = "benchmarks.sampling:jaxgpt_sampler"
    batch = {"batch": args.batch}
    timings = alternate(
        {
            "jaxgpt, cached": (ours, batch | {"cached": True}),
            "jaxgpt, uncached": (ours, batch | {"cached": False}),
            "torch eager, cached": ("benchmarks.sampling:torch_sampler", batch),
        },
        args.rounds,
        repeats=4,
    )
    print(machine())
    base = timings["jaxgpt, cached"].median
    for name, timing in timings.items():
        speed = args.batch * (T - 1) / timing.median
        print(f"{name:20} {speed:9,.0f} tok/s {timing.median / base:7.1f} x the time")
    seconds = {name: timing.median for name, timing in timings.items()}
    print(json.dumps({"machine": machine(), "batch": args.batch, "seconds": seconds}))


if __name__ == "__main__":
    main()
