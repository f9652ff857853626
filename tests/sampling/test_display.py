import functools
import io
import os
import pty
import signal
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from rich.console import Console

from jaxgpt.data.sentencepiece import SentencePieceTokenizer
from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.sampling import output
from jaxgpt.sampling.display import Screen
from jaxgpt.sampling.state import SamplerOutput


def half_done():
    """Two texts "ab.d", of which "a" is given, "d" settled before and "b" just now."""
    row = lambda *values: np.array([values, values])
    return SamplerOutput(
        tokens_BT=row(0, 1, 0, 3),
        decoded_BT=row(True, True, False, True),
        log_p_BT=row(0.0, 0.0, 0.0, 0.0),
        decode_step_BT=row(0, 4, 0, 2),
        rank_BT=row(0, 2, 3, 1),
        num_forward_passes_B=np.array([4, 4]),
        tokens_processed_B=np.array([9, 9]),
    )


@functools.cache
def spaced_model():
    """A SentencePiece model that writes a space before every text, and bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ka b ka b"] * 9),
        model_writer=model,
        vocab_size=265,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def screen(height=24):
    made = Screen()
    made.tokenizer = CharTokenizer("abcd")
    made.prompt_mask_T = np.array([True, False, False, False])
    made.console = Console(
        file=io.StringIO(), width=80, height=height, force_terminal=True, record=True
    )
    return made


def test_the_picture_says_how_far_it_is_and_lights_what_is_new():
    made = screen()
    made.console.print(made.picture(half_done()))
    styled = made.console.export_text(styles=True, clear=False)
    lines = made.console.export_text().splitlines()
    assert lines[0].split("   ") == [
        "4 model calls",
        "2 of 3 tokens",
        "0.50 tokens per call",
    ]
    assert lines[2] == lines[4] == "ab·d"
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b[1;30;103mb\x1b[0m" in styled


def test_pieces_keep_their_spaces_and_bytes_make_characters():
    tokenizer = SentencePieceTokenizer(spaced_model())
    ids = tokenizer.encode("ka é b\n")
    row = lambda value: np.broadcast_to(value, (1, len(ids)))
    filled = SamplerOutput(
        tokens_BT=row(ids),
        decoded_BT=row(True),
        log_p_BT=row(0.0),
        decode_step_BT=row(0),
        rank_BT=row(0),
        num_forward_passes_B=np.array([4]),
        tokens_processed_B=np.array([9]),
    )
    made = Screen()
    made.tokenizer, made.prompt_mask_T = tokenizer, np.ones(len(ids), bool)
    assert made.text(filled, 0).plain == "ka é b\n"


def test_the_text_after_a_prompt_keeps_its_space():
    tokenizer = SentencePieceTokenizer(spaced_model())
    ids = tokenizer.encode("ka é b")
    given = len(tokenizer.encode("ka"))
    sample = {"tokens": ids.tolist()}
    output.split_continuations([sample], given, tokenizer)
    assert (sample["prompt"], sample["continuation"]) == ("ka", " é b")


def test_texts_that_do_not_fit_the_screen_are_left_out():
    made = screen(height=5)
    made.console.print(made.picture(half_done()))
    assert made.console.export_text().count("ab·d") == 1


def watch(trained, *options, interrupt=False):
    """Runs sample --live on a terminal of its own; (exit code, what it wrote)."""
    ours, theirs = pty.openpty()
    # A shell's job in the background ignores it, and so would what it starts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxgpt.sample", f"--workdir={trained}", *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    signal.signal(signal.SIGINT, handler)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            written += chunk
            if interrupt and b"model calls" in written:
                interrupt = False
                process.send_signal(signal.SIGINT)
    except OSError:  # The other end is closed: the process is done.
        pass
    return process.wait(), written.decode()


OTHER, BACK = "\x1b[?1049h", "\x1b[?1049l"


@pytest.mark.process
def test_a_terminal_shows_it_and_is_itself_again(trained):
    status, written = watch(trained, "--live", "--prompt=ROMEO:")
    assert status == 0
    before, after = written.split(BACK)
    assert OTHER in before
    assert before.index("compiling") < before.index("model calls")
    assert "ROMEO:" in after


@pytest.mark.process
def test_an_interrupt_gives_the_terminal_back(trained):
    # So many that it cannot be done before it is interrupted.
    options = ("--live", "--sampler=ar", "--num_samples=20000")
    status, written = watch(trained, *options, interrupt=True)
    assert status == 130
    assert written.index(OTHER) < written.index(BACK)
    assert "Traceback" not in written


@pytest.mark.process
def test_without_a_terminal_it_is_plain(trained):
    done = subprocess.run(
        [sys.executable, "-m", "jaxgpt.sample", f"--workdir={trained}", "--live"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout
