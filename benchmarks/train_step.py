"""A training step against the equal PyTorch model under torch.compile.

python -m benchmarks.train_step [--rounds=5] [--repeats=6]
"""

from __future__ import annotations

import argparse
import contextlib
import json

import numpy as np

from benchmarks.alternate import alternate, machine

# layers, heads, width, block, batch
SIZES = {"medium": (6, 6, 384, 256, 8), "small": (4, 4, 128, 64, 12)}
VOCAB = 65


def tokens(size: str) -> np.ndarray:
    _, _, _, T, B = SIZES[size]
    return np.random.default_rng(0).integers(0, VOCAB, (B, T + 1)).astype(np.int32)


def jaxgpt_step(size: str, dtype: str):
    from jaxgpt import cli, config, optim, systems
    from jaxgpt.step import make_step

    cli.set_up_jax()
    import jax

    L, H, D, T, B = SIZES[size]
    model = {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T, "dtype": dtype}
    changes = {f"model.{k}": v for k, v in (model | {"vocab_size": VOCAB}).items()}
    c = config.override(config.base(), changes | {"system": "causal", "batch_size": B})
    system = systems.make(c)
    optimizer = optim.make(c)
    params = jax.jit(system.init)(jax.random.key(0))
    state = [params, jax.jit(optimizer.init)(params)]
    advance = make_step(system, optimizer)
    batch = tokens(size)

    def work():
        *state[:], metrics = advance(*state, np.int32(1000), batch)
        return float(metrics["loss"])

    return work


def torch_step(size: str, dtype: str):
    import torch

    from parity_tests.torch_gpt import GPT, GPTConfig

    L, H, D, T, _ = SIZES[size]
    torch.manual_seed(0)
    model = GPT(GPTConfig(L, H, D, T, VOCAB))
    optimizer = model.adamw(0.1, 1e-3, (0.9, 0.99))
    compiled = torch.compile(model.loss)
    batch = torch.from_numpy(tokens(size)).long()

    def work():
        half = torch.autocast("cpu", torch.bfloat16)
        with half if dtype == "bfloat16" else contextlib.nullcontext():
            loss = compiled(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return work


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    args = parser.parse_args()
    print(machine())
    print(f"{'size':8} {'dtype':9} {'torch.compile':>15} {'jaxgpt':>15} {'ratio':>7}")
    rows = []
    for size in args.sizes:
        _, _, _, T, B = SIZES[size]
        for dtype in ("float32", "bfloat16"):
            arguments = {"size": size, "dtype": dtype}
            timings = alternate(
                {
                    "torch": ("benchmarks.train_step:torch_step", arguments),
                    "jaxgpt": ("benchmarks.train_step:jaxgpt_step", arguments),
                },
                args.rounds,
                args.repeats,
            )
            speed = {name: B * T / timing.median for name, timing in timings.items()}
            ratio = speed["jaxgpt"] / speed["torch"]
            print(
                f"{size:8} {dtype:9} {speed['torch']:9,.0f} tok/s "
                f"{speed['jaxgpt']:9,.0f} tok/s {ratio:7.2f}",
                flush=True,
            )
            rows.append(arguments | speed | {"ratio": ratio})
    print(json.dumps({"machine": machine(), "tokens_per_second": rows}))


if __name__ == "__main__":
    main()
