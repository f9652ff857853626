"""Runs a command: jaxgpt train --config=quickstart is python -m jaxgpt.train."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

import jaxgpt
from jaxgpt import cli
from jaxgpt.errors import UserError

COMMANDS = (
    *("train", "sample", "evaluate", "convert", "verify", "plan", "grid", "memory"),
    "playground",
    *("systems.gssm.generate", "systems.gssm.entropy", "systems.gssm.difficulty"),
    "systems.gssm.probe",
)


def command(argv: list[str]) -> int | None:
    """Runs the command named first; without one, lists them all."""
    name = argv[0] if argv else "--help"
    if name in COMMANDS:
        return _module(name).command(argv[1:])
    if not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)
        raise UserError(
            f"unknown command '{name}': did you mean '{near[0]}'? (--help lists them)"
        )
    parser = cli.Parser("jaxgpt", _described())
    version = f"jaxgpt {jaxgpt.__version__}"
    parser.add_argument("--version", action="version", version=version, help=version)
    parser.parse_args(argv)
    print(parser.format_help(), end="")
    return None


def _described() -> str:
    lines = ["jaxgpt COMMAND is python -m jaxgpt.COMMAND; each has --help:", ""]
    for name in COMMANDS:
        about = _module(name).__doc__ or ""
        lines.append(f"{name:<23} {about.splitlines()[0]}")
    return "\n".join(lines)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"jaxgpt.{name}")


def main() -> None:
    """Runs the console script jaxgpt."""
    cli.main(command)


if __name__ == "__main__":
    main()
