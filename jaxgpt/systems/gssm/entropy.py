"""Exact likelihood of a graph's sequences, beside what simple models reach.

python -m jaxgpt.systems.gssm.entropy --config=configs/gssm_easy.py --json=-
python -m jaxgpt.systems.gssm.entropy --graph=G.json --kernels=K.npz --tokens=F.npy
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, log

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from jaxgpt.systems.gssm.source import Source


def measure(
    source: Source,
    config: ConfigDict,
    tokens_NT: np.ndarray | None,
    count: int,
    dtype: str,
) -> tuple[dict, np.ndarray]:
    """Returns the figures of given or fresh sequences, and their exact nll [N, T - 1].

    Args:
      source: of the sequences.
      config: whose seed, batch_size and model.block_size fresh sequences have.
      tokens_NT: integers; None draws fresh sequences.
      count: how many fresh ones.
      dtype: of the forward algorithm.
    """
    import math

    from jaxgpt.systems.gssm import baselines, likelihood

    c, V = config, source.vocab_size
    length = c.model.block_size + 1
    if tokens_NT is None:
        tokens_NT = source.held_out(c.seed, "val", count, c.batch_size, length)
        nll_NT = source.score_held_out(tokens_NT, c.seed, "val", c.batch_size, dtype)
    else:
        nll_NT = source.score(tokens_NT, dtype)
    N, T = tokens_NT.shape
    fit_NT = source.held_out(c.seed, "fit", max(N, (1 << 18) // T), c.batch_size, T)
    context = source.graph.has_context
    group = c.batch_size if context else 1
    figures: dict = {}
    for name, scores in (
        ("estimate" if context else "exact", nll_NT),
        ("unigram", baselines.unigram(fit_NT, tokens_NT, V)),
        ("bigram", baselines.bigram(fit_NT, tokens_NT, V)),
    ):
        mean = baselines.mean(scores, group)
        figures |= {name: mean.value, f"{name}_error": mean.error}
    raw = baselines.token_dtype(V)
    figures |= {
        "uniform": math.log(V),
        "zlib": float(baselines.zlib_nats(tokens_NT, V).mean()),
        "zlib_unit": f"nats per token, each sequence compressed as {raw}",
        "unit": "nats per token; errors are standard errors over sequences",
        "sequences": N,
        "predicted_tokens": nll_NT.size,
        "joint_states": likelihood.joint_states(source.graph),
        "first_token": source.first_token,
        "dtype": dtype,
    }
    return figures, nll_NT


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    options, overrides = configs.split_overrides(argv)
    args = _parse(options)
    if args.config:
        config = configs.load(args.config, overrides)
        if config.system != "gssm":
            raise UserError(f"'{args.config}' is of system {config.system}: not gssm")
    else:
        config = configs.override(configs.base(), {"gssm.graph": args.graph})
        config = configs.validate(configs.override(config, overrides))
    output = cli.output_path("nll", args.nll) if args.nll else None
    from jaxgpt.data.arrays import read_integers
    from jaxgpt.systems.gssm import graph, kernels
    from jaxgpt.systems.gssm import source as sources

    nodes = graph.load(config.gssm.graph)
    tables = kernels.read(nodes, args.kernels) if args.kernels else None
    tokens_NT = read_integers(args.tokens) if args.tokens else None
    cli.use_float64(args.dtype)
    cli.set_up_jax()
    if tokens_NT is not None:
        if tokens_NT.shape[1] < 2:
            raise UserError(f"'{args.tokens}' has rows of 1 token: none is predicted")
        if config.gssm.first_token == "start" and tokens_NT[:, 0].any():
            log(f"note: '{args.tokens}' begins with tokens drawn, not with state 0")
            config.gssm.first_token = "drawn"
    if tables is not None:
        source = sources.Source(nodes.known(), tables, config.gssm.first_token)
    else:
        source = sources.from_config(config)
    if tokens_NT is not None and source.graph.has_context:
        raise UserError(
            "the kernels of a context graph are drawn for every batch: give those of "
            f"'{args.tokens}' with --kernels"
        )
    figures, nll_NT = measure(source, config, tokens_NT, args.num_sequences, args.dtype)
    if output:
        import numpy as np

        try:
            with open(output, "wb") as stream:
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
    if args.num_sequences < 1:
        raise UserError(f"--num_sequences is at least 1: not {args.num_sequences}")
    return args


if __name__ == "__main__":
    cli.main(command)
