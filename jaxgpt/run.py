"""A run on disk: how training makes it, and how the other commands find it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Collection, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.data import tokenizer_files
from jaxgpt.data.cache import OtherDataError, resolve_path
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log, require
from jaxgpt.interop import formats
from jaxgpt.parallel import sharding
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import (
    Checkpoints,
    DamagedError,
    MismatchError,
    check_same_config,
)
from jaxgpt.training.lock import locked, writing
from jaxgpt.training.step import fresh_state
from jaxgpt.training.train_state import Setup


@dataclasses.dataclass(frozen=True)
class Run:
    """A restored run: everything needed to score and generate."""

    workdir: pathlib.Path
    config: ConfigDict
    system: System
    params: dict
    step: int
    tokenizer: Tokenizer | None
    trained: ConfigDict  # What it was trained with, where `config` has overrides.

    def open_data(self) -> Dataset:
        """Opens the data of `config.data`: that of the run, or another that was named.

        Raises:
          UserError: if it is gone, is another than the run's, or has text or tokens
            that the run's vocabulary has not.
        """
        return self._data

    @functools.cached_property
    def _data(self) -> Dataset:
        c, own = self.config.data, self.trained.data
        _require_text(self.trained, c.path, self.workdir, self.tokenizer)
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
            for note in _guess(str(self.workdir), data, c.path, known):
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


def _require_text(
    config: ConfigDict,
    path: str,
    workdir: pathlib.Path | str,
    tokenizer: Tokenizer | None,
) -> None:
    """Raises UserError where nobody says which text an imported model goes on with."""
    if system_class(config.system).reads_text and not path:
        text = "a text" if tokenizer else "the text it was trained on"
        raise UserError(
            f"'{workdir}' was imported and holds no text: name {text} with "
            "--config.data.path=FILE"
            + ("" if tokenizer else ", or import it with --tokenizer=FILE")
        )


def _guess(source: str, data: Dataset, path: str, vocab_size: int) -> list[str]:
    """Takes the ids of a model without tokenizer for the tokens of a text.

    Returns:
      What to say about it.

    Raises:
      UserError: where the text has more or fewer tokens than the model.
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


def _read_run(
    folder: pathlib.Path,
) -> tuple[ConfigDict, Tokenizer | None]:
    """Returns the config and the tokenizer of a run.

    Raises:
      UserError: where there is no run, or its tokenizer is of a larger model.
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
    # The system that the fields are of says which runs it can read with them.
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
    config, tokenizer = _read_run(folder)
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


def prepare(
    config: ConfigDict,
    workdir: pathlib.Path,
    allowed: Collection[str] = (),
    given: Collection[str] = (),
) -> Setup:
    """Opens all that training needs; writes nothing.

    Args:
      config: validated; resolved in place.
      workdir: of the run, which may have begun.
      allowed: keys that may differ from the run's config, beside the resumable ones.
      given: keys that were set on the command line, rather than in a file.

    Raises:
      UserError: if the folder cannot be used, or holds a run of another config or other
        data, or `init_from` does not fit.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir '{workdir}' is a file: name a folder")
    if (workdir / "config.json").exists():
        return _prepare_to_resume(config, workdir, allowed, given)
    tokenizer, named = None, {"data.path", "data.tokenizer"} & set(given)
    if config.init_from:
        start, _, tokenizer = load_init_from(config)
        adopt_architecture(config, start, given)
        if tokenizer:
            tokenizer = _choose_tokenizer(config, tokenizer, given)
        elif system_class(config.system).reads_text and not named:
            _require_text(config, "", config.init_from, None)
    setup = open_setup(config, workdir, tokenizer)
    if config.init_from and not tokenizer and "data.tokenizer" not in given:
        c, data = config, setup.data
        for note in _guess(c.init_from, data, c.data.path, c.model.vocab_size):
            log(f"note: {note}")
    return setup


