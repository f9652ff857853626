"""A new run that starts from another model's weights (`init_from`)."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxgpt import config as configs
from jaxgpt import run
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log, require
from jaxgpt.run import Run
from jaxgpt.systems.registry import build_system, system_class
from jaxgpt.systems.sigma import from_causal
from jaxgpt.training.run_folder import name_tokenizer


def load(config: ConfigDict) -> Run:
    """Returns the model that `config.init_from` names.

    Raises:
      UserError: if it is neither a run nor weights of GPT-2 or nanoGPT.
    """
    try:
        return run.load(config.init_from, notify=lambda note: None)
    except UserError as error:
        importable = " --" in str(error)  # Names an option that training has not.
        end = ": these are options of convert, which imports it" if importable else ""
        raise UserError(f"init_from {error}{end}") from None


def initial_params(config: ConfigDict, fresh: dict) -> dict:
    """Returns the parameters of `config.init_from`; without one, fresh ones.

    Raises:
      UserError: if a shape differs.
    """
    if not config.init_from:
        return fresh
    start = load(config)
    params, size = start.params, config.model.block_size
    tables = params.get("positions", {})
    if "table" in tables and _can_crop(start.config, size):
        crop = lambda table: table[:size]
        params = params | {"positions": jax.tree.map(crop, tables)}
    if from_causal.applies(config, start.config):
        model = build_system(config).model_config
        found = from_causal.initial_params(params, fresh, model)
    else:
        found = {**fresh, **params}
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    if shapes(found) != shapes(fresh):
        raise UserError(
            f"init_from '{config.init_from}' has parameters of other shapes than this "
            "config: use the same model.* settings"
        )
    return jax.tree.map(lambda array, new: array.astype(new.dtype), found, fresh)


def adopt_architecture(
    config: ConfigDict, start: ConfigDict, given: Collection[str] = ()
) -> None:
    """Sets the architecture to that of the model that `config.init_from` names.

    Args:
      config: of the new run.
      start: of that model.
      given: keys set on the command line: kept unless they change the shapes of
        parameters, of which only learned positions can be cropped.

    Raises:
      UserError: for a value that changes shapes, or a model of another system.
    """
    source = f"init_from '{config.init_from}'"
    becomes_sigma = from_causal.applies(config, start)
    if becomes_sigma:
        try:
            start = from_causal.as_sigma(start)
        except UserError as error:
            raise UserError(f"{source} is a causal model: {error}") from None
    if not issubclass(system_class(config.system), system_class(start.system)):
        raise UserError(
            f"{source} is a {start.system} model, but this config trains "
            f"{config.system}"
        )
    keys = configs.keys_that("architecture")
    had, now = configs.flatten(start), configs.flatten(config)
    wanted = {k: now[k] for k in keys if k in given and now[k] != had[k]}
    configs.override(config, {key: had[key] for key in keys})
    shapes = _parameter_shapes(config)
    for key, value in wanted.items():
        changed = configs.override(copy.deepcopy(config), {key: value})
        try:
            fits = _parameter_shapes(changed) == shapes
        except UserError:  # Fields that exclude each other.
            fits = False
        if key == "model.block_size":
            fits = fits or _can_crop(start, value)
        remedy = f"the parameters of {source} have that shape: leave it out"
        require(fits, key, repr(had[key]), value, remedy)
        log(f"note: {source} has {key}={had[key]}: {value} is used instead")
    configs.override(config, wanted)
    if becomes_sigma:
        begins = "starts at its left-to-right loss"
        if config.sigma.begin_token:
            begins = "adds a new beginning token"
        log(
            f"note: {source} is a causal model: this run trains σ-GPT from its weights "
            f"and {begins}"
        )


def _can_crop(start: ConfigDict, block_size: int) -> bool:
    """Returns whether a model can have a smaller block, as nanoGPT crops one."""
    # A begin token's position comes after those of the block.
    return block_size < start.model.block_size and not start.sigma.begin_token


def _parameter_shapes(config: ConfigDict) -> Any:
    abstract = jax.eval_shape(build_system(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def choose_tokenizer(
    config: ConfigDict, own: Tokenizer, given: Collection[str]
) -> Tokenizer | None:
    """Returns the tokenizer of `init_from`; None if another one was named.

    Raises:
      UserError: for a vocabulary size that contradicts it.
    """
    source, c = f"init_from '{config.init_from}'", config.data
    kind = own.to_json()["kind"]
    other = "data.tokenizer" in given and c.tokenizer != kind
    if other or {"data.sentencepiece_model", "data.tokenizer_file"} & set(given):
        log(
            f"note: {source} was trained with another vocabulary ({kind}): "
            f"data.tokenizer={c.tokenizer} replaces it, and ids change meaning"
        )
        return None
    if "data.vocab_size" in given and kind == c.tokenizer:
        fits = c.vocab_size in (0, own.vocab_size)
        rule, remedy = f"{own.vocab_size}, as in {source}", "leave it out"
        require(fits, "data.vocab_size", rule, c.vocab_size, remedy)
    name_tokenizer(config, own)
    return own
