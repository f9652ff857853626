"""A training step against the equal PyTorch model under torch.compile.

python -m benchmarks.train_step [--rounds=5] [--repeats=6] [--ablate]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json

import numpy as np

from benchmarks.alternate import alternate, machine

# layers, heads, width, block, batch
SIZES = {"medium": (6, 6, 384, 256, 8), "small": (4, 4, 128, 64, 12)}
VOCAB = 65


def tokens(size: str) -> np.ndarray:
    _, _, _, T, B = SIZES[size]
    return np.random.default_rng(0).integers(0, VOCAB, (B, T + 1)).astype(np.int32)


def without_piece(piece: str) -> None:
    """Puts plain JAX in the place of one piece of model/cpu.py."""
    import jax
    import jax.numpy as jnp

    from jaxgpt.model import attention, cpu
    from jaxgpt.model.config import ModelConfig

    def linear(x, w, dtype):
        accum = cpu.accumulator(dtype)
        return jnp.dot(x.astype(dtype), w.astype(dtype), preferred_element_type=accum)

    def layer_norm(x, scale, epsilon):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale

    def causal_attention(qkv, seed, n_head, dtype, dropout, slopes, mask):
        T, D = qkv.shape[1], qkv.shape[2] // 3
        q, k, v = attention.split_heads(qkv, n_head)
        c = ModelConfig(1, n_head, D, T, 1, dropout, dtype=dtype)
        mask = jnp.tril(jnp.ones((T, T), bool))
        k, v = k.astype(dtype), v.astype(dtype)
        y_BHTK, total_BHT = attention.attend(q, k, v, mask, c, seed)
        return attention.merge_heads(y_BHTK), total_BHT

    plain = {
        "keep_heap": lambda: None,
        "linear": linear,
        "layer_norm": layer_norm,
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "attention": causal_attention,
    }
    setattr(cpu, piece, plain[piece])


PIECES = ("keep_heap", "linear", "layer_norm", "gelu", "attention")


def jaxgpt_training(system, seed: int = 0):
    """Returns (step, params): step(index, batch) trains and returns the loss."""
    import jax

    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    optimizer = optimizers.make_optimizer(system.config)
    state = init_state(jax.jit(system.init)(jax.random.key(seed)), optimizer, ema=False)
    advance = make_step(system, optimizer)

    def step(index: int, batch: np.ndarray) -> float:
        nonlocal state
        state, metrics = advance(state, np.int32(index), batch)
        return float(metrics["loss"])

    return step, lambda: state["params"]


def jaxgpt_steps(system, batch: np.ndarray):
    """Returns a function that trains a system on this batch and returns the loss."""
    step, _ = jaxgpt_training(system)
    return functools.partial(step, 1000, batch)


def torch_training(model, optimizer, loss_of, dtype: str, clip: float):
    """Returns step(batch) of a PyTorch model; clip 0 clips no gradient."""
    import torch

    def step(batch: np.ndarray) -> float:
        ids = torch.from_numpy(batch).long()
        half = torch.autocast("cpu", torch.bfloat16)
        with half if dtype == "bfloat16" else contextlib.nullcontext():
            loss = loss_of(ids[:, :-1], ids[:, 1:])
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def torch_steps(model, optimizer, loss_of, batch: np.ndarray, dtype: str, clip: float):
    """Returns the same as `jaxgpt_steps` of a PyTorch model."""
    step = torch_training(model, optimizer, loss_of, dtype, clip)
    return functools.partial(step, batch)


def jaxgpt_step(size: str, dtype: str, without: str = ""):
    from jaxgpt import backend, config
    from jaxgpt.systems.registry import build_system

    if without:
        without_piece(without)
    backend.set_up_jax()
    L, H, D, T, B = SIZES[size]
    model = {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T, "dtype": dtype}
    changes = {f"model.{k}": v for k, v in (model | {"vocab_size": VOCAB}).items()}
    c = config.override(config.base(), changes | {"system": "causal", "batch_size": B})
    return jaxgpt_steps(build_system(c), tokens(size))


def torch_step(size: str, dtype: str):
    import torch

    from parity_tests.torch_gpt import GPT, GPTConfig

    L, H, D, T, _ = SIZES[size]
    torch.manual_seed(0)
    model = GPT(GPTConfig(L, H, D, T, VOCAB))
    optimizer = model.adamw(0.1, 1e-3, (0.9, 0.99))
    compiled = torch.compile(model.loss)
    return torch_steps(model, optimizer, compiled, tokens(size), dtype, clip=1.0)


def ablate(size: str, dtype: str, rounds: int, repeats: int) -> dict[str, float]:
    """Prints how much longer a step takes without each piece; returns the ratios."""
    target, arguments = (
        "benchmarks.train_step:jaxgpt_step",
        {"size": size, "dtype": dtype},
    )
    contenders = {"": (target, arguments)}
    contenders |= {p: (target, arguments | {"without": p}) for p in PIECES}
    timings = alternate(contenders, rounds, repeats)
    ratios = {p: min(timings[p].cpu) / min(timings[""].cpu) for p in PIECES}
    for piece, ratio in ratios.items():
        print(f"{size:8} {dtype:9} without {piece:18} {ratio:5.2f} x the CPU time")
    return ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument(
        "--ablate", action="store_true", help="time model/cpu.py's pieces"
    )
    args = parser.parse_args()
    print(machine())
    if args.ablate:
        rows = [
            {"size": size, "dtype": dtype}
            | {"without": ablate(size, dtype, args.rounds, args.repeats)}
            for size in args.sizes
            for dtype in ("float32", "bfloat16")
        ]
        print(json.dumps({"machine": machine(), "cpu_time_ratios": rows}))
        return
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
