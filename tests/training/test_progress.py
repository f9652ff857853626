"""What somebody who waits is shown, and what a pipe is not."""

import io
import sys

import pytest

from jaxgpt.training.progress import status


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_sees_what_goes_on_and_a_pipe_does_not(monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    with status("compiling the step"):
        pass
    assert ("compiling the step" in sys.stderr.getvalue()) == terminal
    if not terminal:
        assert sys.stderr.getvalue() == ""


def test_an_error_ends_it(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Stream(True))
    with pytest.raises(ValueError, match="mine"), status("scoring"):
        raise ValueError("mine")
