"""What all commands do with their streams, however these are set up."""

import io
import json
import os
import subprocess
import sys

import pytest

from jaxgpt import cli
from jaxgpt.errors import UserError, log
from tests.conftest import ROOT

TEXT = "漢字 σ é\n"


@pytest.fixture
def ended(monkeypatch):
    """Runs a function as a command; returns its exit code and what it printed."""

    def ended(command, encoding="utf-8", out=None):
        out = out or io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        buffer = out.buffer
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "argv", ["command"])
            patch.setattr(sys, "unraisablehook", sys.unraisablehook)
            patch.setattr(cli, "_escaped", set())
            with pytest.raises(SystemExit) as caught:
                cli.main(command)
            printed = buffer.getvalue() if isinstance(buffer, io.BytesIO) else b""
        return caught.value.code, printed

    return ended


@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("ascii", rb"\u6f22\u5b57 \u03c3 \xe9"),
        ("cp1252", b"\\u6f22\\u5b57 \\u03c3 \xe9"),
        ("gb2312", b"\\u6f22" + "字 σ é".encode("gb2312")),  # No 漢 in it.
    ],
)
def test_what_an_encoding_lacks_is_escaped_and_said(ended, capsys, encoding, shown):
    assert ended(lambda argv: print(TEXT, end=""), encoding) == (0, shown + b"\n")
    said = capsys.readouterr().err
    assert said.startswith(f"note: standard output is in {encoding}, which lacks")
    assert said.count("\n") == 1


def test_utf8_is_written_as_it_is_but_for_broken_characters(ended, capsys):
    assert ended(lambda argv: print(TEXT, end="")) == (0, TEXT.encode())
    assert capsys.readouterr().err == ""
    assert ended(lambda argv: print("a\udcffb")) == (0, rb"a\udcffb" + b"\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8", "UTF8", "latin-1"])
def test_json_is_utf8_or_ascii_and_keeps_every_character(ended, capsys, encoding):
    value = {"text": TEXT + "\udcff"}
    code, printed = ended(lambda argv: cli.print_json(value), encoding)
    assert code == 0
    assert json.loads(printed.decode("utf-8")) == value
    if "8" not in encoding:
        assert printed.isascii()
        assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line(ended, capsys):
    full = open("/dev/full", "w")  # noqa: SIM115 - detached from its buffer
    assert ended(lambda argv: print("x" * 100_000), out=full)[0] == 1
    said = capsys.readouterr().err
    assert said == (
        "error: standard output cannot be written: No space left on device\n"
    )


def test_a_line_that_nobody_can_read_stops_nothing(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        log("step 1")
        monkeypatch.undo()
        with pytest.raises(OSError):  # It did fail.
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_usage_errors_are_one_short_line():
    parser = cli.Parser("jaxgpt.sample", "About.")
    parser.add_argument("--count", type=int)
    for value in ("9" * 5000, "٣", "1.5", ""):
        with pytest.raises(UserError, match="--count: invalid int value") as caught:
            parser.parse_args([f"--count={value}"])
        assert len(str(caught.value)) < 400
    assert parser.parse_args(["--count= 3 "]).count == 3


def shell(script, *options):
    """Runs a command in a shell script, as "$@"."""
    return subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-m", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "script, code, said",
    [
        (
            '"$@" --helpfull >&-',
            1,
            "error: standard output cannot be written: Bad file",
        ),
        (
            '"$@" --helpfull >/dev/full',
            1,
            "error: standard output cannot be written: No space",
        ),
        ('"$@" --helpfull 2>&-', 0, ""),
        ('"$@" --helpfull <&-', 0, ""),
        ('"$@" --unknown 2>&-', 2, ""),
        ('"$@" --unknown 2>/dev/full', 2, ""),
        ('"$@" --unknown <&- >&- 2>&-', 2, ""),
        ('"$@" --unknown >&-', 2, "error: "),
        ('"$@" --helpfull | true; exit ${PIPESTATUS[0]}', None, ""),
        ('PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C "$@" -h', 0, "note: "),
    ],
)
def test_closed_full_and_narrow_streams_never_end_in_a_traceback(script, code, said):
    ended = shell(script, "jaxgpt.sample")
    assert ended.returncode == code if code is not None else ended.returncode < 2
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == (1 if said else 0)
    if code == 0:
        assert ended.stdout.startswith("usage: python -m jaxgpt.sample ")


def test_a_text_of_a_file_is_without_its_byte_order_mark(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Once\r\n", encoding="utf-8-sig", newline="")
    assert cli.text_of("prompt", f"@{file}") == "Once\r\n"


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        # What a crash at exit would be; what was printed before is not lost.
        "atexit.register(os.abort); print('so far'); raise KeyboardInterrupt",
        # Python drops what a callback of its garbage collector raises.
        "print('so far'); gc.callbacks.append(interrupt); gc.collect(); time.sleep(60)",
        "from jaxgpt import backend; backend.set_up_jax(); print('so far'); "
        "gc.callbacks.append(interrupt); gc.collect(); time.sleep(60)",
    ],
    ids=["at exit", "in a collection", "in a collection, with JAX"],
)
def test_an_interrupt_ends_the_command_with_130_and_nothing_else(command):
    code = (
        "import atexit, gc, os, signal, time\n"
        # A shell's job in the background begins with it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from jaxgpt import cli\n"
        "def interrupt(phase, info):\n"
        "    gc.callbacks.clear()\n"
        "    raise KeyboardInterrupt\n"
        f"def command(argv):\n    {command}\n"
        "cli.main(command)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "so far\n", "")
