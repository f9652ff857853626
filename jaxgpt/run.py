"""A run on disk: how training makes it, and how the other commands find it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence
from typing import TextIO

import jax
from ml_collections import ConfigDict

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.data import tokenizers
from jaxgpt.data.dataset import Dataset
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.parallel import sharding
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, check_same_config


@dataclasses.dataclass(frozen=True)
class Run:
    """A restored run: everything needed to score and generate."""

    workdir: pathlib.Path
    config: ConfigDict
    system: System
    params: dict
    step: int
    tokenizer: tokenizers.Tokenizer | None

    def open_data(self) -> Dataset:
        """Opens the data of `config.data`.

        Raises:
          UserError: where it is gone, or has another vocabulary than this run.
        """
        data = self.system.open_data()
        if self.tokenizer and _differs(data.tokenizer, self.tokenizer):
            raise UserError(
                f"data.path '{self.config.data.path}' has another vocabulary than "
                "this run"
            )
        if data.vocab_size > self.system.model_config.vocab_size:
            raise UserError(
                f"data.path '{self.config.data.path}' has {data.vocab_size} tokens, "
                f"this model {self.system.model_config.vocab_size}: it is of other data"
            )
        return data


def _with_overrides(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    trained = config.system
    configs.validate(configs.override(config, overrides))
    # The system that the fields are of says which runs it can read with them.
    groups = [key.partition(".")[0] for key in overrides if "." in key]
    system_class(groups[0] if groups else config.system).check_overrides(
        trained, config
    )
    return config


def open_run(
    workdir: str, step: str = "best", overrides: dict[str, str] | None = None
) -> Run:
    """Restores the parameters of a run, proved by their digests.

    Args:
      workdir: folder of the run.
      step: "best", "last", or a number.
      overrides: of its config, from `config.after_training_overrides`.

    Raises:
      UserError: where there is no run, no such checkpoint, or it is damaged.
    """
    folder = configs.user_path(workdir)
    config = configs.load_frozen(folder)
    if overrides:
        config = _with_overrides(config, overrides)
    cli.use_float64(config.model.dtype)
    system = build_system(config)
    checkpoints = Checkpoints(folder, read_only=True)
    chosen = checkpoints.pick(step)
    item = "ema" if config.optimizer.ema_decay else "params"
    abstract = {item: jax.eval_shape(system.init, jax.random.key(0))}
    try:
        params = checkpoints.restore(chosen, abstract)[item]
    except DamagedError as error:
        if overrides:
            raise UserError(
                f"'{workdir}' does not fit --config.{'/'.join(overrides)}: {error}"
            ) from None
        others = ", ".join(str(s) for s in checkpoints.steps() if s != chosen) or "none"
        raise UserError(
            f"checkpoint {chosen} of '{workdir}' is damaged ({error}): take another "
            f"--step, there are {others}"
        ) from None
    file = folder / "tokenizer.json"
    tokenizer = tokenizers.load_tokenizer(file) if file.exists() else None
    return Run(folder, config, system, params, chosen, tokenizer)


def open_system(config: ConfigDict) -> tuple[System, Dataset]:
    """Opens the data and resolves the config; writes nothing.

    Returns:
      (system, data).

    Raises:
      UserError: where the data cannot be used.
    """
    system_class(config.system).resolve(config)
    sharding.make_mesh(config)
    wanted = config.model.vocab_size
    if not wanted:
        config.model.vocab_size = 1
    data = build_system(config).open_data()
    if wanted and wanted < data.vocab_size:
        raise UserError(
            f"model.vocab_size {wanted} is less than the {data.vocab_size} of the data"
        )
    config.model.vocab_size = wanted or data.vocab_size
    return build_system(config), data


@contextlib.contextmanager
def lock_workdir(
    config: ConfigDict,
    data: Dataset,
    workdir: pathlib.Path,
    allowed: Sequence[str] = (),
) -> Iterator[None]:
    """Makes or checks the run's folder, and keeps other processes out of it.

    Args:
      config: frozen in the folder.
      data: whose vocabulary is kept there.
      workdir: the folder.
      allowed: keys that may differ from the run's config, beside the harmless ones.

    Raises:
      UserError: where the folder cannot be used, is being trained in, or holds a run
        of another config or vocabulary; nothing is left behind.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir '{workdir}' is a file: name a folder")
    check_same_run(config, data, workdir, allowed)
    if jax.process_index():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _lock(workdir)
    except OSError as error:
        raise UserError(
            f"--workdir '{workdir}' cannot be written: {error.strerror}"
        ) from None
    try:
        # Another process may have begun a run since it was checked.
        check_same_run(config, data, workdir, allowed)
        freeze(config, data, workdir)
        yield
    finally:
        (workdir / "lock").unlink(missing_ok=True)
        lock.close()


