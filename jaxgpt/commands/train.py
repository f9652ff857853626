"""Trains a run, or replays one of its steps."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import shlex
from collections.abc import Collection, Iterator

import jax
from ml_collections import ConfigDict

from jaxgpt import backend, cli
from jaxgpt import config as configs
from jaxgpt.commands.setup import exclusive, prepare
from jaxgpt.errors import CheckError, UserError, log, require
from jaxgpt.parallel import distributed
from jaxgpt.training.debug import replay_step
from jaxgpt.training.loop import Callback, Trainer, finished, go_on, loop
from jaxgpt.training.nonfinite import DivergedError
from jaxgpt.training.progress import Progress
from jaxgpt.training.signals import Interrupted, SignalHandler


def execute(
    args: argparse.Namespace,
    config: ConfigDict,
    workdir: str,
    allowed: Collection[str],
    given: Collection[str],
    smaller: str,
) -> int:
    """Joins the other processes, if any, and trains or replays."""
    shared = distributed.start(args)
    backend.set_up_jax()
    if shared:
        distributed.exit_when_one_is_lost()
    if args.replay is not None:
        return replay(config, configs.user_path(workdir), args.replay)
    try:
        status = train(config, workdir, allowed, given, smaller)
    except CheckError as error:  # In all processes alike.
        log(f"error: {error}")
        status = 1
    if shared:
        distributed.shutdown(status)
    return status


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    allowed: Collection[str] = (),
    given: Collection[str] = (),
    smaller: str = "",
    callback: Callback = go_on,
) -> int:
    """Trains a run to its last step, from wherever it stopped.

    Args:
      config: validated (see config.load).
      workdir: folder of the run, new or to resume.
      allowed, given: as in `setup.prepare`.
      smaller: the config file and variant to suggest if this one takes long.
      callback: see `training.loop.Callback`.

    Returns:
      The exit code: 0, or 128 + the signal that ended it.

    Raises:
      UserError, CheckError: see `jaxgpt.api.train`.
    """
    backend.use_float64(config.model.dtype)
    setup = prepare(config, configs.user_path(str(workdir)), allowed, given)
    last = finished(setup)
    if last is not None:
        log(
            f"'{setup.workdir}' is done: step {last} of {config.steps}; to train on: "
            f"--config.steps={2 * last}"
        )
        return 0
    backend.warn_if_uncached()
    with exclusive(setup, allowed), _out_of_memory(config):
        return _train(Trainer(setup, callback), smaller)


@contextlib.contextmanager
def _out_of_memory(config: ConfigDict) -> Iterator[None]:
    """Turns JAX's error for a device out of memory into a UserError with remedies."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = re.search(r"RESOURCE_EXHAUSTED: *(.*)", str(error))
        if not reason:
            raise
        raise UserError(
            f"the device is out of memory with batch_size {config.batch_size} "
            f"({reason[1][:150].rstrip('. ')}): raise accumulation, which computes "
            "fewer rows at once, or set model.remat=full, or model.loss_chunk=128"
        ) from None


def _train(trainer: Trainer, smaller: str) -> int:
    workdir, checkpoints = trainer.workdir, trainer.checkpoints
    quoted = shlex.quote(str(workdir))
    start, steps = trainer.step, trainer.config.steps
    progress = Progress(start, steps, smaller)
    progress.line(
        f"{workdir}: {trainer.parameters:,} parameters on {jax.device_count()} "
        f"{jax.devices()[0].device_kind}, "
        + (f"resuming after step {start} of {steps}" if start else f"{steps} steps")
    )
    single_process = jax.process_count() == 1
    try:
        with SignalHandler(single_process) as signal_handler:
            with contextlib.suppress(Interrupted):
                if trainer.owes_evaluation():
                    with signal_handler.interruptible():
                        evaluation = trainer.evaluate()
                    trainer.record_evaluation(evaluation, progress)
                loop(trainer, progress, signal_handler)
                if trainer.out_of_patience():
                    log(
                        f"stopped after step {trainer.step}: "
                        f"{trainer.config.patience} evaluations in a row were no "
                        "better than the best"
                    )
            number = distributed.max_over_processes(signal_handler.signal)
            if number:
                trainer.save(None)
            trainer.ensure_saved()
            trainer.profiler.close()
            if trainer.config.profile:
                progress.line(trainer.train_state.clock.report())
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A collective raises one or the other when a process is lost.
        if single_process:
            raise
        distributed.exit_after_loss(error)
    except DivergedError as error:
        checkpoints.report_errors(wait=True)
        raise CheckError(
            f"{error}; checkpoints kept: {checkpoints.listed()}. Lower "
            "optimizer.learning_rate or optimizer.grad_clip; to see where it began: "
            f"{cli.program('jaxgpt.train')} --workdir={quoted} --replay={error.step}"
        ) from None
    finally:
        progress.close()
        trainer.recorder.summarise()
        checkpoints.close()
    if trainer.step not in checkpoints.steps():
        raise CheckError(
            f"the state after step {trainer.step} is lost: it was not saved"
        )
    if number:
        log(f"stopped after step {trainer.step}; the same command resumes")
        return 128 + number
    log(f"done: {cli.program('jaxgpt.sample')} --workdir={quoted}")
    return 0


def replay(config: ConfigDict, workdir: pathlib.Path, step: int) -> int:
    """Replays a step of a run and prints where it is not finite; changes nothing.

    Returns:
      The exit code: 0 if all of the step is finite, else 1.

    Raises:
      UserError: if there is no such run or step.
    """
    frozen = configs.load_frozen(workdir)
    require(1 <= step <= config.steps, "--replay", f"in [1, {config.steps}]", step)
    backend.use_float64(frozen.model.dtype)
    found = replay_step(prepare(frozen, workdir), step)
    values = ", ".join(f"{k} {v:.9g}" for k, v in found.metrics.items())
    print(f"step {step}: {values}")
    if found.as_recorded is not None:
        answer = "" if found.as_recorded else "NOT "
        print(f"batch and metrics are {answer}those in '{found.record}'")
    if found.origin is None:
        print("every tensor of it is finite")
        return 0
    print(f"first not finite: {found.origin}")
    return 1
