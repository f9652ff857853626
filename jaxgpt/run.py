"""Loads a run from its folder, or another model's weights as one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.data import tokenizer_files
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log
from jaxgpt.inference import Run
from jaxgpt.interop.base import Original
from jaxgpt.interop.formats import get_format
from jaxgpt.systems.registry import build_system, system_class, system_of
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, MismatchError
from jaxgpt.training.run_folder import name_tokenizer, read_run


def _override(config: ConfigDict, overrides: dict[str, str]) -> None:
    trained = config.system
    if "data.path" in overrides:
        config.data.fingerprint = ""
    configs.validate(configs.override(config, overrides))
    # The system that owns the fields decides which runs can be read with them.
    keys = [key for key in overrides if not key.startswith("data.")]
    groups = [key.partition(".")[0] for key in keys if "." in key]
    if keys:
        owner = system_of(groups[0]) if groups else config.system
        system_class(owner).check_overrides(trained, config)


def open_run(
    workdir: str, step: str = "best", overrides: dict[str, str] | None = None
) -> Run:
    """Restores the parameters of a run, checked against their digests.

    Args:
      workdir: folder of the run.
      step: "best", "last", or a number.
      overrides: changes of its config, from `cli.after_training_overrides`.

    Raises:
      UserError: if there is no run, no such checkpoint, or it is damaged.
    """
    folder = configs.user_path(workdir)
    config, tokenizer = read_run(folder)
    trained = copy.deepcopy(config)
    if overrides:
        _override(config, overrides)
    backend.use_float64(config.model.dtype)
    system = build_system(config)
    checkpoints = Checkpoints(folder, read_only=True)
    chosen = checkpoints.pick(step)
    # A run that averages its parameters is read with the average, as it evaluates.
    item = "ema" if config.optimizer.ema_decay else "params"
    abstract = {item: jax.eval_shape(system.init, jax.random.key(0))}
    try:
        params = checkpoints.restore(chosen, abstract)[item]
    except MismatchError as error:
        what = f"--config.{'/'.join(overrides)}" if overrides else "its config.json"
        raise UserError(f"'{workdir}' does not fit {what}: {error}") from None
    except DamagedError as error:
        others = checkpoints.listed(without=chosen)
        remedy = f"use another --step: there are {others}"
        if others == "none":
            remedy = "restore a copy, it has no other"
        raise UserError(
            f"checkpoint {chosen} of '{workdir}' is damaged ({error}): {remedy}"
        ) from None
    backend.warn_if_uncached()
    return Run(folder, config, system, params, chosen, tokenizer, trained)


def read_weights(
    form: str,
    source: str,
    source_config: str | None = None,
    tokenizer: str | None = None,
) -> tuple[Original, Tokenizer | None, tuple[str, ...]]:
    """Reads another program's weights, and the tokenizer that goes with them.

    Args:
      form: a key of `FORMATS`.
      source: .pt, .npz, .safetensors, a Hugging Face folder or a GPT-2 name.
      source_config: JSON with the original's configuration, if the source has none.
      tokenizer: tokenizer.json, ours or Hugging Face's, or a folder with one; by
        default the source's own.

    Returns:
      (the original, its tokenizer, notes for the user). The config names no text: what
      the weights were trained on is unknown, and further training must name one.

    Raises:
      UserError: for a source that does not fit.
    """
    original = get_format(form).read(source, source_config)
    size = original.config.model.vocab_size
    if tokenizer is None:
        found, notes = get_format(form).tokenizer(original.folder, size)
    else:
        found, notes = tokenizer_files.read_any(configs.user_path(tokenizer))
        if found.vocab_size > size:
            raise UserError(
                f"--tokenizer '{tokenizer}' has {found.vocab_size} tokens, the model "
                f"{size}"
            )
        if rest := size - found.vocab_size:
            notes += (
                f"{rest} of the model's {size} tokens have no text in '{tokenizer}'",
            )
    original.config.data.path = ""
    if found:
        name_tokenizer(original.config, found)
    return original, found, (*original.notes, *notes)


def load(
    path: str,
    step: str = "best",
    form: str = "",
    source_config: str | None = None,
    tokenizer: str | None = None,
    notify: Callable[[str], None] = log,
) -> Run:
    """Loads a run, or another program's weights; writes nothing.

    Args:
      path: folder of a run, or as `read_weights` takes it.
      step: of a run: "best", "last", or a number.
      form: of weights, a key of `FORMATS`; "" means nanoGPT for a .pt or .ckpt
        file, else GPT-2.
      source_config, tokenizer: of weights, see `read_weights`.
      notify: called with each note about weights.

    Raises:
      UserError: if it is neither, or damaged, or a run with options of weights.
    """
    folder = configs.user_path(path)
    try:
        configs.load_frozen(folder)
    except UserError:
        if (folder / "checkpoints").is_dir():
            raise
        form = form or ("nanogpt" if path.endswith((".pt", ".ckpt")) else "gpt2")
        try:
            original, found, notes = read_weights(form, path, source_config, tokenizer)
        except UserError as error:
            raise UserError(
                f"'{path}' is neither a run nor {form} weights that can be read: "
                f"{error}"
            ) from None
        for note in notes:
            notify(f"note: '{path}': {note}")
        c = original.config
        backend.use_float64(c.model.dtype)
        params = jax.tree.map(jnp.asarray, original.params)
        return Run(folder, c, build_system(c), params, original.step, found, c)
    for name, value in (
        ("format", form),
        ("source_config", source_config),
        ("tokenizer", tokenizer),
    ):
        if value:
            raise UserError(f"'{path}' is a run, and {name} is for weights: omit it")
    return open_run(path, step)
