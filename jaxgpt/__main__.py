"""Lists the commands."""

from __future__ import annotations

import importlib

from jaxgpt import cli

COMMANDS = (
    *("train", "sample", "evaluate", "convert", "verify", "plan", "grid"),
    *("systems.gssm.generate", "systems.gssm.entropy"),
)


def command(argv: list[str]) -> None:
    """Prints each command and what it does."""
    cli.Parser("jaxgpt", __doc__).parse_args(argv)
    print("usage: python -m jaxgpt.COMMAND; each has --help\n")
    for name in COMMANDS:
        about = importlib.import_module(f"jaxgpt.{name}").__doc__ or ""
        print(f"{name:<22} {about.splitlines()[0]}")


if __name__ == "__main__":
    cli.main(command)
