"""Generate from a run: continue a prompt, fill the gaps of a template, do a task.

python -m jaxgpt.sample --workdir=runs/quickstart --prompt="ROMEO:" --live
python -m jaxgpt.sample --workdir=DIR --template="<missing:20>my lord.<missing:20>"
python -m jaxgpt.sample --workdir=DIR --input=F.jsonl --output=OUT.jsonl
python -m jaxgpt.sample --workdir=runs/sigma_task-maze-laptop --image=mazes.png
"""

from __future__ import annotations

import argparse
import contextlib
import importlib

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError
from jaxgpt.sampling.options import check_ranges
from jaxgpt.systems.diffusion.config import SAMPLERS as DIFFUSION_SAMPLERS
from jaxgpt.systems.memory.options import MemoryOptions
from jaxgpt.systems.sample_options import check_sampling
from jaxgpt.systems.sigma.config import SAMPLERS


def command(argv: list[str]) -> None:
    """Parses arguments and prints the samples."""
    argv, overrides = cli.after_training_overrides(argv)
    args = _parse(argv, cli.system_of_run(argv, overrides))
    config = configs.load_frozen(configs.user_path(args.workdir))
    check_sampling(overrides.get("system", config.system), args)
    with contextlib.ExitStack() as stack:
        screen = None
        if args.live:
            kind = importlib.import_module("jaxgpt.sampling.display").Screen
            screen = stack.enter_context(kind()) if kind.possible() else None
        # JAX takes seconds, which --help, wrong usage and the screen don't need.
        from jaxgpt.commands.sample import execute

        execute(args, config, overrides, screen)


def _parse(argv: list[str], system: str) -> argparse.Namespace:
    """Parses a command line; --help is for runs of this system."""
    parser = cli.Parser("jaxgpt.sample", __doc__, *cli.read_fields(system))
    parser.add_run()
    _add_start(parser)
    _add_sampling(parser)
    memory = MemoryOptions()
    group = parser.add_argument_group(memory.title)
    memory.add_to(group)
    if system != memory.system:
        parser.rare.append(group)
    args = parser.parse_args(argv)
    memory.check(args)
    args.sampler, args.order = args.sampler or "", args.order or ""
    for name in ("prompt", "template"):
        setattr(args, name, cli.text_of(name, getattr(args, name)))
    _check(args)
    return args


def _add_start(parser: cli.Parser) -> None:
    """Adds the options for what the texts begin with, and how long they are."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--prompt",
        type=str,
        help="text to continue; @FILE reads it from a file, @@ begins one with @",
    )
    start.add_argument("--prompt_ids", help="token ids to continue, like 3,1,4")
    start.add_argument(
        "--template",
        type=str,
        help="text with gaps written <missing:12>, or <missing:1-12> of unknown length "
        "(sigma.max_gap), or @FILE",
    )
    start.add_argument(
        "--input",
        help='a file with an object a line: {"prompt": ...} or {"template": ...}, and '
        "optionally max_new_tokens, seed and num_samples; needs --output",
    )
    start.add_argument(
        "--split",
        choices=["train", "val", "test"],
        help="continue texts of this split, half a block long; for a task, solve its "
        "problems (default val)",
    )
    parser.add_argument(
        "--special_tokens",
        action="store_true",
        help="read special tokens written out, like <|endoftext|>, as such",
    )
    parser.add_argument(
        "--output",
        help="with --input: a new file, with an object for each line: text, tokens, "
        "log_prob, num_forward_passes; the same command resumes",
    )
    parser.add_argument("--image", help="for a task: draw the samples into this PNG")
    parser.add_argument("--max_new_tokens", type=int, help="default: fill the block")


def _add_sampling(parser: cli.Parser) -> None:
    """Adds the options for how tokens are drawn, and where a text ends."""
    parser.add_argument(
        "--sampler",
        # No choices: a system may add its own samplers, and refuses all others.
        help=f"for σ-GPT: {', '.join(SAMPLERS)}, auto. ar: one token a call; "
        "exact-burst (σ-GPT's default): several tokens a call, with the distribution "
        "of ar; auto: the faster of these two, measured once. burst, the original's "
        "best of N orders, and unmasking are not exact. For masked "
        f"diffusion: {', '.join(DIFFUSION_SAMPLERS)}. ancestral (its default): one "
        "token a call, exact; the others are not",
    )
    parser.add_argument(
        "--order",
        help="random (σ-GPT's default), left-to-right, right-to-left, fractal, "
        "far-apart, block, low-entropy-first (with ar), or the missing positions, "
        "like 7,5,6",
    )
    parser.add_argument("--num_orders", type=int, help="for burst; default 5")
    parser.add_argument(
        "--tokens_per_pass", type=int, help="for unmasking; default 4, at most 16"
    )
    parser.add_argument(
        "--entropy_bound", type=float, help="in nats a pass; default 0.5"
    )
    parser.add_argument(
        "--num_steps",
        type=int,
        help="for ancestral: calls for each block; fewer than its tokens, the default, "
        "are not exact",
    )
    parser.add_argument("--block_length", type=int, help="for order block; default 16")
    parser.add_argument("--num_samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens that reach this probability",
    )
    parser.add_argument("--stop", type=str, default="", help="end the text after this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--live", action="store_true", help="watch the text fill, on a terminal"
    )


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for options that contradict each other or are out of range."""
    if (args.input is None) != (args.output is None):
        raise UserError("--input and --output need each other")
    if args.live and args.input is not None:
        raise UserError("--live shows one batch of texts: leave out --input")
    texts = args.prompt, args.template, args.input
    if args.special_tokens and all(text is None for text in texts):
        raise UserError("--special_tokens needs --prompt, --template or --input")
    if args.template is not None and args.max_new_tokens is not None:
        raise UserError(
            "--max_new_tokens is incompatible with --template: gaps set their lengths"
        )
    if args.stop and (args.template is not None or args.split):
        raise UserError(
            "--stop needs --prompt: templates and splits have fixed lengths"
        )
    check_ranges(vars(args))


if __name__ == "__main__":
    cli.main(command)
