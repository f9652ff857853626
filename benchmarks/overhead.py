"""What Python costs: the time to start a step, and to import and print help.

python -m benchmarks.overhead
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import numpy as np

from benchmarks.alternate import machine


def dispatch_milliseconds() -> float:
    """Returns the median time until a tiny model's step is under way."""
    from jaxgpt import backend, config
    from jaxgpt.systems.registry import build_system
    from jaxgpt.training import optimizers
    from jaxgpt.training.step import init_state, make_step

    backend.set_up_jax()
    import jax

    model = {"n_layer": 4, "n_head": 2, "n_embd": 32, "block_size": 16}
    changes = {f"model.{k}": v for k, v in (model | {"vocab_size": 65}).items()}
    c = config.override(config.base(), changes | {"batch_size": 2})
    system = build_system(c)
    optimizer = optimizers.make_optimizer(c)
    state = init_state(jax.jit(system.init)(jax.random.key(0)), optimizer, ema=False)
    advance = make_step(system, optimizer)
    tokens = np.zeros((2, system.window), np.int32)
    times = []
    for index in range(300):
        jax.block_until_ready(state)
        began = time.perf_counter()
        state, _ = advance(state, np.int32(index), tokens)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[50:])


def command_seconds(*arguments: str) -> float:
    """Returns the median wall time of a Python process."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main():
    print(machine())
    figures = {
        "step dispatch, ms": dispatch_milliseconds(),
        "import jaxgpt.train, s": command_seconds("-c", "import jaxgpt.train"),
        "train --help, s": command_seconds("-m", "jaxgpt.train", "--help"),
    }
    for name, value in figures.items():
        print(f"{name:24} {value:.2f}")
    print(json.dumps({"machine": machine()} | figures))


if __name__ == "__main__":
    main()
