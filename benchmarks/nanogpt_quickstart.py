"""The time to a validation loss: nanoGPT's CPU quickstart, in PyTorch and here.

    python -m benchmarks.nanogpt_quickstart [--seeds 0 1 2]
    python -m benchmarks.nanogpt_quickstart --only Muon --steps 600 --seeds 100

4 layers, 4 heads, width 128, block 64, batch 12, no dropout, Shakespeare's characters:
2,000 steps of AdamW in PyTorch (fused, the model under torch.compile) and here; and
Muon, whose cosine ends after fewer steps. How many is chosen with the second command,
on seed 100, which is none of those reported: a run is never cut short of its schedule.

All train on the same batches and take turns of 50 steps, each in its own process. After
each turn comes the loss of 256 fixed validation windows, which is not timed. Nothing
compiled is taken from a cache; the seconds of compilation are those of building the
model and of the first step, less a median step. The time to the loss is that of the
steps until PyTorch's last loss was first passed (where PyTorch does not run, the first
contender's).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.alternate import machine
from benchmarks.train_step import jaxgpt_training, torch_training

TURN, WINDOWS = 50, 256
QUICKSTART = {
    "system": "causal",
    "batch_size": 12,
    "model.n_layer": 4,
    "model.n_head": 4,
    "model.n_embd": 128,
    "model.block_size": 64,
    "model.vocab_size": 65,
    "steps": 2000,
    "optimizer.learning_rate": 1e-3,
    "optimizer.min_learning_rate": 1e-4,
    "optimizer.warmup_steps": 100,
    "optimizer.beta2": 0.99,
    "optimizer.weight_decay": 0.1,
    "optimizer.grad_clip": 1.0,
}
MUON = {"optimizer.name": "muon", "optimizer.learning_rate": 1e-2, "steps": 600}
CONTENDERS: dict[str, dict] = {
    "torch": {},
    "AdamW": {},
    "Muon": MUON,
    "Muon, RoPE": MUON
    | {"model.positions": "rope", "model.rope_theta": 100, "steps": 400},
}


@dataclasses.dataclass
class Turn:
    """Steps, each in seconds of wall and processor time, and the loss after them."""

    wall: list[float]
    cpu: list[float]
    loss: float


def config_of(changes: dict, seed: int):
    from jaxgpt import config

    return config.override(config.base(), QUICKSTART | changes | {"seed": seed})


def torch_contender(c):
    """Returns (step(index, batch), loss of windows)."""
    import jax
    import torch

    from jaxgpt.training.optimizers import learning_rate_schedule
    from parity_tests.torch_gpt import GPT, GPTConfig

    jax.config.update("jax_platforms", "cpu")  # Of the learning rates alone.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(c.seed)
    m, o = c.model, c.optimizer
    model = GPT(GPTConfig(m.n_layer, m.n_head, m.n_embd, m.block_size, m.vocab_size))
    betas = (o.beta1, o.beta2)
    optimizer = model.adamw(
        o.weight_decay,
        o.learning_rate,
        betas,
        fused=True,
    )
    rates = np.asarray(learning_rate_schedule(c)(np.arange(c.steps))).tolist()
    train = torch_training(
        model, optimizer, torch.compile(model.loss), m.dtype, o.grad_clip
    )

    def step(index: int, batch: np.ndarray) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rates[index]
        train(batch)

    @torch.no_grad()
    def loss(windows: np.ndarray) -> float:
        ids = torch.from_numpy(windows).long()
        return model.loss(ids[:, :-1], ids[:, 1:]).item()

    return step, loss


def jaxgpt_contender(c):
    """Returns the same as `torch_contender`."""
    import jax

    from jaxgpt.systems.registry import build_system

    system = build_system(c)
    step, params = jaxgpt_training(system, c.seed)
    score = jax.jit(system.nll)
    return step, lambda windows: float(score(params(), {"tokens": windows}).mean())


def turns(name: str, changes: dict, seed: int) -> Iterator[Turn]:
    """Trains a contender; the first turn is one step, and what comes before it."""
    import jax

    from jaxgpt import backend
    from jaxgpt.data.text import open_text

    c = config_of(changes, seed)
    if name == "torch":
        contender = torch_contender
    else:
        backend.set_up_jax()
        jax.config.update("jax_enable_compilation_cache", False)
        contender = jaxgpt_contender
    length = c.model.block_size + 1
    data = open_text(c, length)
    windows = data.eval_windows("val", length, WINDOWS)
    turn = Turn([], [], 0.0)
    if name == "torch":
        import torch._dynamo  # noqa: F401
    wall, cpu = time.perf_counter(), time.process_time()
    train, loss = contender(c)
    for index in range(c.steps):
        train(index, data.batch_at(seed, "train", index, c.batch_size, length))
        now = time.perf_counter(), time.process_time()
        turn.wall.append(now[0] - wall)
        turn.cpu.append(now[1] - cpu)
        if index == 0 or (index + 1) % TURN == 0:
            turn.loss = loss(windows)
            yield turn
            turn = Turn([], [], 0.0)
            now = time.perf_counter(), time.process_time()
        wall, cpu = now


def _begin(*arguments) -> Turn:
    global _turns
    _turns = turns(*arguments)
    return next(_turns)


def _go_on() -> Turn:
    return next(_turns)


@dataclasses.dataclass
class Race:
    """A finished run of one contender: seconds of each step, loss after each turn."""

    wall: list[float]
    cpu: list[float]
    losses: list[float]
    compilation: float

    def steps_to(self, loss: float) -> int | None:
        """Returns the steps after which this loss was first passed; None if never."""
        turns = [turn for turn, found in enumerate(self.losses, 1) if found <= loss]
        return turns[0] * TURN if turns else None


def race(chosen: dict[str, dict], seed: int) -> dict[str, Race]:
    """Trains all contenders with one seed, taking turns."""
    context = multiprocessing.get_context("spawn")
    pools = {name: context.Pool(1) for name in chosen}
    found: dict[str, list[Turn]] = {}
    for name, changes in chosen.items():
        found[name] = [pools[name].apply(_begin, (name, changes, seed))]
    count = {
        name: config_of(changes, seed).steps // TURN for name, changes in chosen.items()
    }
    for turn in range(max(count.values())):
        for name in chosen:
            if turn < count[name]:
                found[name].append(pools[name].apply(_go_on))
    for pool in pools.values():
        pool.terminate()
    return {name: _race(parts) for name, parts in found.items()}


def _race(parts: list[Turn]) -> Race:
    (first,), wall = parts[0].wall, [s for part in parts[1:] for s in part.wall]
    cpu = [s for part in parts[1:] for s in part.cpu]
    usual = statistics.median(wall)
    losses = [part.loss for part in parts[1:]]
    return Race([usual, *wall], [statistics.median(cpu), *cpu], losses, first - usual)


def figures(run: Race, goal: float) -> dict:
    """Returns what is printed of a run; seconds are NaN if it never passed the goal."""
    steps = run.steps_to(goal)
    wall, cpu = (
        sum(seconds[:steps]) if steps else math.nan for seconds in (run.wall, run.cpu)
    )
    return {
        "steps": len(run.wall),
        "step_ms": [1e3 * float(np.percentile(run.wall, p)) for p in (10, 50, 90)],
        "step_cpu_ms": 1e3 * statistics.median(run.cpu),
        "compilation_s": run.compilation,
        "losses": run.losses,
        "at_step": steps,
        "wall_s": wall,
        "cpu_s": cpu,
        "with_compiling_s": wall + run.compilation,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--steps", type=int, help="of all contenders")
    parser.add_argument("--rate", type=float, help="peak learning rate of all")
    args = parser.parse_args()
    given = {"steps": args.steps, "optimizer.learning_rate": args.rate}
    given = {key: value for key, value in given.items() if value}
    chosen = {name: CONTENDERS[name] | given for name in args.only}
    # Read by PyTorch's workers: compile as if for the first time; idle threads sleep.
    os.environ |= {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"}
    print(machine(), f"{len(os.sched_getaffinity(0))} allowed", flush=True)
    print(
        f"{'seed':4} {'contender':10} {'steps':>5} {'ms a step (10-90 %)':>21} "
        f"{'CPU ms':>7} {'compiling':>9} {'last loss':>9} {'at step':>7} "
        f"{'wall s':>14} {'CPU s':>14} {'with compiling':>14}"
    )
    rows = []
    for seed in args.seeds:
        found = race(chosen, seed)
        goal = next(iter(found.values())).losses[-1]
        base: dict[str, float] = {}
        for name, run in found.items():
            row = figures(run, goal)
            times = {key: row[key] for key in ("wall_s", "cpu_s", "with_compiling_s")}
            base = base or times
            row["ratios"] = {key: times[key] / base[key] for key in times}
            shown = [f"{times[key]:7.1f} {row['ratios'][key]:6.3f}" for key in times]
            low, middle, high = row["step_ms"]
            print(
                f"{seed:4} {name:10} {len(run.wall):5} "
                f"{middle:7.2f} ({low:.2f}-{high:.2f}) {row['step_cpu_ms']:7.2f} "
                f"{run.compilation:9.1f} {run.losses[-1]:9.4f} "
                f"{row['at_step'] or '-':>7} {' '.join(shown)}",
                flush=True,
            )
            rows.append({"seed": seed, "contender": name} | row)
    print(json.dumps({"machine": machine(), "races": rows}))


if __name__ == "__main__":
    main()
