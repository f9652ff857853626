"""Write sequences of a graph to an HDF5 file.

python -m jaxgpt.systems.gssm.generate --config=configs/gssm.py:easy --output=F.h5
"""

from __future__ import annotations

from typing import Any

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, os_errors, require
from jaxgpt.systems.gssm.config import require_gssm

# Config fields that --help shows.
COMMON = ("seed", "batch_size", "model.block_size", "gssm.graph", "gssm.graph_seed")


def command(argv: list[str]) -> None:
    """Parses arguments and writes the file."""
    options, overrides = cli.split_overrides(argv)
    parser = cli.Parser(
        "jaxgpt.systems.gssm.generate", __doc__, configs.options(), COMMON
    )
    parser.add_argument(
        "--config",
        required=True,
        help=f"{cli.CONFIG}; sequences have model.block_size + 1 tokens, sampled "
        "batch_size at a time from seed, as in training",
    )
    parser.add_argument("--output", required=True, help="the HDF5 file to write")
    parser.add_argument("--num_sequences", type=int, default=10_000)
    parser.add_argument(
        "--chunk_size", type=int, default=1024, help="sequences written at a time"
    )
    parser.add_argument(
        "--latents",
        action="store_true",
        help="also write the latents' states, as latents/NAME",
    )
    parser.add_argument("--kernels", help="the same as --config.gssm.kernels")
    parser.add_json()
    args = parser.parse_args(options)
    for name in ("num_sequences", "chunk_size"):
        value = getattr(args, name)
        valid = 1 <= value <= configs.MAX_INT
        require(valid, f"--{name}", f"in [1, {configs.MAX_INT}]", value)
    output = cli.output_path("output", args.output)
    if output.exists():
        raise UserError(f"--output '{args.output}' exists: name a new file")
    if args.kernels:
        overrides["gssm.kernels"] = args.kernels
    config = configs.load(args.config, overrides)
    require_gssm(config, args.config)
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.systems.gssm.dataset import generate

    figures: dict[str, Any] = {"output": args.output}
    with os_errors(f"--output '{args.output}' cannot be written"):
        figures |= generate(
            config, output, args.num_sequences, args.chunk_size, args.latents
        )
    if args.json:
        cli.print_json(figures)
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    cli.main(command)
