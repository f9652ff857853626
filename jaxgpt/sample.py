"""Generate from a run: continue a prompt, fill the gaps of a template, do a task.

python -m jaxgpt.sample --workdir=runs/sigma_char-laptop --prompt="ROMEO:" --live
python -m jaxgpt.sample --workdir=DIR --template="<missing:20>my lord.<missing:20>"
python -m jaxgpt.sample --workdir=runs/sigma_task-maze-laptop --image=mazes.png
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from typing import TYPE_CHECKING

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.config import MAX_SEED, UserError

if TYPE_CHECKING:
    import numpy as np

    from jaxgpt.live import Screen
    from jaxgpt.run import Run
    from jaxgpt.systems import Filled, Sampling, Watch
    from jaxgpt.systems.memory.session import Memory

STOP_EVERY = 32  # Calls between looks for the stop text: a look waits for the device.

# Of texts that go on past the block, which a causal model can.
LONGEST = 1 << 16
GAP = re.compile(r"<missing:(\d+)>")


def known_text(run: Run, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens [T], known [T]): what is given and where it stands.

    Raises:
      UserError: where it does not fit the block, or a character is unknown.
    """
    import numpy as np

    block = run.system.model_config.block_size
    if args.template is not None:
        tokens, known = _read_template(run, args.template, block)
    else:
        prompt = _prompt_ids(run, args)
        room = run.system.capacity(len(prompt)) - len(prompt)
        new = room if args.max_new_tokens is None else args.max_new_tokens
        if room < 0:
            raise UserError(
                f"the prompt has {len(prompt)} tokens: {block} fit the model"
            )
        total = len(prompt) + new
        longest = _longest(run)
        if total > longest:
            raise UserError(
                f"prompt and --max_new_tokens={new} make {total} tokens: "
                f"{longest} fit the model"
            )
        tokens = np.concatenate([prompt, np.zeros(new, np.int32)])
        known = np.arange(total) < len(prompt)
    if not len(tokens):
        raise UserError("nothing is given and nothing asked for: raise the length")
    return tokens, known


def _longest(run: Run) -> int:
    """Returns how many tokens a text may have."""
    if run.system.goes_past_block:
        return LONGEST
    return run.system.model_config.block_size


def _read_template(
    run: Run, template: str, block: int
) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if not template:
        raise UserError("--template is empty: write gaps as <missing:12>")
    tokens, known, total = [np.zeros(0, np.int32)], [np.zeros(0, bool)], 0
    for index, piece in enumerate(GAP.split(template)):
        gap = index % 2 == 1
        if gap and len(piece) > 12:
            raise UserError(f"a gap of {len(piece)} digits: {block} tokens fit")
        ids = None if gap else _encode(run, piece)
        length = int(piece) if ids is None else len(ids)
        total += length
        if total <= block:
            tokens.append(np.zeros(length, np.int32) if ids is None else ids)
            known.append(np.full(length, not gap))
    if total > block:
        raise UserError(f"the template makes {total} tokens: {block} fit the model")
    return np.concatenate(tokens), np.concatenate(known)


def _prompt_ids(run: Run, args: argparse.Namespace) -> np.ndarray:
    import numpy as np

    if args.prompt_ids is None:
        return _encode(run, args.prompt or "")
    try:
        ids = np.array([int(i) for i in args.prompt_ids.split(",") if i], np.int32)
    except (ValueError, OverflowError):
        raise UserError(
            f"--prompt_ids are like 3,1,4: not '{args.prompt_ids}'"
        ) from None
    size = run.system.model_config.vocab_size
    if ((ids < 0) | (ids >= size)).any():
        raise UserError(f"--prompt_ids are 0 .. {size - 1}: not '{args.prompt_ids}'")
    return ids


def _encode(run: Run, text: str) -> np.ndarray:
    import numpy as np

    if run.tokenizer is None and text:
        raise UserError("this run has no tokenizer: give --prompt_ids")
    return run.tokenizer.encode(text) if run.tokenizer else np.zeros(0, np.int32)


def _start_token(run: Run) -> int:
    """Returns the token that texts of this vocabulary best begin after."""
    from jaxgpt.data import tokenizer as tok

    if isinstance(run.tokenizer, tok.GPT2Tokenizer):
        return tok.END_OF_TEXT
    try:
        return int(_encode(run, "\n")[0])
    except UserError:  # There is no tokenizer, or it knows no newline.
        return 0


def _show(run: Run, tokens: np.ndarray) -> str:
    return run.tokenizer.decode(tokens) if run.tokenizer else str(tokens.tolist())


def _stop_at(run: Run, row: np.ndarray, given: int, stop: str) -> int:
    """Returns how many tokens to keep: those up to stop, sought after the prompt."""
    if not stop or stop not in _show(run, row[given:]):
        return len(row)
    for end in range(given + 1, len(row)):
        if stop in _show(run, row[given:end]):
            return end
    return len(row)


