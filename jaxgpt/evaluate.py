"""Loss over a split, or the score of given tokens.

python -m jaxgpt.evaluate --workdir=runs/sigma_char --split=val --json=-
python -m jaxgpt.evaluate --workdir=DIR --tokens=F.npy --order=O.npy --json=-
python -m jaxgpt.evaluate --workdir=DIR --num_orders=16 --infill=0.15,0.5,0.85
python -m jaxgpt.evaluate --workdir=DIR --orders=random,left-to-right,fractal
python -m jaxgpt.evaluate --workdir=DIR --template="To be, [[or not]] to be"
python -m jaxgpt.evaluate --workdir=DIR --judge=RUN --num_samples=256
python -m jaxgpt.evaluate --workdir=DIR --memory=notes.memory --document=F.txt
python -m jaxgpt.evaluate --workdir=runs/gssm-easy --split=test --num_sequences=4096
"""

from __future__ import annotations

import argparse

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, require
from jaxgpt.sampling.options import check_ranges
from jaxgpt.systems.memory.options import add_allow_other_model
from jaxgpt.systems.registry import ANY_ORDER, LEFT_TO_RIGHT, MASKED
from jaxgpt.systems.sigma.config import ORDERS

# Each of these measures something other than the loss of a split.
MODES = ("tokens", "template", "judge", "memory")
OF_A_SPLIT = (
    *("num_orders", "orders", "infill"),
    *("eval_lengths", "num_sequences", "positions"),
)
OF_A_MODE = {
    "tokens": ("order", "logits"),
    "judge": ("samples", "num_samples"),
    "memory": ("document", "tune", "allow_other_model"),
}
DEFAULT_LENGTHS = "1x,2x,4x,8x"


def _ratios(text: str) -> list[float]:
    try:
        ratios = [cli.number(word) for word in text.split(",")]
    except ValueError:
        ratios = [0.0]
    shares = all(0 < ratio < 1 for ratio in ratios)
    require(shares, "--infill", "shares in (0, 1), like 0.15,0.5", text)
    return ratios


def _check_system(system: str, args: argparse.Namespace) -> None:
    """Raises UserError for options that a system lacks, before the run is loaded.

    A system from outside the package refuses them once it is loaded.
    """
    for name in ("num_orders", "order", "orders", "tokens", "template", "infill"):
        if getattr(args, name) is not None and system in MASKED:
            raise UserError(
                f"--{name} needs the likelihood of each token, and masked diffusion "
                "has a bound for whole texts: leave it out"
            )
    if args.eval_lengths is not None and system in (*ANY_ORDER, *MASKED):
        raise UserError(
            "--eval_lengths is for causal models, which read past their block"
        )
    for name in ("num_orders", "order", "orders"):
        if getattr(args, name) is not None and system in LEFT_TO_RIGHT:
            raise UserError(f"--{name} is for σ-GPT: this model reads left to right")
    for name in ("num_sequences", "positions"):
        if getattr(args, name) is not None and system != "gssm":
            raise UserError(f"--{name} is for runs of a graph (system gssm)")


def _add_memory(parser: cli.Parser) -> argparse._ArgumentGroup:
    """Adds the options of a memory, which is only read."""
    group = parser.add_argument_group(
        "for runs with a memory, and for causal ones with --memory"
    )
    group.add_argument(
        "--memory",
        help="a file of jaxgpt.memory: the loss with its entries, and without; it is "
        "not changed",
    )
    group.add_argument(
        "--document", help="with --memory: a text file, instead of --split"
    )
    group.add_argument(
        "--tune",
        action="store_true",
        help="with a --memory of mode output: choose neighbours, temperature and "
        "weight on the validation split first",
    )
    add_allow_other_model(group)
    return group


