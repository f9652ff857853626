"""Imports an original's weights as a run, or exports a run's."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import optax

from jaxgpt import backend, cli
from jaxgpt import config as configs
from jaxgpt.data import huggingface, tokenizers
from jaxgpt.errors import UserError, log
from jaxgpt.interop import rules
from jaxgpt.interop.base import Original
from jaxgpt.interop.formats import get_format
from jaxgpt.model.layers import count_parameters
from jaxgpt.run import Run, open_run
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints


def execute(args: argparse.Namespace) -> None:
    """Imports or exports, and prints what."""
    backend.set_up_jax()
    workdir = configs.user_path(args.workdir)
    if args.source is not None:
        done = import_run(
            args.format, args.source, workdir, args.source_config, args.tokenizer
        )
    else:
        output = configs.user_path(args.output)
        export_run(args.format, open_run(args.workdir, args.step), output)
        done = {"output": str(output)}
    if args.json:
        cli.print_json(done)
    else:
        print(", ".join(f"{name} {value}" for name, value in done.items()))


def import_run(
    name: str,
    source_path: str,
    workdir: pathlib.Path,
    settings_file: str | None = None,
    tokenizer_file: str | None = None,
) -> dict[str, Any]:
    """Imports an original's weights, and its optimizer state if it has one, as a run.

    Args:
      name: a key of `FORMATS`.
      source_path, settings_file: as in `Format.read`.
      workdir: of the run; must not hold one.
      tokenizer_file: a tokenizer.json to attach, ours or Hugging Face's, or a folder
        that holds one.

    Returns:
      What was imported: parameters, layers, heads, step, whether moments came along.

    Raises:
      UserError: for a source that does not fit; nothing is written then.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--workdir '{workdir}' is not empty: name a new folder")
    original = get_format(name).read(source_path, settings_file)
    config, params = original.config, original.params
    tokenizer, notes = _read_tokenizer(name, tokenizer_file, original)
    opt_state = optimizers.make_optimizer(config).init(params)
    if original.moments:
        count = jax.numpy.int32(original.count)
        opt_state = optax.tree.set(opt_state, **original.moments, count=count)
    configs.make_folder(workdir)
    configs.save(config, workdir / "config.json")
    if tokenizer:
        tokenizers.save_tokenizer(tokenizer, workdir / "tokenizer.json")
    checkpoints = Checkpoints(workdir)
    state = jax.device_put({"params": params, "opt_state": opt_state})
    checkpoints.save(original.step, state, None)
    checkpoints.close()
    if original.step not in checkpoints.steps():
        raise UserError(
            f"'{workdir}': the checkpoint could not be written: free some disk space"
        )
    for note in (*original.notes, *notes):
        log(f"note: '{source_path}': {note}")
    return {
        "workdir": str(workdir),
        "parameters": count_parameters(params),
        "n_layer": config.model.n_layer,
        "n_head": config.model.n_head,
        "step": original.step,
        "optimizer_state": original.moments is not None,
    }


def _read_tokenizer(
    name: str, file: str | None, original: Original
) -> tuple[tokenizers.Tokenizer | None, tuple[str, ...]]:
    size = original.config.model.vocab_size
    if file is None:
        return get_format(name).tokenizer(original.folder, size)
    tokenizer, notes = huggingface.read(configs.user_path(file))
    if tokenizer.vocab_size > size:
        raise UserError(
            f"--tokenizer '{file}' has {tokenizer.vocab_size} tokens, the model {size}"
        )
    return tokenizer, notes


def export_run(name: str, run: Run, output: pathlib.Path) -> None:
    """Exports a run's parameters as the original's program reads them.

    Args:
      name: a key of `FORMATS`.
      run: the restored run.
      output: a folder for gpt2, else a .pt or .npz file; must not exist.

    Raises:
      UserError: for a run of another architecture, or where PyTorch is needed and
        not installed.
    """
    form, model = get_format(name), run.config.model
    try:
        form.check_run(run.config)
    except UserError as error:
        raise UserError(f"'{run.workdir}' is not a {name}: {error}") from None
    if output.exists():
        raise UserError(f"--output '{output}' exists: name a new path")
    if form.suffixes:
        cli.output_path("output", str(output), form.suffixes)
    state = rules.to_torch(run.params, form.rules(model))
    try:
        form.write(output, state, model, run.step)
    except OSError as error:
        raise UserError(
            f"--output '{output}' cannot be written: {error.strerror or error}"
        ) from None
