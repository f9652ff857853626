"""Exact likelihood of a graph's sequences, and what simple models reach on them.

python -m jaxgpt.systems.gssm.entropy --config=configs/gssm.py:easy --json=-
python -m jaxgpt.systems.gssm.entropy --graph=G.json --kernels=K.npz --tokens=F.npy
"""

from __future__ import annotations

import argparse

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, atomic_write, log, require


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    options, overrides = configs.split_overrides(argv)
    args = _parse(options)
    if args.config:
        config = configs.load(args.config, overrides)
        require(config.system == "gssm", f"system of '{args.config}'", "gssm",
                config.system)  # fmt: skip
    else:
        config = configs.override(configs.base(), {"gssm.graph": args.graph})
        config = configs.validate(configs.override(config, overrides))
    output = cli.output_path("nll", args.nll) if args.nll else None
    # Imported once the arguments are parsed, so that --help needs no JAX.
    import numpy as np

    from jaxgpt.data.arrays import read_integers
    from jaxgpt.systems.gssm.baselines import summary
    from jaxgpt.systems.gssm.graph import load_graph
    from jaxgpt.systems.gssm.kernels import read_tables
    from jaxgpt.systems.gssm.process import GraphProcess, make_process

    graph = load_graph(config.gssm.graph)
    tables = read_tables(graph, args.kernels) if args.kernels else None
    tokens_NT = read_integers(args.tokens) if args.tokens else None
    cli.use_float64(args.dtype)
    cli.set_up_jax()
    if tokens_NT is not None:
        if tokens_NT.shape[1] < 2:
            raise UserError(
                f"'{args.tokens}' has rows of 1 token: give 2 or more, since the first "
                "is not predicted"
            )
        if config.gssm.first_token == "start" and tokens_NT[:, 0].any():
            log(f"note: '{args.tokens}' does not start in state 0: first_token=drawn")
            config.gssm.first_token = "drawn"
    if tables is not None:
        process = GraphProcess(graph.known(), tables, config.gssm.first_token)
    else:
        process = make_process(config)
    if tokens_NT is not None and process.graph.has_context:
        raise UserError(
            "the kernels of a context graph are drawn for every batch: give those of "
            f"'{args.tokens}' with --kernels"
        )
    c = config
    if tokens_NT is None:
        count, length = args.num_sequences, c.model.block_size + 1
        tokens_NT = process.held_out(c.seed, "val", count, c.batch_size, length)
        nll_NT = process.score_held_out(
            tokens_NT, c.seed, "val", c.batch_size, args.dtype
        )
    else:
        nll_NT = process.score(tokens_NT, args.dtype)
    figures = summary(process, config, tokens_NT, nll_NT, args.dtype)
    if output:
        try:
            with atomic_write(output, "wb") as stream:
                np.save(stream, nll_NT)
        except OSError as error:
            raise UserError(f"--nll='{args.nll}': {error.strerror}") from None
    if args.json:
        cli.print_json(figures)
    else:
        for name, value in figures.items():
            shown = f"{value:.6g}" if isinstance(value, float) else value
            print(f"{name:>18}  {shown}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = cli.Parser(
        "jaxgpt.systems.gssm.entropy", __doc__, epilog=configs.describe_fields()
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="configs/NAME.py[:variant]")
    what.add_argument("--graph", help="JSON or YAML file with the nodes")
    parser.add_argument(
        "--kernels",
        help=".npz with arrays table/NAME, [own old state of latents, parents as "
        "listed, new state]; default: drawn from gssm.graph_seed",
    )
    parser.add_argument("--tokens", help=".npy of tokens [B, T]; default: fresh ones")
    parser.add_argument("--nll", help="write float64 nats [B, T - 1] to this .npy file")
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
    require(args.num_sequences >= 1, "--num_sequences", ">= 1", args.num_sequences)
    return args


if __name__ == "__main__":
    cli.main(command)