def _watch(
    run: Run, args: argparse.Namespace, given: int, screen: Screen | None
) -> tuple[Watch | None, int]:
    """Returns what looks on while a run generates, and how many calls it waits."""
    if screen:
        return screen.show, 1
    if not args.stop:
        return None, 1

    def unfinished(filled: Filled) -> bool:
        # Left to right, what is settled ends where the first gap begins.
        ends = [
            int(row.argmin()) if not row.all() else len(row)
            for row in filled.settled_BT
        ]
        rows = zip(filled.tokens_BT, ends, strict=True)
        return not all(args.stop in _show(run, row[given:end]) for row, end in rows)

    return unfinished, STOP_EVERY


def _how(args: argparse.Namespace) -> Sampling:
    from jaxgpt.systems import Sampling

    return Sampling(
        sampler=args.sampler,
        order=args.order,
        temperature=args.temperature,
        top_k=args.top_k or 0,
        top_p=args.top_p,
        num_orders=args.num_orders or 0,
        block_length=args.block_length or 0,
    )


def _open_memory(run: Run, args: argparse.Namespace) -> Memory | None:
    """Returns the memory of --memory, a new one for --explain, or none.

    Raises:
      UserError: where the run has none, or the file cannot be used.
    """
    if not (args.memory or args.explain):
        return None
    if run.config.system != "memory":
        raise UserError("--memory and --explain are for runs with a memory")
    from jaxgpt.systems.memory.session import Memory

    path = configs.user_path(args.memory) if args.memory else None
    if path and not path.parent.is_dir():
        raise UserError(f"--memory='{path}': there is no folder '{path.parent}'")
    if path and path.exists():
        return Memory.load(run.system, path)  # type: ignore[arg-type]
    if args.forget:
        raise UserError(f"--memory='{path}' does not exist: there is nothing to forget")
    return Memory(run.system, args.num_samples)  # type: ignore[arg-type]


def _forget(memory: Memory | None, args: argparse.Namespace) -> None:
    """Removes a document from the memory file, and says how many entries went."""
    assert memory is not None
    count = memory.forget(args.forget)
    memory.save(configs.user_path(args.memory))
    if args.json:
        cli.print_json({"forgotten": count, "left": memory.store.size()})
    else:
        print(f"{count} entries of '{args.forget}' forgotten")


def generate(
    run: Run,
    args: argparse.Namespace,
    tokens: np.ndarray,
    known: np.ndarray,
    screen: Screen | None = None,
    memory: Memory | None = None,
) -> Filled:
    """Returns `args.num_samples` fillings of a text [T], or of so many [N, T].

    known is [T] or [N, T].
    """
    import numpy as np

    from jaxgpt.core import random

    given = int(known.sum()) if known.ndim == 1 else 0
    watch, every = _watch(run, args, given, screen)
    return run.system.sample(
        run.params,
        np.broadcast_to(tokens, (args.num_samples, tokens.shape[-1])),
        np.broadcast_to(known, (args.num_samples, known.shape[-1])),
        random.stream(args.seed, "sample"),
        dataclasses.replace(_how(args), memory=memory, document=args.document),
        watch,
        every,
    )


def describe(run: Run, filled: Filled, known: np.ndarray, stop: str) -> list[dict]:
    """Returns the contract's JSON object of each sample; known is [T] or [N, T]."""
    import numpy as np

    samples = []
    known_BT = np.broadcast_to(known, filled.tokens_BT.shape)
    for row, tokens in enumerate(filled.tokens_BT):
        known, given = known_BT[row], int(known_BT[row].sum())
        end = _stop_at(run, tokens, given, stop)
        calls = int(filled.calls_B[row])
        made = int((filled.settled_BT[row] & ~known).sum())
        samples.append(
            {
                "text": run.tokenizer.decode(tokens[:end]) if run.tokenizer else None,
                "tokens": tokens[:end].tolist(),
                "model_calls": calls,
                "accepted_per_call": made / calls if calls else 0.0,
                "token_evaluations": int(filled.evaluations_B[row]),
                "log_probability": float(filled.log_p_BT[row, :end].sum()),
            }
        )
    return samples


