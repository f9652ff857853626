"""Exact likelihood of a graph's sequences, and what simple models reach on them.

Also the exact distribution of every next token, and of the latents given the tokens.

python -m jaxgpt.systems.gssm.entropy --config=configs/gssm.py:easy --json=-
python -m jaxgpt.systems.gssm.entropy --graph=G.json --kernels=K.npz --tokens=F.npy
python -m jaxgpt.systems.gssm.entropy --workdir=RUN --save_kernels=K.npz
"""

from __future__ import annotations

import argparse
import math

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import require
from jaxgpt.systems.gssm.config import require_gssm

# Config fields that --help shows.
COMMON = ("seed", "model.block_size", "gssm.graph", "gssm.graph_seed")


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    options, overrides = cli.split_overrides(argv)
    args = _parse(options)
    if args.graph:
        config = configs.override(configs.base(), {"gssm.graph": args.graph})
        config = configs.validate(configs.override(config, overrides))
    else:
        if args.config:
            config = configs.load(args.config, overrides)
        else:
            config = configs.load_frozen(configs.user_path(args.workdir))
            config = configs.validate(configs.override(config, overrides))
        require_gssm(config, args.config or args.workdir)
    outputs = {
        name: cli.output_path(name, path)
        for name in ("nll", "predictive", "beliefs", "save_kernels", "save_graph")
        if (path := getattr(args, name))
    }
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.systems.gssm.measure import measure

    figures = measure(args, config, outputs)
    if args.json:  # Which has no infinity, the cost of impossible tokens.
        cli.print_json({k: None if v == math.inf else v for k, v in figures.items()})
    else:
        for name, value in configs.flatten(figures).items():
            shown = f"{value:.6g}" if isinstance(value, float) else value
            print(f"{name.removeprefix('decomposition.'):>28}  {shown}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = cli.Parser(
        "jaxgpt.systems.gssm.entropy", __doc__, configs.options(), COMMON
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help=cli.CONFIG)
    what.add_argument(
        "--graph",
        help="JSON or YAML file with the nodes, also a config of the original's "
        "(FILE:KEY if it holds several); a shipped NAME; or a graph made by hand, such "
        "as parity:3",
    )
    what.add_argument("--workdir", help="folder of a run, whose graph it is")
    parser.add_argument(
        "--kernels",
        help=".npz with arrays table/NAME, [own old state of latents, parents as "
        "listed, new state]; default: gssm.kernels, or drawn from gssm.graph_seed",
    )
    parser.add_argument("--save_kernels", help="write the kernels to this .npz file")
    parser.add_argument(
        "--save_graph",
        help="write the nodes to this YAML file, which the original's newer version "
        "reads under gssm: too",
    )
    parser.add_argument(
        "--tokens",
        help=".npy of tokens [B, T], or an .h5 file that generate or the original "
        "wrote; default: fresh ones",
    )
    parser.add_argument(
        "--nll",
        help="write float64 nats [B, T - 1] to this .npy file: exact, bayes, or of a "
        "context graph without closed form bayes_estimate",
    )
    parser.add_argument(
        "--predictive",
        help="write the exact distributions of the next token, float64 [B, T - 1, V], "
        "to this .npy file",
    )
    parser.add_argument(
        "--beliefs",
        help="write each latent's distribution given the tokens so far, float64 "
        "[B, T, states] under its name, to this .npz file",
    )
    parser.add_argument(
        "--decompose",
        action="store_true",
        help="also the entropy rate, and the information of each latent's state on the "
        "next token",
    )
    parser.add_argument(
        "--dtype", default="float64", choices=["float32", "float64"], help="computed in"
    )
    parser.add_argument(
        "--num_sequences",
        type=int,
        default=256,
        help="fresh sequences, of model.block_size + 1 tokens (default 256)",
    )
    parser.add_json()
    args = parser.parse_args(argv)
    count, most = args.num_sequences, 1 << 24
    require(1 <= count <= most, "--num_sequences", f"in [1, {most}]", count)
    return args


if __name__ == "__main__":
    cli.main(command)
