"""Find a graph of a wanted floor, and of a wanted gap from there to a bigram model.

python -m jaxgpt.systems.gssm.difficulty --config=configs/gssm.py:easy --floor=1.0 \
    --bigram_gap=0.4 --output=G.yaml

The alphas of the latents are scaled together, that of the observed node by itself, for
one graph seed after another. Nothing is trained: floor and bigram are those of the
entropy command. The same command finds the same graph.
"""

from __future__ import annotations

import argparse

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, require
from jaxgpt.systems.gssm.config import require_gssm

# Config fields that --help shows.
COMMON = ("seed", "model.block_size", "gssm.graph", "gssm.graph_seed")
# The least value of options.
LEAST = {
    "floor": 0, "bigram_gap": 0, "tolerance": 1e-6, "num_sequences": 2, "tries": 1
}  # fmt: skip


def command(argv: list[str]) -> None:
    """Parses arguments, searches, and writes the graph."""
    options, overrides = cli.split_overrides(argv)
    args = _parse(options)
    config = configs.load(args.config, overrides)
    require_gssm(config, args.config)
    output = cli.output_path("output", args.output, (".yaml", ".json"))
    if output.exists():
        raise UserError(f"--output '{args.output}' exists: name a new file")
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.systems.gssm.search import find

    figures = find(args, config, output)
    if args.json:
        cli.print_json(figures)
        return
    for name, value in figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{name:>16}  {shown}")
    print(
        f"{cli.program('jaxgpt.train')} --config={args.config} --config.gssm.graph="
        f"{args.output} --config.gssm.graph_seed={figures['graph_seed']}"
    )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = cli.Parser(
        "jaxgpt.systems.gssm.difficulty", __doc__, configs.options(), COMMON
    )
    parser.add_argument(
        "--config",
        required=True,
        help=f"{cli.CONFIG}; the search begins with its graph, whose sequences have "
        "model.block_size + 1 tokens",
    )
    parser.add_argument("--floor", type=float, help="exact loss, nats per token")
    parser.add_argument(
        "--bigram_gap", type=float, help="loss of a bigram model above it"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.02, help="of either, in nats (0.02)"
    )
    parser.add_argument(
        "--nodes", help="whose alphas may change, separated by commas (all)"
    )
    parser.add_argument("--output", required=True, help="YAML file to write")
    parser.add_argument(
        "--num_sequences", type=int, default=256, help="that are scored (256)"
    )
    parser.add_argument(
        "--tries", type=int, default=1000, help="graphs tried, at most (1000)"
    )
    parser.add_json()
    args = parser.parse_args(argv)
    if args.floor is None and args.bigram_gap is None:
        raise UserError("pass --floor, --bigram_gap or both: what is searched for")
    for name, least in LEAST.items():
        value = getattr(args, name)
        valid = value is None or least <= value <= 1 << 24
        require(valid, f"--{name}", f"in [{least}, {1 << 24}]", value)
    return args


if __name__ == "__main__":
    cli.main(command)