def _add_split(parser: cli.Parser) -> None:
    """Adds what is measured on a split."""
    parser.add_argument(
        "--split", choices=["train", "val", "test"], help="to score (default val)"
    )
    parser.add_argument(
        "--num_sequences",
        type=int,
        help="for runs of a graph: sequences to sample and score (default: "
        "eval_sequences); the first of val are those of training, the rest are new",
    )
    parser.add_argument(
        "--positions",
        help="for runs of a graph: plot the losses and the KL by position into this "
        ".png file, and write them into a .csv file of the same name",
    )
    parser.add_argument("--tokens", help="score the token ids [B, T] in this .npy file")
    parser.add_argument(
        "--order", help="with --tokens: .npy [B, T], the order to read each row in"
    )
    parser.add_argument(
        "--eval_lengths",
        nargs="?",
        const=DEFAULT_LENGTHS,
        help="also the loss over longer texts than in training: lengths in tokens, or "
        f"in blocks, like 2x; without a value {DEFAULT_LENGTHS}",
    )
    parser.add_argument("--logits", help="with --tokens: write float32 logits here")
    parser.add_argument(
        "--num_orders",
        type=int,
        help="σ-GPT: also the likelihood over this many random orders of each window; "
        "with --template, orders of the marked tokens (default 16)",
    )
    parser.add_argument(
        "--orders",
        help=f"σ-GPT: also the loss in each of these orders: {', '.join(ORDERS)}",
    )


def _add_texts(parser: cli.Parser) -> None:
    """Adds what is measured on given and on generated texts."""
    parser.add_argument(
        "--template",
        help="score the [[marked]] spans of this text, given the rest; @FILE reads it, "
        '@F.jsonl a {"template": ...} from each line',
    )
    parser.add_argument(
        "--infill",
        help="also how well spans are filled that are these shares of a window: "
        "0.15,0.5",
    )
    parser.add_argument(
        "--judge",
        help="folder of another run: its loss on texts that this run generates, how "
        "varied they are, and the same for texts of the validation split",
    )
    parser.add_argument(
        "--num_samples", type=int, help="with --judge: texts to generate (default 256)"
    )
    parser.add_argument(
        "--samples", help="with --judge: texts that jaxgpt.sample --output has written"
    )


def _check(args: argparse.Namespace) -> None:
    """Raises UserError for options that exclude each other or are out of range."""
    given = [n for n in (*MODES, *OF_A_SPLIT) if getattr(args, n) is not None]
    if given and given[0] in MODES:
        mode, *others = given
        if mode == "template":  # Its marked tokens are read in several orders.
            others = [name for name in others if name != "num_orders"]
        if args.split and (mode != "memory" or args.document):
            others.append("split")
            mode = "document" if mode == "memory" else mode
        if others:
            raise UserError(
                f"--{others[0]} is incompatible with --{mode}: measure it without"
            )
    for mode, names in OF_A_MODE.items():
        for name in names:
            if getattr(args, name) not in (None, False) and not getattr(args, mode):
                raise UserError(f"--{name} needs --{mode}")
    if args.samples and args.num_samples is not None:
        raise UserError(
            "--num_samples is incompatible with --samples, which has its own"
        )
    if (count := args.num_sequences) is not None:
        require(count >= 1, "--num_sequences", ">= 1", count)
        require(count <= 1 << 24, "--num_sequences", f"<= {1 << 24}", count)
    check_ranges({"num_orders": args.num_orders, "num_samples": args.num_samples})
    args.split = args.split or "val"


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    argv, overrides = cli.after_training_overrides(argv)
    system = cli.system_of_run(argv, overrides)
    parser = cli.Parser("jaxgpt.evaluate", __doc__, *cli.read_fields(system))
    parser.add_run()
    _add_split(parser)
    _add_texts(parser)
    group = _add_memory(parser)
    if system not in ("memory", "causal"):
        parser.rare.append(group)
    args = parser.parse_args(argv)
    _check(args)
    ratios = _ratios(args.infill) if args.infill else []
    orders = args.orders.split(",") if args.orders else []
    for name in orders:
        require(name in ORDERS, "--orders", f"among {', '.join(ORDERS)}", name)
    config = configs.load_frozen(configs.user_path(args.workdir))
    _check_system(overrides.get("system", config.system), args)
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.evaluate import execute

    execute(args, config, ratios, orders, overrides)


if __name__ == "__main__":
    cli.main(command)
