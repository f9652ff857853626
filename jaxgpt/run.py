"""A run on disk: how training makes it, and how the other commands find it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.data import huggingface, tokenizers
from jaxgpt.data.dataset import Dataset
from jaxgpt.errors import UserError
from jaxgpt.interop import formats
from jaxgpt.parallel import sharding
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, check_same_config
from jaxgpt.training.train_state import Setup


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
          UserError: if it is gone, or has another vocabulary than this run.
        """
        data = self.system.open_data()
        path, known = self.config.data.path, self.system.model_config.vocab_size
        if self.tokenizer and _differs(data.tokenizer, self.tokenizer):
            raise UserError(f"data.path '{path}' has another vocabulary than this run")
        if data.vocab_size > known:
            raise UserError(
                f"data.path '{path}' has {data.vocab_size} tokens, this model {known}: "
                "it was trained on other data"
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
    """Restores the parameters of a run, checked against their digests.

    Args:
      workdir: folder of the run.
      step: "best", "last", or a number.
      overrides: of its config, from `config.after_training_overrides`.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged.
    """
    folder = configs.user_path(workdir)
    config = configs.load_frozen(folder)
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
    except DamagedError as error:
        if overrides:
            raise UserError(
                f"'{workdir}' does not fit --config.{'/'.join(overrides)}: {error}"
            ) from None
        raise UserError(
            f"checkpoint {chosen} of '{workdir}' is damaged ({error}): take another "
            f"--step, there are {checkpoints.listed(without=chosen)}"
        ) from None
    file = folder / "tokenizer.json"
    tokenizer = tokenizers.load_tokenizer(file) if file.exists() else None
    return Run(folder, config, system, params, chosen, tokenizer)


@contextlib.contextmanager
def prepare(
    config: ConfigDict, workdir: pathlib.Path, allowed: Sequence[str] = ()
) -> Iterator[Setup]:
    """Opens all that training needs, and keeps other runs out of the folder meanwhile.

    Args:
      config: validated; resolved in place, and frozen in the folder.
      workdir: made if it does not exist.
      allowed: keys that may differ from the run's config, beside the resumable ones.

    Raises:
      UserError: if the folder cannot be used, is being trained in, or holds a run of
        another config or vocabulary; nothing is left behind.
    """
    if config.init_from:
        adopt_init_from(config, workdir)
    setup = open_setup(config, workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir '{workdir}' is a file: name a folder")
    # The first of several processes holds the lock for all.
    primary = jax.process_index() == 0
    with _locked(workdir) if primary else contextlib.nullcontext():
        if (workdir / "config.json").exists():
            check_same_config(configs.load_frozen(workdir), config, workdir, allowed)
        vocabulary = workdir / "tokenizer.json"
        if vocabulary.exists() and _differs(
            tokenizers.load_tokenizer(vocabulary), setup.data.tokenizer
        ):
            raise UserError(
                f"'{workdir}' was trained with another vocabulary than that of "
                f"'{config.data.path}': take another --workdir"
            )
        if primary:
            setup.freeze()
        yield setup


def open_setup(config: ConfigDict, workdir: pathlib.Path) -> Setup:
    """Resolves the config in place and opens all that it names; writes nothing.

    Raises:
      UserError: if the data, the devices or the optimizer cannot be used.
    """
    system_class(config.system).resolve(config)
    mesh, optimizer = sharding.make_mesh(config), optimizers.make_optimizer(config)
    # Only the data knows its vocabulary, and only a system can open its data.
    wanted = config.model.vocab_size
    config.model.vocab_size = wanted or 1
    system = build_system(config)
    data = system.open_data()
    if wanted and wanted < data.vocab_size:
        raise UserError(
            f"model.vocab_size {wanted} is less than the {data.vocab_size} of the data"
        )
    if not wanted:
        config.model.vocab_size = data.vocab_size
        system = build_system(config)
    initial_params = functools.partial(init_from_params, config)
    freeze = functools.partial(_freeze, config, data, workdir)
    return Setup(system, data, mesh, optimizer, workdir, initial_params, freeze)


def _freeze(config: ConfigDict, data: Dataset, workdir: pathlib.Path) -> None:
    """Writes config.json and tokenizer.json."""
    with _writing(workdir):
        configs.save(config, workdir / "config.json")
        if data.tokenizer:
            tokenizers.save_tokenizer(data.tokenizer, workdir / "tokenizer.json")


@contextlib.contextmanager
def _writing(workdir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir '{workdir}' cannot be written: {error.strerror}"
        ) from None


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and holds a lock that the kernel frees when the process dies.

    Raises:
      UserError: naming the process that has it, or if the folder cannot be written.
    """
    path = workdir / "lock"
    while True:
        with _writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
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
        # The previous owner may have removed the file between open and flock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                break
        stream.close()
    with stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _differs(
    one: tokenizers.Tokenizer | None, other: tokenizers.Tokenizer | None
) -> bool:
    return (one and one.to_json()) != (other and other.to_json())


def load_init_from(
    config: ConfigDict,
) -> tuple[ConfigDict, dict, tokenizers.Tokenizer | None]:
    """Returns the config, parameters and tokenizer that `config.init_from` names.

    Raises:
      UserError: if it is neither a run nor GPT-2 weights.
    """
    folder = configs.user_path(config.init_from)
    try:
        configs.load_frozen(folder)
    except UserError:
        original = formats.read_original("gpt2", config.init_from)
        form, size = formats.get_format("gpt2"), original.config.model.vocab_size
        return (
            original.config,
            original.params,
            form.tokenizer(original.folder, size)[0],
        )
    run = open_run(config.init_from)
    return run.config, run.params, run.tokenizer


def init_from_params(config: ConfigDict, fresh: dict) -> dict:
    """Returns the parameters of `config.init_from`; fresh ones where it has none.

    Raises:
      UserError: if one has another shape.
    """
    if not config.init_from:
        return fresh
    found = {**fresh, **load_init_from(config)[1]}
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    if shapes(found) != shapes(fresh):
        raise UserError(
            f"init_from '{config.init_from}' has parameters of other shapes than this "
            "config: use the same model.* settings"
        )
    return found


def adopt_init_from(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Sets the architecture to that of the model that `config.init_from` names.

    Once a run has begun its source is not needed: its own config has the shape.

    Raises:
      UserError: if that model is of another system.
    """
    if (workdir / "config.json").exists():
        start = configs.load_frozen(workdir)
    else:
        start, _, tokenizer = load_init_from(config)
        c, kind = config.data, tokenizer and tokenizer.to_json()["kind"]
        other = c.tokenizer != kind if kind else c.tokenizer == "gpt2"
        if kind == c.tokenizer == "huggingface" and c.tokenizer_file:
            named, _ = huggingface.read(configs.user_path(c.tokenizer_file))
            other = _differs(named, tokenizer)
        if other:
            raise UserError(
                f"init_from '{config.init_from}' has another vocabulary than "
                f"data.tokenizer={config.data.tokenizer}"
            )
    if not issubclass(system_class(config.system), system_class(start.system)):
        raise UserError(
            f"init_from '{config.init_from}' is a {start.system} model, but this "
            f"config trains {config.system}"
        )
    for key, value in start.model.to_dict().items():
        if configs.options()[f"model.{key}"].architecture:
            config.model[key] = value