def command(argv: list[str]) -> None:
    """Parses arguments and prints the samples."""
    argv, overrides = configs.memory_overrides(argv)
    args = _parse(argv)
    cli.set_up_jax()
    from jaxgpt import continuations
    from jaxgpt.live import Screen
    from jaxgpt.run import open_run

    run = open_run(args.workdir, args.step, overrides)
    if args.image and not run.system.judges:
        raise UserError("--image is for runs of a task: this one writes text")
    if args.image and args.prompt_ids is not None:
        raise UserError("--image draws problems of a split: leave out --prompt_ids")
    if run.system.judges and args.prompt_ids is None:
        solve(run, args)
        return
    memory = _open_memory(run, args)
    if args.forget:
        _forget(memory, args)
        return
    if args.split:
        tokens, known = continuations.prompts(
            run,
            args.split,
            args.num_samples,
            args.max_new_tokens,
            args.seed,
            _longest(run),
        )
    else:
        tokens, known = known_text(run, args)
    bare = not known.any() and not run.system.model_config.begin_token
    if bare:
        tokens[0], known[0] = _start_token(run), True
    began = time.perf_counter()
    live = args.live and Screen.possible()
    if live:
        with Screen(run.tokenizer, known) as screen:
            filled = generate(run, args, tokens, known, screen, memory)
    else:
        filled = generate(run, args, tokens, known, memory=memory)
    if memory and args.memory:
        memory.save(configs.user_path(args.memory))
    seconds = time.perf_counter() - began
    if bare:
        cli.say(
            f"note: this model cannot begin with nothing; its first token is "
            f"{_show(run, tokens[:1])!r}"
        )
    samples = describe(run, filled, known, args.stop)
    if args.explain:
        from jaxgpt.systems.memory import explain

        for row, sample in enumerate(samples):
            sample["memories"] = explain.used(
                memory, filled, row, int(known.sum()), run.tokenizer
            )
    if args.split:
        continuations.tell_apart(run, samples, int(known.sum()))
    if args.json:
        cli.print_json({"samples": samples, "seconds": seconds})
        return
    if args.split:
        continuations.show(samples, args.split)
    for index, sample in enumerate([] if args.split else samples):
        if index:
            print("-" * 40)
        print(sample["text"] if run.tokenizer else sample["tokens"])
        if args.explain:
            explain.show(sample["memories"])
    made = int((filled.settled_BT & ~known).sum())
    calls = int(filled.calls_B.max())
    cli.say(
        f"{made} tokens in {calls} model calls, {seconds:.2f} s, compilation included"
    )


def solve(run: Run, args: argparse.Namespace) -> None:
    """Generates for problems of a split of a task; prints, judges and draws them."""
    from jaxgpt.data.arrays import writable
    from jaxgpt.systems.sigma.tasks import SigmaTask

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
    cli.say(
        f"{len(samples)} of {split}: {means}; {(~known).sum(1).mean():.4g} tokens in "
        f"{filled.calls_B.mean():.4g} model calls on average, {seconds:.2f} s, "
        "compilation included"
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    fields = configs.describe_fields("memory.")
    parser = cli.Parser("jaxgpt.sample", __doc__, epilog=fields)
    parser.add_run()
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--prompt", help="text to continue")
    start.add_argument("--prompt_ids", help="token ids to continue, like 3,1,4")
    start.add_argument("--template", help="text with gaps written <missing:12>")
    start.add_argument(
        "--split",
        choices=["train", "val", "test"],
        help="continue texts of this split, half a block long; of a task, problems of "
        "it (default val)",
    )
    parser.add_argument("--image", help="of a task: draw the samples into this PNG")
    parser.add_argument("--max_new_tokens", type=int, help="default: fill the block")
    parser.add_argument(
        "--sampler",
        default="",
        choices=["ar", "burst", "exact-burst"],
        help="ar: one token a call; exact-burst (σ-GPT's default): several tokens a "
        "call, with the law of ar; burst: the original's best of N orders, biased",
    )
    parser.add_argument(
        "--order",
        default="",
        help="random (σ-GPT's default), left-to-right, fractal, far-apart, block, "
        "low-entropy-first (with ar), or the missing positions, like 7,5,6",
    )
    parser.add_argument("--num_orders", type=int, help="of burst; default 5")
    parser.add_argument("--block_length", type=int, help="of order block; default 16")
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that reach this probability",
    )
    parser.add_argument("--stop", default="", help="end the text after this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--live", action="store_true", help="watch the text fill, on a terminal"
    )
    parser.add_argument(
        "--memory",
        help="of runs with a memory: a file it is read from, if it is there, and "
        "written to",
    )
    parser.add_argument(
        "--document", default="", help="name of this text in the memory; default text N"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="of runs with a memory: what each token was predicted with",
    )
    parser.add_argument("--forget", help="remove this document from --memory, and end")
    args = parser.parse_args(argv)
    if args.forget and not args.memory:
        raise UserError("--forget goes with --memory, the file to forget it in")
    if args.memory and args.num_samples != 1:
        raise UserError("--memory goes with --num_samples=1: it reads one text")
    if args.document and not args.memory:
        raise UserError("--document names a text in --memory: add that")
    if args.template is not None and args.max_new_tokens is not None:
        raise UserError(
            "--max_new_tokens does not go with --template: gaps have lengths"
        )
    if args.stop and (args.template is not None or args.split):
        raise UserError("--stop goes with --prompt: templates and splits have lengths")
    for name, least in (
        ("max_new_tokens", 0),
        ("num_samples", 1),
        ("temperature", 0),
        ("top_k", 1),
        ("num_orders", 1),
        ("block_length", 1),
        ("seed", 0),
    ):
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name} is at least {least}: not {value}")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top_p is above 0 and at most 1: not {args.top_p}")
    if args.temperature == float("inf"):
        raise UserError("--temperature is a finite number: not inf")
    if args.seed > MAX_SEED:
        raise UserError(f"--seed is at most {MAX_SEED}: not {args.seed}")
    return args


if __name__ == "__main__":
    cli.main(command)
