"""Generates from a run: texts, or answers to the problems of a task."""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import Any

from ml_collections import ConfigDict

from jaxgpt import backend, cli
from jaxgpt.commands import sample_lines
from jaxgpt.errors import UserError, log
from jaxgpt.inference import Run
from jaxgpt.run import open_run
from jaxgpt.sampling import prompts
from jaxgpt.sampling.display import Screen
from jaxgpt.sampling.options import SamplingOptions
from jaxgpt.sampling.output import split_continuations
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.memory.options import MemoryOptions, MemorySession
from jaxgpt.systems.reader import Given
from jaxgpt.systems.registry import system_class


def execute(
    args: argparse.Namespace,
    config: ConfigDict,
    overrides: dict[str, str],
    screen: Screen | None = None,
) -> None:
    """Restores the run, generates and prints; closes an open screen."""
    backend.set_up_jax()
    overrides = MemoryOptions().overrides(config, args) | overrides
    system_class(overrides.get("system", config.system)).check_order(args.order)
    run = open_run(args.workdir, args.step, overrides)
    if args.image and not run.system.is_task:
        raise UserError("--image is for runs of a task: this one writes text")
    if args.image and args.prompt_ids is not None:
        raise UserError("--image draws problems of a split: leave out --prompt_ids")
    if run.system.is_task and args.input is not None:
        raise UserError("--input is for runs of text: this one does a task")
    if run.system.is_task and args.prompt_ids is None:
        _sample_task(run, args)
        return
    session = MemoryOptions().open(run, args)
    with contextlib.ExitStack() as stack:
        if session:
            stack.callback(session.close)
        if session and (done := session.instead()):
            if screen:
                screen.close()
            if args.json:
                cli.print_json(done[0])
            else:
                print(done[1])
        elif args.input is None:
            _sample_text(run, args, session, screen)
        elif session:
            raise UserError(
                "--memory and --explain are for one text: leave out --input"
            )
        else:
            _warn_if_inexact(run, args)
            sample_lines.execute(run, args, _sampling(args))


def _sampling(args: argparse.Namespace) -> SamplingParams:
    """Returns the sampling options of the command line."""
    options: Any = {key: getattr(args, key) for key in SamplingOptions.__annotations__}
    return SamplingParams.of(options)


def _given(run: Run, args: argparse.Namespace) -> Given:
    """Returns what the texts begin with, or what is around their gaps."""
    if args.split:
        data, new = run.open_data(), args.max_new_tokens
        return run.reader.split(data, args.split, args.num_samples, new, args.seed)
    if args.template is not None:
        return run.reader.template(args.template, args.special_tokens)
    prompt = args.prompt or ""
    if args.prompt_ids is not None:
        vocab_size = run.system.model_config.vocab_size
        prompt = prompts.parse_ids(args.prompt_ids, vocab_size)
    return run.reader.prompt(prompt, args.max_new_tokens, args.special_tokens)


def _warn_if_inexact(run: Run, args: argparse.Namespace) -> None:
    if reason := run.system.inexact(_sampling(args)):
        log(f"note: {reason}, so the texts do not have the model's distribution")


def _sample_text(
    run: Run,
    args: argparse.Namespace,
    session: MemorySession | None,
    screen: Screen | None,
) -> None:
    """Generates texts and prints them."""
    start = _given(run, args)
    _warn_if_inexact(run, args)
    prompt_mask = start.known
    if screen:
        screen.tokenizer, screen.prompt_mask_T = run.tokenizer, prompt_mask
    began = time.perf_counter()
    filled = run.fill(
        start,
        _sampling(args),
        args.num_samples,
        args.seed,
        args.stop,
        screen.show if screen else None,
        session,
    )
    if screen:
        screen.close()
    seconds = time.perf_counter() - began
    given = int(prompt_mask.sum())
    found = run.read_output(filled, prompt_mask, args.stop)
    samples = [sample.to_json() for sample in found]
    if session:
        session.describe(samples, filled, given, run.tokenizer)
    if args.split:
        split_continuations(samples, given, run.tokenizer)
    if args.json:
        cli.print_json({"samples": samples, "seconds": seconds})
        return
    for index, sample in enumerate(samples):
        if args.split:
            print(f"--- prompt {index + 1}, from the {args.split} split")
            print(sample["prompt"])
            print(f"--- continuation {index + 1}")
            print(sample["continuation"])
            continue
        if index:
            print("-" * 40)
        print(sample["text"] if run.tokenizer else sample["tokens"])
        for line in session.show(sample) if session else []:
            print(line)
    made = int((filled.decoded_BT & ~prompt_mask).sum())
    calls = int(filled.num_forward_passes_B.max())
    log(f"{made} tokens in {calls} model calls, {seconds:.2f} s, compilation included")


def _sample_task(run: Run, args: argparse.Namespace) -> None:
    """Solves problems of a split of a task; judges, draws and prints the answers."""
    if args.prompt is not None or args.template is not None or args.live:
        raise UserError(
            "this run does a task: choose its problems with --split; --prompt, "
            "--template and --live are for texts"
        )
    if args.max_new_tokens is not None:
        raise UserError(
            "--max_new_tokens is for texts: the problems of a task set their length"
        )
    _warn_if_inexact(run, args)
    image = cli.output_path("image", args.image, (".png",)) if args.image else None
    split = args.split or "val"
    system: Any = run.system
    tokens, prompt_mask, reference = system.problems(
        run.open_data(), split, args.num_samples, args.seed
    )
    began = time.perf_counter()
    filled = run.fill(
        Given(tokens, prompt_mask), _sampling(args), len(tokens), args.seed
    )
    seconds = time.perf_counter() - began
    task = system.task
    verdict = task.judge(filled.tokens_BT, reference, prompt_mask)
    if image:
        system.plot(image, filled.tokens_BT, reference, prompt_mask)
    found = run.read_output(filled, prompt_mask)
    samples = [sample.to_json() for sample in found]
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
        f"{len(samples)} of {split}: {means}; "
        f"{(~prompt_mask).sum(1).mean():.4g} tokens in "
        f"{filled.num_forward_passes_B.mean():.4g} model calls on average, "
        f"{seconds:.2f} s, compilation included"
    )
