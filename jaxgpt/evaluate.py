"""Loss over a split, or the score of given tokens.

python -m jaxgpt.evaluate --workdir=runs/sigma_char --split=val --json=-
python -m jaxgpt.evaluate --workdir=DIR --tokens=F.npy --order=O.npy --json=-
python -m jaxgpt.evaluate --workdir=DIR --num_orders=16 --infill=0.15,0.5,0.85
"""

from __future__ import annotations

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, require

DEFAULT_LENGTHS = "1x,2x,4x,8x"


def _ratios(text: str) -> list[float]:
    try:
        ratios = [float(word) for word in text.split(",")]
    except ValueError:
        ratios = [0.0]
    shares = all(0 < ratio < 1 for ratio in ratios)
    require(shares, "--infill", "shares in (0, 1), like 0.15,0.5", text)
    return ratios


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    argv, overrides = configs.after_training_overrides(argv)
    system = cli.system_of_run(argv, overrides)
    parser = cli.Parser("jaxgpt.evaluate", __doc__, *configs.read_fields(system))
    parser.add_run()
    parser.add_argument("--split", default="val", choices=["train", "val", "test"])
    parser.add_argument("--tokens", help=".npy of token ids [B, T] to score instead")
    parser.add_argument("--order", help=".npy [B, T]: the order to read each row in")
    parser.add_argument(
        "--eval_lengths",
        nargs="?",
        const=DEFAULT_LENGTHS,
        help="also the loss over longer texts than trained on: lengths in tokens, or "
        f"in blocks as 2x; without a value {DEFAULT_LENGTHS}",
    )
    parser.add_argument("--logits", help="with --tokens: write float32 logits here")
    parser.add_argument(
        "--num_orders",
        type=int,
        help="σ-GPT: also the likelihood over this many random orders of each window",
    )
    parser.add_argument(
        "--infill",
        help="also how well spans are filled, of these shares of a window: 0.15,0.5",
    )
    args = parser.parse_args(argv)
    of_split = args.num_orders is not None or args.infill or args.eval_lengths
    if args.tokens and of_split:
        raise UserError(
            "--num_orders, --infill and --eval_lengths are incompatible with --tokens: "
            "they need --split"
        )
    orders = args.num_orders
    require(orders is None or orders >= 1, "--num_orders", ">= 1", orders)
    ratios = _ratios(args.infill) if args.infill else []
    if (args.order or args.logits) and not args.tokens:
        raise UserError("--order and --logits need --tokens")
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.evaluate import execute

    execute(args, ratios, overrides)


if __name__ == "__main__":
    cli.main(command)
