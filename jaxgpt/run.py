"""A run on disk, restored for the commands that read one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
import shlex

import jax
from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.data import tokenizer_files
from jaxgpt.data.cache import OtherDataError
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, MismatchError


@dataclasses.dataclass(frozen=True)
class Run:
    """A restored run: everything needed to score and generate."""

    workdir: pathlib.Path
    config: ConfigDict
    system: System
    params: dict
    step: int
    tokenizer: Tokenizer | None
    trained: ConfigDict  # Without the overrides in `config`.

    def open_data(self) -> Dataset:
        """Opens the data of `config.data`: that of the run, or another that was named.

        Raises:
          UserError: if it is gone, differs from the run's, or has text or tokens
            outside the run's vocabulary.
        """
        return self._data

    @functools.cached_property
    def _data(self) -> Dataset:
        c, own = self.config.data, self.trained.data
        require_text(self.trained, c.path, self.workdir, self.tokenizer)
        try:
            data = self.system.open_data(self.tokenizer)
        except OtherDataError as error:
            other = (
                f", or name other data with --config.data.path={shlex.quote(c.path)}"
            )
            raise UserError(
                f"{error}: bring it back" + ("" if self.system.is_task else other)
            ) from None
        known = self.system.model_config.vocab_size
        if not self.tokenizer:
            for note in assume_vocabulary(str(self.workdir), data, c.path, known):
                log(f"note: {note}")
        if data.vocab_size > known:
            raise UserError(
                f"data.path '{c.path}' has {data.vocab_size} tokens, this model "
                f"{known}: it was trained on other data"
            )
        if own.path and not own.fingerprint and data.fingerprint:
            path = self.config.task.path if self.system.is_task else c.path
            log(
                f"note: this run keeps no fingerprint of its data: '{path}' may hold "
                "other data than it was trained on"
            )
        elif own.fingerprint not in ("", data.fingerprint):
            log(f"note: '{c.path}' is not the data of this run, '{own.path}'")
        return data


def require_text(
    config: ConfigDict,
    path: str,
    workdir: pathlib.Path | str,
    tokenizer: Tokenizer | None,
) -> None:
    """Raises UserError if an imported model is to go on with a text nobody named."""
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
                f"{config.model.vocab_size}: bring back the run's own, or remove it "
                "and use token ids"
            )
        name_tokenizer(config, tokenizer)
    # Imports of old versions say that they were trained on the default text.
    trained = (folder / "metrics.jsonl").exists() or config.data.fingerprint
    if not trained and config.data.path == configs.base().data.path:
        config.data.path = ""
    return config, tokenizer


def name_tokenizer(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """Sets `data.tokenizer` to the kind of this one."""
    kind = tokenizer.to_json()["kind"]
    if kind in configs.options()["data.tokenizer"].choices:
        config.data.tokenizer = kind


def _with_overrides(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    trained = config.system
    if "data.path" in overrides:
        config.data.fingerprint = ""
    configs.validate(configs.override(config, overrides))
    # The system that the fields belong to says which runs it can read with them.
    keys = [key for key in overrides if not key.startswith("data.")]
    groups = [key.partition(".")[0] for key in keys if "." in key]
    if keys:
        system_class(groups[0] if groups else config.system).check_overrides(
            trained, config
        )
    return config


def open_run(
    workdir: str, step: str = "best", overrides: dict[str, str] | None = None
) -> Run:
    """Restores the parameters of a run, checked against their digests.

    Args:
      workdir: folder of the run.
      step: "best", "last", or a number.
      overrides: of its config, from `config.after_training_overrides`.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged.
    """
    folder = configs.user_path(workdir)
    config, tokenizer = read_run(folder)
    trained = copy.deepcopy(config)
    if overrides:
        _with_overrides(config, overrides)
    backend.use_float64(config.model.dtype)
    system = build_system(config)
    checkpoints = Checkpoints(folder, read_only=True)
    chosen = checkpoints.pick(step)
    item = "ema" if config.optimizer.ema_decay else "params"
    abstract = {item: jax.eval_shape(system.init, jax.random.key(0))}
    try:
        params = checkpoints.restore(chosen, abstract)[item]
    except MismatchError as error:
        asked = f"--config.{'/'.join(overrides)}" if overrides else "its config.json"
        raise UserError(f"'{workdir}' does not fit {asked}: {error}") from None
    except DamagedError as error:
        others = checkpoints.listed(without=chosen)
        remedy = f"take another --step, there are {others}"
        if others == "none":
            remedy = "bring back a copy, it has no other"
        raise UserError(
            f"checkpoint {chosen} of '{workdir}' is damaged ({error}): {remedy}"
        ) from None
    backend.say_where_programs_are_not_kept()
    return Run(folder, config, system, params, chosen, tokenizer, trained)
