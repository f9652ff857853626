"""teenyGPT's model against the equal PyTorch module, and what ALiBi costs.

    python -m benchmarks.teeny [--rounds=5] [--only=step|positions|generate]

4 layers, 8 heads, width 256, block 256: a training step of 8 windows, beside
scaled_dot_product_attention in eager PyTorch and under torch.compile; a step of each
position encoding; 512 new tokens after 128, cached, beside PyTorch's original way of
computing the last block of tokens again for each.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from benchmarks.alternate import alternate, machine
from benchmarks.train_step import jaxgpt_steps, torch_steps

L, H, D, T, VOCAB, B = 4, 8, 256, 256, 65, 8
PROMPT, NEW = 128, 512
# The original's: classic norms and SwiGLU as wide as the stream, its own head.
QUIRKS = {
    "positions": "alibi",
    "activation": "swiglu",
    "norm": "layer",
    "bias": True,
    "attention_bias": False,
    "final_norm": False,
    "tied_head": False,
    "feed_forward_width": D,
}


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (B, T + 1)).astype(np.int32)


def system_of(positions: str, dtype: str = "float32"):
    from jaxgpt import backend, config
    from jaxgpt.systems.registry import build_system

    backend.set_up_jax()
    model = {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T}
    model |= {"vocab_size": VOCAB} | QUIRKS | {"positions": positions, "dtype": dtype}
    changes = {f"model.{k}": v for k, v in model.items()}
    changes |= {"system": "causal", "batch_size": B, "optimizer.grad_clip": 0.0}
    return build_system(config.override(config.base(), changes))


def jaxgpt_step(positions: str, dtype: str = "float32"):
    return jaxgpt_steps(system_of(positions, dtype), tokens())


def torch_model():
    import torch

    from parity_tests.torch_teeny import Teeny

    torch.manual_seed(0)
    return Teeny(L, H, D, T, VOCAB)


def torch_step(compiled: bool = False, dtype: str = "float32"):
    import torch

    model = torch_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.99))
    loss_of = torch.compile(model.loss) if compiled else model.loss
    return torch_steps(model, optimizer, loss_of, tokens(), dtype, clip=0.0)


def jaxgpt_generate():
    from jaxgpt.sampling.state import SamplingParams

    system = system_of("alibi")
    import jax

    params = jax.jit(system.init)(jax.random.key(0))
    given = np.pad(tokens()[:1, :PROMPT], ((0, 0), (0, NEW)))
    known = np.arange(PROMPT + NEW)[None] < PROMPT
    key = jax.random.key(0)
    return lambda: system.sample(params, given, known, key, SamplingParams()).tokens_BT


def torch_generate():
    import torch

    model = torch_model().eval()
    given = torch.from_numpy(tokens()[:1, :PROMPT]).long()
    return lambda: model.generate(given, NEW).numpy()


def steps(rounds: int) -> dict[str, float]:
    alibi, half = {"positions": "alibi"}, {"dtype": "bfloat16"}
    return medians(
        {
            "torch, eager": ("torch_step", {}),
            "torch.compile": ("torch_step", {"compiled": True}),
            "jaxgpt": ("jaxgpt_step", alibi),
            "torch, bfloat16": ("torch_step", half),
            "jaxgpt, bfloat16": ("jaxgpt_step", alibi | half),
        },
        rounds,
    )


def position_steps(rounds: int) -> dict[str, float]:
    from jaxgpt.model.config import POSITIONS

    names = ["none", *(name for name in POSITIONS if name != "none")]
    contenders = {name: ("jaxgpt_step", {"positions": name}) for name in names}
    return medians(contenders, rounds)


def generations(rounds: int) -> dict[str, float]:
    return medians(
        {"torch, uncached": ("torch_generate", {}), "jaxgpt": ("jaxgpt_generate", {})},
        rounds,
        repeats=2,
    )


def medians(contenders: dict, rounds: int, repeats: int = 6) -> dict[str, float]:
    named = {
        name: (f"benchmarks.teeny:{target}", arguments)
        for name, (target, arguments) in contenders.items()
    }
    timings = alternate(named, rounds, repeats)
    return {name: timing.median for name, timing in timings.items()}


PARTS = {"step": steps, "positions": position_steps, "generate": generations}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(PARTS))
    args = parser.parse_args()
    print(machine())
    found = {}
    for part in [args.only] if args.only else PARTS:
        found[part] = PARTS[part](args.rounds)
        base = next(iter(found[part].values()))
        for name, seconds in found[part].items():
            print(f"{part:10} {name:20} {seconds:8.4f} s {base / seconds:7.3f}")
    print(json.dumps({"machine": machine(), "median_seconds": found}))


if __name__ == "__main__":
    main()
