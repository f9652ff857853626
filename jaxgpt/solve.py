"""A task, solved: generated, judged and drawn."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from jaxgpt import cli
from jaxgpt.data.arrays import writable
from jaxgpt.errors import UserError, log
from jaxgpt.generation import describe, generate
from jaxgpt.systems.sigma.tasks import SigmaTask

if TYPE_CHECKING:
    from jaxgpt.run import Run


def solve(run: Run, args: argparse.Namespace) -> None:
    """Generates for problems of a split of a task; prints, judges and draws them."""
    system = run.system
    assert isinstance(system, SigmaTask)
    if args.prompt is not None or args.template is not None or args.live:
        raise UserError(
            "this run does a task: --split says where its problems are from; --prompt, "
            "--template and --live are for texts"
        )
    if args.max_new_tokens is not None:
        raise UserError(
            "--max_new_tokens is for texts: a task asks for all it asks for"
        )
    image = writable("image", args.image, ".png") if args.image else None
    split = args.split or "val"
    tokens, known, reference = system.problems(
        run.open_data(), split, args.num_samples, args.seed
    )
    args.num_samples = len(tokens)
    began = time.perf_counter()
    filled = generate(run, args, tokens, known)
    seconds = time.perf_counter() - began
    task = system.task
    verdict = task.judge(filled.tokens_BT, reference, known)
    if image:
        system.draw(image, filled.tokens_BT, reference, known)
    samples = describe(run, filled, known, "")
    for row, sample in enumerate(samples):
        sample["text"] = task.text(filled.tokens_BT[row])
        sample |= {name: float(values[row]) for name, values in verdict.items()}
    if args.json:
        cli.print_json({"samples": samples, "seconds": seconds})
        return
    for sample in samples:
        print(sample["text"])
        figures = ", ".join(f"{name} {sample[name]:.4g}" for name in verdict)
        print(f"--- {figures}; {sample['model_calls']} model calls")
    means = ", ".join(f"{name} {values.mean():.4g}" for name, values in verdict.items())
    log(
        f"{len(samples)} of {split}: {means}; {(~known).sum(1).mean():.4g} tokens in "
        f"{filled.calls_B.mean():.4g} model calls on average, {seconds:.2f} s, "
        "compilation included"
    )
