"""Write sequences of a graph as HDF5; the same command resumes.

python -m jaxgpt.systems.gssm.generate --config=configs/gssm_easy.py --output=F.h5
"""

from __future__ import annotations

import time

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError, log


def command(argv: list[str]) -> None:
    """Parses arguments and writes the file."""
    options, overrides = configs.split_overrides(argv)
    parser = cli.Parser(
        "jaxgpt.systems.gssm.generate", __doc__, epilog=configs.describe_fields()
    )
    parser.add_argument(
        "--config",
        required=True,
        help="configs/NAME.py[:variant]; sequences have model.block_size + 1 tokens, "
        "drawn batch_size at a time from seed, as in training",
    )
    parser.add_argument("--output", required=True, help="the HDF5 file to write")
    parser.add_argument("--num_sequences", type=int, default=10_000)
    parser.add_argument(
        "--chunk_size", type=int, default=1024, help="sequences written at a time"
    )
    parser.add_json()
    args = parser.parse_args(options)
    for name in ("num_sequences", "chunk_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is at least 1: not {getattr(args, name)}")
    output = cli.output_path("output", args.output)
    if output.exists():
        raise UserError(f"--output '{args.output}' exists: name a new file")
    config = configs.load(args.config, overrides)
    if config.system != "gssm":
        raise UserError(f"'{args.config}' is of system {config.system}: not gssm")
    from jaxgpt.systems.gssm import dataset, graph, source

    graph.load(config.gssm.graph)
    cli.set_up_jax()
    began = time.perf_counter()
    made = source.from_config(config)
    shape = (args.num_sequences, config.model.block_size + 1)
    try:
        dataset.write(output, config, made, shape, args.chunk_size)
    except KeyboardInterrupt:
        log("interrupted; the same command resumes")
        raise
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--output '{args.output}' cannot be written: {reason}"
        ) from None
    figures = {
        "output": args.output,
        "sequences": shape[0],
        "tokens": shape[0] * shape[1],
        "bytes": output.stat().st_size,
        "seconds": time.perf_counter() - began,
    }
    if args.json:
        cli.print_json(figures)
    else:
        print(", ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    cli.main(command)
