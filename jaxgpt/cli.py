"""What all commands share: options, one-line errors and JSON; nothing of JAX."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jaxgpt.config import user_path
from jaxgpt.errors import CheckError, UserError
from jaxgpt.parallel import hardware


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line and no abbreviated options."""

    def __init__(self, module: str, description: str, **options: Any):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{message} (see {self.prog} --help)")

    def add_run(self) -> None:
        """Adds the options of commands that read a finished run."""
        self.add_argument("--workdir", required=True, help="folder of the run")
        self.add_argument(
            "--step",
            default="best",
            help="checkpoint: its step, 'last', or 'best' by validation loss (default)",
        )
        self.add_json()

    def add_json(self) -> None:
        """Adds --json."""
        self.add_argument(
            "--json",
            choices=["-"],
            help="print one JSON object as the last line of standard output",
        )

    def add_processes(self) -> None:
        """Adds the options that say which of several processes this one is."""
        group = self.add_argument_group(
            "several processes", "detected under Slurm and on TPU VMs"
        )
        group.add_argument("--coordinator", help="HOST:PORT where process 0 listens")
        group.add_argument(
            "--num_processes", type=int, help="of the run; 1 turns detection off"
        )
        group.add_argument("--process_id", type=int, help="of this process, from 0")


def main(command: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command and exits: 2 for wrong usage, 1 for a wrong result, 130 for ^C."""
    # The command imports JAX once it has parsed its arguments.
    hardware.set_environment()
    try:
        status = command(sys.argv[1:]) or 0
        sys.stdout.flush()
    except (UserError, CheckError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # The reader, `head` say, has enough: nothing to report.
        # Python flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def print_json(value: dict) -> None:
    """Prints a JSON object as one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def output_path(
    option: str, name: str, suffixes: tuple[str, ...] = ("",)
) -> pathlib.Path:
    """Returns the path of a file to write that an option names.

    Raises:
      UserError: where it is a folder, its folder is missing, or it ends in another way.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"--{option}='{name}' is a folder: name a file")
    if not path.parent.is_dir():
        raise UserError(f"--{option}='{name}': folder '{path.parent}' does not exist")
    if not name.lower().endswith(suffixes):
        raise UserError(f"--{option}='{name}' must end in {' or '.join(suffixes)}")
    return path
