"""Opens what training needs, for a new run or a resumed one."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Collection, Iterator

import jax
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt.commands import init_from
from jaxgpt.data import tokenizer_files
from jaxgpt.data.cache import OtherDataError, resolve_path
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log
from jaxgpt.parallel import sharding
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.training.optimizers import make_optimizer
from jaxgpt.training.resume import check_same_config, keep_schedule
from jaxgpt.training.run_folder import (
    assume_vocabulary,
    locked,
    read_run,
    require_text,
)
from jaxgpt.training.train_state import Setup


def prepare(
    config: ConfigDict,
    workdir: pathlib.Path,
    allowed: Collection[str] = (),
    given: Collection[str] = (),
) -> Setup:
    """Opens everything that training needs; writes nothing.

    Args:
      config: validated; resolved in place.
      workdir: of the run, new or resumed.
      allowed: keys that may differ from the run's config, besides the resumable ones.
      given: keys set on the command line, rather than in a file.

    Raises:
      UserError: if the folder cannot be used, its run has another config or other
        data, or `init_from` does not fit.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir '{workdir}' is a file: name a folder")
    if (workdir / "config.json").exists():
        return _prepare_to_resume(config, workdir, allowed, given)
    tokenizer, named = None, {"data.path", "data.tokenizer"} & set(given)
    if config.init_from:
        start = init_from.load(config)
        tokenizer = start.tokenizer
        init_from.adopt_architecture(config, start.config, given)
        if tokenizer:
            tokenizer = init_from.choose_tokenizer(config, tokenizer, given)
        elif system_class(config.system).reads_text and not named:
            require_text(config, "", config.init_from, None)
    setup = open_setup(config, workdir, tokenizer)
    if config.init_from and not tokenizer and "data.tokenizer" not in given:
        c, data = config, setup.data
        for note in assume_vocabulary(
            c.init_from, data, c.data.path, c.model.vocab_size
        ):
            log(f"note: {note}")
    return setup


def _prepare_to_resume(
    config: ConfigDict,
    workdir: pathlib.Path,
    allowed: Collection[str],
    given: Collection[str],
) -> Setup:
    old, tokenizer = read_run(workdir)
    if config.init_from:
        # A run that has begun does not need its source: its config has the shapes.
        adopted = [k for k in configs.keys_that("architecture") if k not in given]
        adopted += [] if "data.tokenizer" in given else ["data.tokenizer"]
        values = configs.flatten(old)
        configs.override(config, {key: values[key] for key in adopted})
    elif config.data.tokenizer == configs.load_frozen(workdir).data.tokenizer:
        config.data.tokenizer = old.data.tokenizer
    if not old.data.path and "data.path" not in given:
        require_text(old, "", workdir, tokenizer)
    if tokenizer and not config.model.vocab_size:
        config.model.vocab_size = old.model.vocab_size
    notes = keep_schedule(config, old, workdir)
    setup = _open_run_data(config, old, workdir, tokenizer, allowed, notes)
    check_same_config(old, config, workdir, allowed)
    for note in notes:
        log(f"note: {note}")
    return setup


def _open_run_data(
    config: ConfigDict,
    old: ConfigDict,
    workdir: pathlib.Path,
    tokenizer: Tokenizer | None,
    allowed: Collection[str],
    notes: list[str],
) -> Setup:
    """Opens a setup with the run's data, or other data where that is allowed.

    Adds to `notes` what the user should be told once the config is accepted.
    """
    system = system_class(old.system)
    key = "task.path" if system.is_task else "data.path"
    own = old.data.fingerprint
    asked, had = (configs.flatten(c)[key] for c in (config, old))
    config.data.fingerprint = "" if key in allowed else own
    try:
        setup = open_setup(config, workdir, tokenizer)
        found = setup.data.fingerprint
        unknown = not own and (had or system.reads_text)
        if not (found == own or unknown or key in allowed):
            raise OtherDataError(f"{key} '{asked}' is other data than this run's")
    except OtherDataError as error:
        raise UserError(
            f"{error}, from '{had}': restore it, use another --workdir, or "
            f"continue with other data: --allow={key}"
        ) from None
    if found != own and not unknown:
        notes.append(f"as allowed, '{workdir}' continues with '{asked}', not '{had}'")
    elif found != own and had:
        now = asked if setup.system.is_task else config.data.path
        notes.append(
            f"'{workdir}' kept no fingerprint of its data: it continues with '{now}' "
            "as it is now"
        )
    if system.reads_text and not tokenizer:
        path, known = config.data.path, old.model.vocab_size
        notes += assume_vocabulary(str(workdir), setup.data, path, known)
    return setup


@contextlib.contextmanager
def exclusive(setup: Setup, allowed: Collection[str] = ()) -> Iterator[None]:
    """Makes the folder of a run and locks it.

    Args:
      setup: from `prepare`.
      allowed: as in `prepare`.

    Raises:
      UserError: if the folder cannot be written, or another process trains in it.
    """
    # The first of several processes holds the lock for all.
    primary = jax.process_index() == 0
    with locked(setup.workdir) if primary else contextlib.nullcontext():
        if (setup.workdir / "config.json").exists():
            # Another process may have begun or resumed the run in the meantime.
            old = read_run(setup.workdir)[0]
            check_same_config(old, setup.config, setup.workdir, allowed)
        yield


def open_setup(
    config: ConfigDict,
    workdir: pathlib.Path,
    tokenizer: Tokenizer | None = None,
) -> Setup:
    """Resolves the config in place and opens everything that it names; writes nothing.

    Args:
      tokenizer: for its text; None makes that of `config.data`.

    Raises:
      UserError: if the data, the devices or the optimizer cannot be used.
    """
    system_class(config.system).resolve(config)
    mesh, optimizer = sharding.make_mesh(config), make_optimizer(config)
    # Only the data knows its vocabulary, and only a system can open its data.
    wanted = config.model.vocab_size
    config.model.vocab_size = wanted or 1
    system = build_system(config)
    data = system.open_data(tokenizer)
    needed = system.vocab_size_for(data)
    if wanted and wanted < needed:
        raise UserError(
            f"model.vocab_size {wanted} is less than the {needed} of the data"
            + (" and the end-of-gap token" if system.max_gap else "")
            + (f": init_from '{config.init_from}' has it" if config.init_from else "")
        )
    if not wanted:
        config.model.vocab_size = needed
        system = build_system(config)
    if data.fingerprint and not system.is_task:
        config.data.path = str(resolve_path(config.data))
    config.data.fingerprint = data.fingerprint
    initial_params = functools.partial(init_from.initial_params, config)
    freeze = functools.partial(_freeze, config, data, workdir)
    return Setup(system, data, mesh, optimizer, workdir, initial_params, freeze)


def _freeze(config: ConfigDict, data: Dataset, workdir: pathlib.Path) -> None:
    """Writes config.json and tokenizer.json."""
    with configs.writing(workdir):
        configs.save(config, workdir / "config.json")
        if data.tokenizer:
            tokenizer_files.save(data.tokenizer, workdir / "tokenizer.json")
