"""Are a run's checkpoints what was saved? Exit code 1 if one is damaged.

python -m jaxgpt.verify --workdir=runs/sigma_char
"""

from __future__ import annotations

from jaxgpt import cli


def command(argv: list[str]) -> int:
    """Checks every digest of every checkpoint and prints a line per checkpoint."""
    parser = cli.Parser("jaxgpt.verify", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_json()
    args = parser.parse_args(argv)
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.verify import execute

    return execute(args)


if __name__ == "__main__":
    cli.main(command)