def _prepare_to_resume(
    config: ConfigDict,
    workdir: pathlib.Path,
    allowed: Collection[str],
    given: Collection[str],
) -> Setup:
    old, tokenizer = _read_run(workdir)
    if config.init_from:
        # Once a run has begun its source is not needed: its own config has the shape.
        adopted = [k for k in configs.keys_that("architecture") if k not in given]
        adopted += [] if "data.tokenizer" in given else ["data.tokenizer"]
        values = configs.flatten(old)
        configs.override(config, {key: values[key] for key in adopted})
    elif config.data.tokenizer == configs.load_frozen(workdir).data.tokenizer:
        config.data.tokenizer = old.data.tokenizer
    if not old.data.path and "data.path" not in given:
        _require_text(old, "", workdir, tokenizer)
    if tokenizer and not config.model.vocab_size:
        config.model.vocab_size = old.model.vocab_size
    notes = _keep_schedule(config, old, workdir)
    key = "task.path" if system_class(old.system).is_task else "data.path"
    own, asked, had = old.data, *(configs.flatten(c)[key] for c in (config, old))
    config.data.fingerprint = "" if key in allowed else own.fingerprint
    reads_text = system_class(old.system).reads_text
    try:
        setup = open_setup(config, workdir, tokenizer)
        found = setup.data.fingerprint
        unknown = not own.fingerprint and (had or reads_text)
        if not (found == own.fingerprint or unknown or key in allowed):
            raise OtherDataError(f"{key} '{asked}' is other data than this run's")
    except OtherDataError as error:
        raise UserError(
            f"{error}, from '{had}': take another --workdir, bring it back, or go on "
            f"with other data with --allow={key}"
        ) from None
    if found != own.fingerprint and not unknown:
        notes.append(f"as allowed, '{workdir}' goes on with '{asked}', not '{had}'")
    elif found != own.fingerprint and had:
        now = asked if setup.system.is_task else config.data.path
        notes.append(
            f"'{workdir}' kept no fingerprint of its data: it goes on with '{now}' as "
            "it is now"
        )
    if reads_text and not tokenizer:
        notes += _guess(
            str(workdir), setup.data, config.data.path, old.model.vocab_size
        )
    _check_config(old, config, workdir, allowed)
    for note in notes:
        log(f"note: {note}")
    return setup


def _check_config(
    old: ConfigDict, new: ConfigDict, workdir: pathlib.Path, allowed: Collection[str]
) -> None:
    """See `check_same_config`."""

    def changes_arrays(key: str) -> bool:
        if configs.options()[key].architecture:
            return True
        changed = copy.deepcopy(old)
        try:
            configs.override(changed, {key: configs.flatten(new)[key]})
            return _state_shapes(changed) != _state_shapes(old)
        except UserError:  # It does not go with the other fields.
            return True

    check_same_config(old, new, workdir, allowed, changes_arrays)


def _state_shapes(config: ConfigDict) -> Any:
    system, optimizer = build_system(config), optimizers.make_optimizer(config)
    init = functools.partial(fresh_state, system, optimizer)
    abstract = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def _keep_schedule(
    config: ConfigDict, old: ConfigDict, workdir: pathlib.Path
) -> list[str]:
    """Lets the learning rate fall as it did, however many steps are asked for now.

    Where the cosine ends follows from `steps` in a new run only: with another number
    the rate would jump.

    Returns:
      What to say about it.
    """
    c, end = config.optimizer, optimizers.schedule_end(old)
    begun = (workdir / "metrics.jsonl").exists()
    if c.rates or c.decay_steps or not begun or end == config.steps:
        return []
    c.decay_steps = end
    if config.steps == old.steps:
        return []
    curriculum = config.system == "sigma" and config.sigma.order == "curriculum"
    return [
        f"{config.steps} steps instead of {old.steps}: the learning rate keeps its "
        f"schedule, which ends at step {end} with {c.min_learning_rate:g}; to stretch "
        f"it: --config.optimizer.decay_steps={config.steps} "
        "--allow=optimizer.decay_steps"
        + ("; the curriculum is stretched" if curriculum else "")
    ]


@contextlib.contextmanager
def exclusive(setup: Setup, allowed: Collection[str] = ()) -> Iterator[None]:
    """Makes the folder of a run, and keeps other runs out of it meanwhile.

    Args:
      setup: from `prepare`.
      allowed: as there.

    Raises:
      UserError: if the folder cannot be written, or is being trained in.
    """
    # The first of several processes holds the lock for all.
    primary = jax.process_index() == 0
    with locked(setup.workdir) if primary else contextlib.nullcontext():
        if (setup.workdir / "config.json").exists():
            # Another process may have begun or gone on meanwhile.
            old = _read_run(setup.workdir)[0]
            _check_config(old, setup.config, setup.workdir, allowed)
        yield


