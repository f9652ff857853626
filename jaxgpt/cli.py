"""What all commands share, without JAX: options, overrides, one-line errors, JSON."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import gc
import io
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

from jaxgpt import config as configs
from jaxgpt.config import user_path
from jaxgpt.errors import (
    CheckError,
    UserError,
    keep_interrupt,
    log,
    os_errors,
    shorten,
)
from jaxgpt.parallel import hardware

# Help of --config.
CONFIG = "NAME of a shipped config, or FILE.py; either with :VARIANT"
PATHS = {"workdir", "source", "source_config", "tokenizer", "output", "input", "memory"}


def program(module: str) -> str:
    """Returns how to run a command, in the way this one was started."""
    script = pathlib.Path(sys.argv[0]).stem == "jaxgpt"
    return module.replace(".", " ", 1) if script else f"python -m {module}"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviated options, and two lengths of help.

    --help lists the command's options and its `common` config fields; --helpfull adds
    the options in `rare` groups and all other fields.
    """

    def __init__(
        self,
        module: str,
        description: str | None,
        fields: Collection[str] = (),
        common: Collection[str] = (),
    ):
        super().__init__(
            prog=program(module),
            description=description,
            add_help=False,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )
        self.fields, self.common = fields, common
        self.rare: list[Any] = []
        self.register("type", int, integer)
        self.register("type", float, number)
        self.register("type", None, _not_empty)
        self.add_argument("-h", "--help", action=_Help, help="this text")
        more = "and every config field" if fields else "the same"
        self.add_argument("--helpfull", action=_Help, help=f"this text, {more}")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse takes --option=-- for an option without a value.
        if action.option_strings and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)  # type: ignore[misc]

    def format_help(self, full: bool = False) -> str:
        """Returns the text of --help, or of --helpfull."""
        formatter = self._get_formatter()
        needed = [action for action in self._actions if action.required]
        words = [
            f"{action.option_strings[0]}=..."
            if action.option_strings
            else action.dest.upper()
            for action in needed
        ]
        formatter.add_usage(" ".join(["%(prog)s", *words, "[options]"]), [], [])
        formatter.add_text(self.description)
        for group in self._action_groups:
            if full or group not in self.rare:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        shown = self.fields if full else self.common
        if shown:
            formatter.add_text(describe_fields(shown))
        hidden = len(self.fields) - len(shown)
        if hidden:
            parts = [f"{hidden} {'more ' if shown else ''}config fields"]
            parts += [f"the options {group.title}" for group in self.rare]
            formatter.add_text(f"--helpfull lists {', and '.join(parts)}.")
        return formatter.format_help()

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """Reads a command line; UserError also for a URL in place of a path."""
        found = super().parse_args(args, namespace)
        for name in PATHS & vars(found).keys():
            user_path(getattr(found, name) or "")
        return found

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{shorten(message, 300)} (see {self.prog} --help)")

    def add_run(self) -> None:
        """Adds the options of commands that read a finished run."""
        self.add_argument("--workdir", required=True, help="folder of the run")
        self.add_step()
        self.add_json()

    def add_step(self) -> None:
        """Adds --step."""
        self.add_argument(
            "--step",
            default="best",
            help="checkpoint: its step, 'last', or 'best' by validation loss (default)",
        )

    def add_json(self) -> None:
        """Adds --json."""
        self.add_argument(
            "--json",
            choices=["-"],
            help="print one JSON object as the last line of standard output",
        )

    def add_processes(self) -> None:
        """Adds the options that tell this process its place among several."""
        group = self.add_argument_group(
            "several processes", "detected under Slurm and on TPU VMs"
        )
        group.add_argument("--coordinator", help="HOST:PORT where process 0 listens")
        group.add_argument(
            "--num_processes", type=int, help="of the run; 1 turns detection off"
        )
        group.add_argument("--process_id", type=int, help="of this process, from 0")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows the value of an option as N or X if it is a number."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        known: dict[Any, str] = {int: "N", float: "X"}
        return known.get(action.type, action.dest.upper())


class _Help(argparse.Action):
    """Prints the help and exits."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        print(parser.format_help(full=option_string == "--helpfull"), end="")
        parser.exit()


def integer(text: str) -> int:
    """Reads an integer of at most 40 characters; ValueError for anything else."""
    if len(text) > 40:  # Python itself reads no more than thousands of digits.
        raise ValueError
    return int(_ascii(text))


def number(text: str) -> float:
    """Reads a number, which may be inf or nan; ValueError for anything else."""
    return float(_ascii(text))


def _not_empty(text: str) -> str:
    # An unset shell variable would otherwise look like an option that was not given.
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _ascii(text: str) -> str:
    # Python also reads the digits of other scripts.
    if not text.isascii():
        raise ValueError
    return text


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes --config.a.b=value (or two words) out of a command line.

    Returns:
      (the other arguments, {"a.b": "value"}).
    """
    # Not arguments of argparse: the keys are dotted, and a wrong one deserves the most
    # similar key, which argparse does not suggest.
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        overrides[key] = value if equals else next(words, "")
    return rest, overrides


