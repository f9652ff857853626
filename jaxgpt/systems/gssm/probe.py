"""Linear probes: where a model of a graph knows its latents, layer by layer.

python -m jaxgpt.systems.gssm.probe --workdir=RUN --json=-
python -m jaxgpt.systems.gssm.probe --workdir=RUN --step=all --figure=F.png
"""

from __future__ import annotations

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import require
from jaxgpt.systems.gssm.config import require_gssm


def command(argv: list[str]) -> None:
    """Parses arguments and prints the figures."""
    parser = cli.Parser("jaxgpt.systems.gssm.probe", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument(
        "--step",
        default="best",
        help="checkpoint: its step, 'last', 'best' by validation loss (default), or "
        "'all' that there are",
    )
    parser.add_argument(
        "--num_sequences",
        type=int,
        default=512,
        help="sequences to fit the probes to, and as many others to score them on "
        "(default 512)",
    )
    parser.add_argument(
        "--figure",
        help="draw R^2 and accuracy by layer, and with several checkpoints by step, in "
        "this .png file; what it shows is written beside it as .json",
    )
    parser.add_json()
    args = parser.parse_args(argv)
    count, most = args.num_sequences, 1 << 20
    require(4 <= count <= most, "--num_sequences", f"in [4, {most}]", count)
    config = configs.load_frozen(configs.user_path(args.workdir))
    require_gssm(config, args.workdir)
    figure = args.figure and cli.output_path("figure", args.figure, (".png",))
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.probe import execute

    execute(args, figure)


if __name__ == "__main__":
    cli.main(command)
