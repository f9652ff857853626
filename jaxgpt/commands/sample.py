"""Generates from a run: text, or answers to the problems of a task."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from jaxgpt import backend, cli
from jaxgpt import config as configs
from jaxgpt.data import reading
from jaxgpt.errors import UserError, log
from jaxgpt.model import rng
from jaxgpt.run import Run, open_run
from jaxgpt.sampling import prompts
from jaxgpt.sampling.display import Screen
from jaxgpt.sampling.output import describe, split_continuations, to_text, until
from jaxgpt.sampling.state import Callback, SamplerOutput, SamplingParams
from jaxgpt.systems.registry import system_class
from jaxgpt.systems.sample_options import SampleSession, sample_options

# Of texts continued past the block, which a causal model can do.
LONGEST = 1 << 16
STOP_EVERY = 32  # Calls between looks for the stop text.


def execute(args: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Restores the run, generates and prints."""
    backend.set_up_jax()
    config = configs.load_frozen(configs.user_path(args.workdir))
    system_class(overrides.get("system", config.system)).check_order(args.order)
    run = open_run(args.workdir, args.step, overrides)
    if args.image and not run.system.is_task:
        raise UserError("--image is for runs of a task: this one writes text")
    if args.image and args.prompt_ids is not None:
        raise UserError("--image draws problems of a split: leave out --prompt_ids")
    if run.system.is_task and args.prompt_ids is None:
        _sample_task(run, args)
        return
    opened = (options.open(run.system, args) for options in sample_options())
    session = next(filter(None, opened), None)
    if session and (done := session.instead()):
        if args.json:
            cli.print_json(done[0])
        else:
            print(done[1])
    else:
        _sample_text(run, args, session)


def generate(
    run: Run,
    args: argparse.Namespace,
    tokens: np.ndarray,
    prompt_mask: np.ndarray,
    screen: Screen | None = None,
    session: SampleSession | None = None,
) -> SamplerOutput:
    """Returns `args.num_samples` fillings of a text [T], or of each of N texts [N, T].

    known is [T] or [N, T].
    """
    callback: Callback | None = None
    every = 1
    if screen:
        callback = screen.show
    elif args.stop:
        # Looking waits for the device, so not after every call.
        callback, every = (
            until(args.stop, int(prompt_mask.sum()), run.tokenizer),
            STOP_EVERY,
        )
    return (session or run.system).sample(
        run.params,
        np.broadcast_to(tokens, (args.num_samples, tokens.shape[-1])),
        np.broadcast_to(prompt_mask, (args.num_samples, prompt_mask.shape[-1])),
        rng.stream(args.seed, "sample"),
        SamplingParams(
            sampler=args.sampler,
            order=args.order,
            temperature=args.temperature,
            top_k=args.top_k or 0,
            top_p=args.top_p,
            num_orders=args.num_orders or 0,
            block_length=args.block_length or 0,
        ),
        callback,
        every,
    )


def _given(run: Run, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns (tokens [T] or [N, T], known [T], a note), at least one token known."""
    c, tokenizer, new = run.system.model_config, run.tokenizer, args.max_new_tokens
    longest = LONGEST if run.system.goes_past_block else c.block_size
    if args.split:
        tokens, prompt_mask = prompts.prompts_of_split(
            run.open_data(),
            args.split,
            args.num_samples,
            new,
            args.seed,
            c.block_size,
            longest,
        )
        return tokens, prompt_mask, ""
    special = args.special_tokens
    if args.template is not None:
        template = _normalized(args.template, run)
        tokens, prompt_mask = prompts.read_template(
            template, tokenizer, c.block_size, special
        )
    else:
        prompt = (
            prompts.encode(_normalized(args.prompt or "", run), tokenizer, special)
            if args.prompt_ids is None
            else prompts.parse_ids(args.prompt_ids, c.vocab_size)
        )
        capacity = run.system.cache_length(len(prompt))
        tokens, prompt_mask = prompts.continue_prompt(
            prompt, new, c.block_size, capacity, longest
        )
    if not len(tokens):
        raise UserError("nothing is given and nothing asked for: raise the length")
    if prompt_mask.any() or c.begin_token:
        return tokens, prompt_mask, ""
    tokens[0], prompt_mask[0] = prompts.start_token(tokenizer), True
    first = to_text(tokens[:1], tokenizer)
    note = f"note: this model cannot begin with nothing; its first token is {first!r}"
    return tokens, prompt_mask, note


def _normalized(text: str, run: Run) -> str:
    """Returns a prompt normalized like the text that the run was trained on."""
    how = run.config.data.normalize
    changed = reading.normalized(text, how)
    if changed != text:
        log(f"note: the text is changed as the run's data was (data.normalize={how})")
    return changed


def _sample_text(
    run: Run, args: argparse.Namespace, session: SampleSession | None
) -> None:
    """Generates texts and prints them."""
    tokens, prompt_mask, note = _given(run, args)
    began = time.perf_counter()
    if args.live and Screen.possible():
        with Screen(run.tokenizer, prompt_mask) as screen:
            filled = generate(run, args, tokens, prompt_mask, screen, session)
    else:
        filled = generate(run, args, tokens, prompt_mask, session=session)
    seconds = time.perf_counter() - began
    if note:
        log(note)
    given = int(prompt_mask.sum())
    samples = describe(filled, prompt_mask, run.tokenizer, args.stop)
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
    """Generates for problems of a split of a task; prints, judges and draws them."""
    if args.prompt is not None or args.template is not None or args.live:
        raise UserError(
            "this run does a task: --split says where its problems are from; --prompt, "
            "--template and --live are for texts"
        )
    if args.max_new_tokens is not None:
        raise UserError(
            "--max_new_tokens is for texts: a task asks for all it asks for"
        )
    image = cli.output_path("image", args.image, (".png",)) if args.image else None
    split = args.split or "val"
    system: Any = run.system
    tokens, prompt_mask, reference = system.problems(
        run.open_data(), split, args.num_samples, args.seed
    )
    args.num_samples = len(tokens)
    began = time.perf_counter()
    filled = generate(run, args, tokens, prompt_mask)
    seconds = time.perf_counter() - began
    task = system.task
    verdict = task.judge(filled.tokens_BT, reference, prompt_mask)
    if image:
        system.plot(image, filled.tokens_BT, reference, prompt_mask)
    samples = describe(filled, prompt_mask, run.tokenizer)
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