def freeze(config: ConfigDict, data: Dataset, workdir: pathlib.Path) -> None:
    """Writes config.json and tokenizer.json; UserError where they cannot be."""
    try:
        configs.save(config, workdir / "config.json")
        if data.tokenizer:
            tokenizers.save_tokenizer(data.tokenizer, workdir / "tokenizer.json")
    except OSError as error:
        raise UserError(
            f"--workdir '{workdir}' cannot be written: {error.strerror}"
        ) from None


def check_same_run(
    config: ConfigDict, data: Dataset, workdir: pathlib.Path, allowed: Sequence[str]
) -> None:
    """Raises UserError where a folder's run has another config or vocabulary."""
    vocabulary = workdir / "tokenizer.json"
    if (workdir / "config.json").exists():
        check_same_config(configs.load_frozen(workdir), config, workdir, allowed)
    if vocabulary.exists() and _differs(
        tokenizers.load_tokenizer(vocabulary), data.tokenizer
    ):
        raise UserError(
            f"'{workdir}' was trained with another vocabulary than that of "
            f"'{config.data.path}': take another --workdir"
        )


def _lock(workdir: pathlib.Path) -> TextIO:
    """Returns a lock of the folder, which the system frees when the process dies."""
    path = workdir / "lock"
    while True:
        stream = open(path, "a+")  # noqa: SIM115 - held as long as the run
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            raise UserError(
                f"'{workdir}' is being trained in by {owner}: wait for it or stop it, "
                "or take another --workdir"
            ) from None
        # The owner before may have removed the file between the two lines above.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break
        stream.close()
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {socket.gethostname()}")
    stream.flush()
    return stream


def _differs(
    one: tokenizers.Tokenizer | None, other: tokenizers.Tokenizer | None
) -> bool:
    return (one and one.to_json()) != (other and other.to_json())


def read_start(
    config: ConfigDict,
) -> tuple[ConfigDict, dict, tokenizers.Tokenizer | None]:
    """Returns the config, parameters and tokenizer that `config.init_from` names.

    Raises:
      UserError: where it is neither a run nor GPT-2 weights.
    """
    folder = configs.user_path(config.init_from)
    try:
        configs.load_frozen(folder)
    except UserError:
        original = formats.read_original("gpt2", config.init_from)
        return original.config, original.params, tokenizers.GPT2Tokenizer()
    run = open_run(config.init_from)
    return run.config, run.params, run.tokenizer


def start_params(config: ConfigDict, fresh: dict) -> dict:
    """Returns the parameters of `config.init_from`; fresh ones where it has none.

    Raises:
      UserError: where one has another shape.
    """
    given = {**fresh, **read_start(config)[1]}
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    if shapes(given) != shapes(fresh):
        raise UserError(
            f"init_from '{config.init_from}' has parameters of other shapes than this "
            "config: take over its settings"
        )
    return given


def adopt_start(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Takes over the shape of the model that `config.init_from` names.

    A run that was begun needs that source no more: its own config has the shape.

    Raises:
      UserError: where that model is of another system.
    """
    if (workdir / "config.json").exists():
        start = configs.load_frozen(workdir)
    else:
        start, _, tokenizer = read_start(config)
        if isinstance(tokenizer, tokenizers.GPT2Tokenizer) != (
            config.data.tokenizer == "gpt2"
        ):
            raise UserError(
                f"init_from '{config.init_from}' has another vocabulary than "
                f"data.tokenizer={config.data.tokenizer}"
            )
    if not issubclass(system_class(config.system), system_class(start.system)):
        raise UserError(
            f"init_from '{config.init_from}' is a {start.system} model: this config "
            f"trains {config.system}"
        )
    for key, value in start.model.to_dict().items():
        if configs.options()[f"model.{key}"].architecture:
            config.model[key] = value
