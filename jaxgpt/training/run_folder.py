"""The folder of a run: its model, its tokenizer and its data, and who may write it."""

from __future__ import annotations

import contextlib
import pathlib
import shlex
from collections.abc import Iterator

from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.data import tokenizer_files
from jaxgpt.data.cache import OtherDataError
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log
from jaxgpt.parallel import lock
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import system_class


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out of it.

    Raises:
      UserError: naming the process that has it, or if the folder cannot be written.
    """
    configs.make_folder(workdir)
    remedy = "wait for it or stop it, or use another --workdir"
    held = lock.hold(workdir / "lock", f"'{workdir}'", "trained in", remedy)
    with contextlib.ExitStack() as stack:
        with configs.writing(workdir):
            stack.enter_context(held)
        yield


def read_run(folder: pathlib.Path) -> tuple[ConfigDict, Tokenizer | None]:
    """Returns the config and the tokenizer of a run.

    Raises:
      UserError: if there is no run, or its tokenizer has more tokens than its model.
    """
    config, file = configs.load_frozen(folder), folder / "tokenizer.json"
    tokenizer = tokenizer_files.load(file) if file.exists() else None
    if tokenizer:
        if tokenizer.vocab_size > config.model.vocab_size:
            raise UserError(
                f"'{file}' has {tokenizer.vocab_size} tokens, its model "
                f"{config.model.vocab_size}: restore the run's own, or remove it "
                "and use token ids"
            )
        name_tokenizer(config, tokenizer)
    # Imports made by old versions name the default text as what they were trained on.
    trained = (folder / "metrics.jsonl").exists() or config.data.fingerprint
    if not trained and config.data.path == configs.base().data.path:
        config.data.path = ""
    return config, tokenizer


def name_tokenizer(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Sets `data.tokenizer` to the kind of this one, unless it came from a file."""
    kind = tokenizer.to_json()["kind"]
    # A data.tokenizer_file may hold any kind.
    if (
        not config.data.tokenizer_file
        and kind in configs.options()["data.tokenizer"].choices
    ):
        config.data.tokenizer = kind


def require_text(
    config: ConfigDict,
    path: str,
    workdir: pathlib.Path | str,
    tokenizer: Tokenizer | None,
) -> None:
    """Raises UserError if an imported model would continue with a text nobody named."""
    if system_class(config.system).reads_text and not path:
        text = "a text" if tokenizer else "the text it was trained on"
        raise UserError(
            f"'{workdir}' was imported and holds no text: name {text} with "
            "--config.data.path=FILE"
            + ("" if tokenizer else ", or import it with --tokenizer=FILE")
        )


def assume_vocabulary(
    source: str, data: Dataset, path: str, vocab_size: int
) -> list[str]:
    """Takes a model without a tokenizer to have the tokens of a text.

    Returns:
      Notes for the user.

    Raises:
      UserError: if the text has more or fewer tokens than the model.
    """
    if data.tokenizer is None:
        return []
    if data.vocab_size != vocab_size:
        raise UserError(
            f"'{source}' has no tokenizer, and data.path '{path}' has "
            f"{data.vocab_size} tokens where its model has {vocab_size}: name the text "
            "it was trained on, or import it with --tokenizer=FILE"
        )
    return [
        f"'{source}' has no tokenizer: its {vocab_size} tokens are taken to be those "
        f"of '{path}'"
    ]


def open_data(
    workdir: pathlib.Path,
    config: ConfigDict,
    trained: ConfigDict,
    system: System,
    tokenizer: Tokenizer | None,
) -> Dataset:
    """Opens the data of `config.data`: that of the run, or another that was named.

    Args:
      config: of the run, overrides included.
      trained: without them.

    Raises:
      UserError: if it is gone, differs from the run's, or has text or tokens outside
        the run's vocabulary.
    """
    c, own = config.data, trained.data
    require_text(trained, c.path, workdir, tokenizer)
    try:
        data = system.open_data(tokenizer)
    except OtherDataError as error:
        other = f", or name other data with --config.data.path={shlex.quote(c.path)}"
        raise UserError(
            f"{error}: restore it" + ("" if system.is_task else other)
        ) from None
    known = system.model_config.vocab_size
    if not tokenizer:
        for note in assume_vocabulary(str(workdir), data, c.path, known):
            log(f"note: {note}")
    if data.vocab_size > known:
        raise UserError(
            f"data.path '{c.path}' has {data.vocab_size} tokens, this model "
            f"{known}: it was trained on other data"
        )
    if own.path and not own.fingerprint and data.fingerprint:
        path = config.task.path if system.is_task else c.path
        log(
            f"note: this run keeps no fingerprint of its data: '{path}' may hold "
            "other data than it was trained on"
        )
    elif own.fingerprint not in ("", data.fingerprint):
        log(f"note: '{c.path}' is not the data of this run, '{own.path}'")
    return data