def open_setup(
    config: ConfigDict,
    workdir: pathlib.Path,
    tokenizer: Tokenizer | None = None,
) -> Setup:
    """Resolves the config in place and opens all that it names; writes nothing.

    Args:
      config: of the run.
      workdir: of the run.
      tokenizer: to encode its text with; None makes that of `config.data`.

    Raises:
      UserError: if the data, the devices or the optimizer cannot be used.
    """
    system_class(config.system).resolve(config)
    mesh, optimizer = sharding.make_mesh(config), optimizers.make_optimizer(config)
    # Only the data knows its vocabulary, and only a system can open its data.
    wanted = config.model.vocab_size
    config.model.vocab_size = wanted or 1
    system = build_system(config)
    data = system.open_data(tokenizer)
    if wanted and wanted < data.vocab_size:
        raise UserError(
            f"model.vocab_size {wanted} is less than the {data.vocab_size} of the data"
            + (f": init_from '{config.init_from}' has it" if config.init_from else "")
        )
    if not wanted:
        config.model.vocab_size = data.vocab_size
        system = build_system(config)
    if data.fingerprint and not system.is_task:
        config.data.path = str(resolve_path(config.data))
    config.data.fingerprint = data.fingerprint
    initial_params = functools.partial(init_from_params, config)
    freeze = functools.partial(_freeze, config, data, workdir)
    return Setup(system, data, mesh, optimizer, workdir, initial_params, freeze)


def _freeze(config: ConfigDict, data: Dataset, workdir: pathlib.Path) -> None:
    """Writes config.json and tokenizer.json."""
    with writing(workdir):
        configs.save(config, workdir / "config.json")
        if data.tokenizer:
            tokenizer_files.save(data.tokenizer, workdir / "tokenizer.json")


def load_init_from(
    config: ConfigDict,
) -> tuple[ConfigDict, dict, Tokenizer | None]:
    """Returns the config, parameters and tokenizer that `config.init_from` names.

    Raises:
      UserError: if it is neither a run nor GPT-2 weights.
    """
    folder = configs.user_path(config.init_from)
    try:
        configs.load_frozen(folder)
    except UserError:
        try:
            original = formats.read_original("gpt2", config.init_from)
        except UserError as error:
            raise UserError(
                f"init_from '{config.init_from}' is neither a run nor GPT-2 weights "
                f"that can be read: {error}"
            ) from None
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


def adopt_architecture(
    config: ConfigDict, start: ConfigDict, given: Collection[str] = ()
) -> None:
    """Sets the architecture to that of the model that `config.init_from` names.

    Args:
      config: of the new run.
      start: of that model.
      given: keys that were set on the command line: used where the shapes of the
        parameters do not depend on them.

    Raises:
      UserError: for one that cannot be used, or a model of another system.
    """
    source = f"init_from '{config.init_from}'"
    if not issubclass(system_class(config.system), system_class(start.system)):
        raise UserError(
            f"{source} is a {start.system} model, but this config trains "
            f"{config.system}"
        )
    asked = {}
    had = configs.flatten(start)
    for key in configs.keys_that("architecture"):
        value = configs.flatten(config)[key]
        if key in given and value != had[key]:
            asked[key] = value
    configs.override(config, {k: had[k] for k in configs.keys_that("architecture")})
    shapes = _parameter_shapes(config)
    for key, value in asked.items():
        changed = configs.override(copy.deepcopy(config), {key: value})
        try:
            fits = _parameter_shapes(changed) == shapes
        except UserError:  # Fields that exclude each other.
            fits = False
        remedy = f"the parameters of {source} have that shape, leave it out"
        require(fits, key, repr(had[key]), value, remedy)
        log(f"note: {source} has {key}={had[key]}: {value} is used, as asked")
    configs.override(config, asked)


def _parameter_shapes(config: ConfigDict) -> Any:
    abstract = jax.eval_shape(build_system(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def _choose_tokenizer(
    config: ConfigDict, own: Tokenizer, given: Collection[str]
) -> Tokenizer | None:
    """Returns the tokenizer of `init_from`; None where another was asked for by name.

    Raises:
      UserError: for a vocabulary size that contradicts it.
    """
    source, c = f"init_from '{config.init_from}'", config.data
    kind = own.to_json()["kind"]
    other = "data.tokenizer" in given and c.tokenizer != kind
    if other or {"data.sentencepiece_model", "data.tokenizer_file"} & set(given):
        log(
            f"note: {source} was trained with another vocabulary ({kind}): "
            f"data.tokenizer={c.tokenizer} is used, as asked, and ids change meaning"
        )
        return None
    if "data.vocab_size" in given and kind == c.tokenizer:
        remedy = "its tokenizer is used, leave it out"
        fits = c.vocab_size in (0, own.vocab_size)
        rule = f"{own.vocab_size} as {source} has it"
        require(fits, "data.vocab_size", rule, c.vocab_size, remedy)
    name_tokenizer(config, own)
    return own