def after_training_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the overrides out of a command line that reads a finished run.

    Raises:
      UserError: for a field that only training can set.
    """
    rest, overrides = split_overrides(argv)
    allowed = configs.keys_that("after_training")
    for key in overrides:
        configs.check_key(key)
        if key not in allowed:
            raise UserError(
                f"--config.{key} is for training: --helpfull lists the fields that a "
                "finished run can change"
            )
    return rest, overrides


def read_fields(system: str) -> tuple[list[str], list[str]]:
    """Returns the keys a finished run may change, and those for runs of a system."""
    fields = configs.keys_that("after_training")
    return fields, [key for key in fields if key.startswith(f"{system}.")]


def describe_fields(keys: Collection[str]) -> str:
    """Returns the help of these fields."""
    lines = ["config fields, set with --config.NAME=VALUE (default):"]
    for key in keys:
        field = configs.options()[key]
        choices = f" [{'|'.join(field.choices)}]" if field.choices else ""
        lines += [f"  {key} ({field.default!r})", f"      {field.help}{choices}"]
    return "\n".join(lines)


def system_of_run(argv: list[str], overrides: Mapping[str, str]) -> str:
    """Returns the system of the run in --workdir, or its override; "" if unknown.

    Reads the command line before it is parsed, because --help depends on the system.
    """
    workdir = ""
    for word, following in itertools.pairwise([*argv, ""]):
        name, equals, value = word.partition("=")
        if name == "--workdir":
            workdir = value if equals else following
    try:
        return overrides.get("system") or configs.load_frozen(user_path(workdir)).system
    except UserError:
        return ""


def main(command: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command and exits: 2 for wrong usage, 1 for a wrong result, 130 for ^C."""
    # The command imports JAX once it has parsed its arguments.
    hardware.set_environment()
    # Imports and traces make many objects that stay: with Python's threshold of 700 the
    # garbage collector makes them a tenth slower.
    gc.set_threshold(10_000)
    sys.unraisablehook = keep_interrupt
    _open_streams()
    end: Callable[[int], NoReturn] = sys.exit
    try:
        try:
            status = command(sys.argv[1:]) or 0
        except SystemExit as ended:  # --help has been printed.
            status = int(ended.code or 0)
        sys.stdout.flush()
    except (UserError, CheckError) as error:
        log(f"error: {error}")
        status = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # The reader, such as `head`, has closed the pipe.
        status = 1
    except KeyboardInterrupt:
        # Python's clean-up after it often crashes in XLA, if that was compiling.
        status, end = 130, os._exit
    if _escaped:
        log(
            f"note: standard output is in {sys.stdout.encoding}, which lacks some of "
            "these characters: they are escaped; PYTHONIOENCODING=utf-8 shows them"
        )
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, CheckError):
            # Python flushes both once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    end(status)


class _Output(io.TextIOWrapper):
    """Standard output that fails with a CheckError, not an OSError."""

    def write(self, text: str) -> int:
        with _write_errors():
            return super().write(text)

    def flush(self) -> None:
        with _write_errors():
            super().flush()


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # See `main`.
        raise
    except OSError as error:
        reason = f"standard output cannot be written: {error.strerror}"
        raise CheckError(reason) from None


def _open_streams() -> None:
    """Opens streams that the caller closed; escapes what stdout cannot encode."""
    for name, flags in (
        ("stdin", os.O_RDONLY),
        # For reading: printing fails, as to a closed file, rather than losing output.
        ("stdout", os.O_RDONLY),
        ("stderr", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            # Or the next file opened would get its descriptor, and its output.
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.open(os.devnull, flags), mode))  # noqa: SIM115
    codecs.register_error("jaxgpt.escape", _escape)
    stdout = sys.stdout
    if type(stdout) is io.TextIOWrapper:
        encoding, buffered = stdout.encoding, stdout.line_buffering
        sys.stdout = _Output(
            stdout.detach(), encoding, "jaxgpt.escape", line_buffering=buffered
        )


# Characters of standard output that its encoding does not have.
_escaped: set[str] = set()


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escapes like "backslashreplace", and records that it was needed."""
    if isinstance(error, UnicodeEncodeError):
        _escaped.update(error.object[error.start : error.end])
    return codecs.backslashreplace_errors(error)


def print_json(value: dict) -> None:
    """Prints a JSON object as one line, in ASCII unless stdout is UTF-8."""
    utf8 = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    print(json.dumps(value, ensure_ascii=not utf8), flush=True)


def text_of(option: str, value: str | None) -> str | None:
    """Returns the text of an option: the value itself, or the content of @FILE.

    Raises:
      UserError: if there is no such file, or it is not UTF-8.
    """
    if not value or not value.startswith("@"):
        return value
    if value.startswith("@@"):
        return value[1:]
    what = f"--{option}='{value}'"
    with os_errors(what, "name a file, or write @@ for a text that begins with @"):
        content = user_path(value[1:]).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8: byte {error.start}") from None


def output_path(
    option: str, name: str, suffixes: tuple[str, ...] = ("",)
) -> pathlib.Path:
    """Returns the path of the file that an option says to write.

    Raises:
      UserError: if it is a folder, its folder is missing, or its suffix is wrong.
    """
    path = user_path(name)
    if path.is_dir():
        raise UserError(f"--{option}='{name}' is a folder: name a file")
    if not path.parent.is_dir():
        raise UserError(f"--{option}='{name}': folder '{path.parent}' does not exist")
    if not name.lower().endswith(suffixes):
        raise UserError(f"--{option}='{name}' must end in {' or '.join(suffixes)}")
    return path
