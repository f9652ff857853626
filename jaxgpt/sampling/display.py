"""Watching a text fill in a terminal; loads without JAX, so as to be there first."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from jaxgpt.sampling.output import pieces

if TYPE_CHECKING:
    from jaxgpt.data.tokenizers import Tokenizer
    from jaxgpt.sampling.state import SamplerOutput

FRAME = 0.15  # Seconds that a picture is shown, at least.
GAP = "·"
NEW, GIVEN, OLD, MISSING = "bold black on bright_yellow", "bright_cyan", "", "dim"


class Screen:
    """The terminal's other screen; what was there before returns at the end.

    Attributes:
      tokenizer: of the texts; None shows token ids.
      prompt_mask_T: true where a token is given.
    """

    tokenizer: Tokenizer | None
    prompt_mask_T: np.ndarray

    def __init__(self) -> None:
        self.console = Console()
        self.live = Live(
            console=self.console,
            screen=True,
            auto_refresh=False,
            redirect_stderr=False,
        )
        self.drawn = 0.0
        self.open = contextlib.ExitStack()

    @staticmethod
    def possible() -> bool:
        """Returns whether standard output is a terminal that can be drawn on."""
        return sys.stdout.isatty() and not Console().is_dumb_terminal

    def __enter__(self) -> Screen:
        notes = io.StringIO()
        self.open.callback(lambda: print(notes.getvalue(), end="", file=sys.stderr))
        self.open.enter_context(contextlib.redirect_stderr(notes))
        self.open.enter_context(self.live)
        self.live.update(Text("loading and compiling", style="bold"), refresh=True)
        return self

    def __exit__(self, *reason: Any) -> None:
        self.close()

    def close(self) -> None:
        """Restores the terminal, and prints the notes that were logged in between."""
        self.open.close()

    def show(self, filled: SamplerOutput) -> bool:
        """Draws the texts as they are; returns true: sampling continues."""
        time.sleep(max(0.0, self.drawn + FRAME - time.perf_counter()))
        self.live.update(self.picture(filled), refresh=True)
        self.drawn = time.perf_counter()
        if filled.decoded_BT.all():
            time.sleep(4 * FRAME)
        return True

    def picture(self, filled: SamplerOutput) -> Group:
        """Returns a status line and as many of the texts as the screen has room for."""
        made_B = (filled.decoded_BT & ~self.prompt_mask_T).sum(1)
        calls = int(filled.num_forward_passes_B.max())
        missing = int((~self.prompt_mask_T).sum())
        pace = made_B.mean() / max(filled.num_forward_passes_B.mean(), 1)
        status = Text(
            f"{calls} model calls   {made_B.mean():.0f} of {missing} tokens   "
            f"{pace:.2f} tokens per call",
            style="bold",
        )
        width = self.console.width
        room = self.console.height - 2
        parts: list[Any] = [status]
        for row in range(len(filled.tokens_BT)):
            text = self.text(filled, row)
            lines = len(text.wrap(self.console, width)) + 1
            if row and lines > room:
                break
            room -= lines
            parts += [Rule(style="dim"), text]
        return Group(*parts)

    def text(self, filled: SamplerOutput, row: int) -> Text:
        """Returns one text: new tokens lit, given ones coloured, gaps dotted."""
        text = Text(overflow="fold")
        tokenizer, newest = self.tokenizer, filled.num_forward_passes_B[row]
        decoded_T = filled.decoded_BT[row]
        end = 0
        for start, stop, shown in pieces(filled.tokens_BT[row], decoded_T, tokenizer):
            text.append(GAP * (start - end), MISSING)
            end, last = stop, stop - 1
            call = filled.decode_step_BT[row, last]
            style = (
                GIVEN if self.prompt_mask_T[last] else NEW if call == newest else OLD
            )
            if call == newest and not shown.strip():
                shown = shown.replace(" ", "␣").replace("\n", "↵\n")
            text.append(shown, style)
        text.append(GAP * (len(decoded_T) - end), MISSING)
        return text
