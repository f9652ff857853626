"""Imports an original's weights as a run, or exports a run's."""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgpt import backend, cli
from jaxgpt import config as configs
from jaxgpt.data import tokenizer_files
from jaxgpt.data.arrays import read_json_object
from jaxgpt.errors import UserError, atomic_write, log, os_errors
from jaxgpt.interop import rules
from jaxgpt.interop.base import Export
from jaxgpt.interop.formats import get_format
from jaxgpt.model.layers import count_parameters
from jaxgpt.run import Run, open_run, read_weights
from jaxgpt.training import optimizers
from jaxgpt.training.checkpoint import Checkpoints, DamagedError

ADAM = "ScaleByAdamState"  # optax's name for it.
# The original's settings that a run has no field for: its export writes them back.
KEPT = "original.json"


def execute(args: argparse.Namespace) -> None:
    """Imports or exports, and prints a summary."""
    backend.set_up_jax(computes=False)
    done = convert(
        args.format,
        args.workdir,
        args.source,
        args.output,
        args.source_config,
        args.tokenizer,
        args.step,
    )
    if args.json:
        cli.print_json(done)
    else:
        print(", ".join(f"{name} {value}" for name, value in done.items()))


def convert(
    form: str,
    workdir: str,
    source: str | None,
    output: str | None,
    source_config: str | None = None,
    tokenizer: str | None = None,
    step: str = "best",
) -> dict[str, Any]:
    """Imports from a source or exports to an output: see `jaxgpt.api.convert`."""
    if (source is None) == (output is None):
        raise UserError("give source to import or output to export")
    if source is not None:
        folder = configs.user_path(workdir)
        return import_run(form, source, folder, source_config, tokenizer)
    path = configs.user_path(str(output))
    export_run(form, open_run(workdir, step), path, use_up=True)
    return {"output": str(path)}


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
      workdir: of the run; must be empty or missing.
      tokenizer_file: as in `run.read_weights`.

    Returns:
      What was imported: parameters, layers, heads, step, whether there were moments.

    Raises:
      UserError: for a source that does not fit; nothing is written then.
    """
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--workdir '{workdir}' is not empty: name a new folder")
    original, tokenizer, notes = read_weights(
        name, source_path, settings_file, tokenizer_file
    )
    config, params = original.config, original.params
    # AdamW starts from zeros. Arrays of the same shape share them, to save memory.
    abstract = jax.eval_shape(optimizers.make_optimizer(config).init, params)
    zeros = functools.cache(jnp.zeros)
    opt_state = jax.tree.map(lambda leaf: zeros(leaf.shape, leaf.dtype), abstract)
    if original.moments:
        # AdamW has counted fewer steps than the run if float16 gradients overflowed.
        opt_state = optax.tree.set(opt_state, count=jnp.int32(original.step))
        counted = lambda path, _: getattr(path[-1], "tuple_name", "") == ADAM
        opt_state = optax.tree.set(
            opt_state, counted, **original.moments, count=jnp.int32(original.count)
        )
    configs.make_folder(workdir)
    configs.save(config, workdir / "config.json")
    if original.kept:
        with atomic_write(workdir / KEPT) as stream:
            stream.write(json.dumps(original.kept) + "\n")
    if tokenizer:
        tokenizer_files.save(tokenizer, workdir / "tokenizer.json")
    state = {"params": params, "opt_state": opt_state}
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(state))
    # Orbax then holds copies of little more than one array at a time.
    checkpoints = Checkpoints(workdir, memory=largest + largest // 4 + 1)
    checkpoints.save(original.step, state, None)
    checkpoints.close()
    if original.step not in checkpoints.steps():
        raise UserError(
            f"'{workdir}': the checkpoint could not be written: free some disk space"
        )
    for note in notes:
        log(f"note: '{source_path}': {note}")
    return {
        "workdir": str(workdir),
        "parameters": count_parameters(params),
        "n_layer": config.model.n_layer,
        "n_head": config.model.n_head,
        "step": original.step,
        "optimizer_state": original.moments is not None,
    }


def export_run(name: str, run: Run, output: pathlib.Path, use_up: bool = False) -> None:
    """Exports a run's parameters in the form that the original program reads.

    Args:
      name: a key of `FORMATS`.
      run: the restored run.
      output: a folder for gpt2, else a .pt or .npz file; must not exist.
      use_up: save memory: the run's parameters cannot be used afterwards.

    Raises:
      UserError: for a run of another architecture, or if PyTorch is needed and not
        installed.
    """
    form, model = get_format(name), run.config.model
    try:
        form.check_run(run.config)
    except UserError as error:
        raise UserError(f"'{run.workdir}' is not a {name} model: {error}") from None
    if output.exists():
        raise UserError(f"--output '{output}' exists: name a new path")
    if form.suffixes:
        cli.output_path("output", str(output), form.suffixes)
    table, c = form.rules(model), run.config
    # What an import was trained on is unknown: its data.path is just a default.
    trained = (run.workdir / "metrics.jsonl").exists() and c.data.path
    named_after = configs.user_path(c.data.path) if trained else run.workdir
    kept = run.workdir / KEPT
    wanted = form.optimizer_key and output.suffix != ".npz"
    moments, count = _read_moments(run) if wanted else (None, 0)
    export = Export(
        state=rules.to_torch(run.params, table, use_up),
        config=c,
        step=run.step,
        rate=float(optimizers.learning_rate_schedule(c)(run.step)),
        dataset=named_after.resolve().stem,
        tokenizer=run.tokenizer,
        tokenizer_file=run.workdir / "tokenizer.json",
        val_loss=Checkpoints(run.workdir, read_only=True).val_loss(run.step),
        moments=moments
        and {k: rules.to_torch(m, table, use_up=True) for k, m in moments.items()},
        count=count,
        kept=read_json_object(kept) if kept.exists() else {},
    )
    with os_errors(f"--output '{output}' cannot be written"):
        form.write(output, export)
    if not form.suffixes or output.suffix != ".npz":
        for note in form.export_notes(export):
            log(f"note: '{output}': {note}")


def _read_moments(run: Run) -> tuple[dict[str, dict] | None, int]:
    """Returns (AdamW's "mu" and "nu", its count); (None, 0) if a run has none.

    Nor if the run keeps an average of its parameters: that is what is exported, and
    the moments do not belong to it.
    """
    c = run.config.optimizer
    if c.name != "adamw" or c.ema_decay:
        return None, 0
    abstract = jax.eval_shape(optimizers.make_optimizer(run.config).init, run.params)
    checkpoints = Checkpoints(run.workdir, read_only=True)
    try:
        state = checkpoints.restore(run.step, {"opt_state": abstract})["opt_state"]
    except DamagedError as error:
        raise UserError(
            f"checkpoint {run.step} of '{run.workdir}' is damaged ({error}): use "
            "another --step, or write an .npz file, which holds no moments"
        ) from None
    adam = optax.tree.get(state, ADAM)
    return {"mu": adam.mu, "nu": adam.nu}, int(adam.count)
