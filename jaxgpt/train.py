"""Train; the same command resumes.

python -m jaxgpt.train --config=configs/sigma_char.py:laptop
"""

from __future__ import annotations

import math
import os
import pathlib
import signal
import time
from typing import TYPE_CHECKING, Any

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.config import UserError

if TYPE_CHECKING:
    import jax
    from ml_collections import ConfigDict

    from jaxgpt.metrics import Progress
    from jaxgpt.systems import System

SLOW = 15 * 60


class DivergedError(Exception):
    """The loss is no finite number any more."""


class Interruption:
    """Turns the first SIGINT or SIGTERM into a flag; a second SIGINT quits at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os._exit(130)
        self.signal = number
        cli.say(f"{signal.Signals(number).name}: saving a checkpoint, then leaving")


class Trainer:
    """One run: its state, its files, and how they advance."""

    def __init__(self, system: System, data: Any, workdir: pathlib.Path):
        import jax

        from jaxgpt import metrics, optim, sharding
        from jaxgpt.checkpoint import Checkpoints
        from jaxgpt.core import random, transformer
        from jaxgpt.run import read_start
        from jaxgpt.step import init_state, make_step

        self.system, self.data, self.config = system, data, system.config
        self.workdir = workdir
        c = self.config
        mesh = sharding.make_mesh(c.batch_size // c.accumulation)
        everywhere, self.rows = sharding.replicated(mesh), sharding.by_row(mesh)
        optimizer = optim.make(c)
        self.rate = optim.schedule(c)

        def init(key):
            return init_state(system.init(key), optimizer, c.optimizer.ema_decay > 0)

        key = random.stream(c.seed, "params")
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere),
            jax.eval_shape(init, key),
        )
        self.checkpoints = Checkpoints(workdir, c.keep)
        restored = self.checkpoints.restore_newest(abstract)
        self.state: dict[str, Any]
        if restored:
            self.step, self.state = restored
        else:
            self.step, self.state = 0, jax.jit(init, out_shardings=everywhere)(key)
            if c.init_from:
                given = read_start(c)[1]
                for name in {"params", "ema"} & self.state.keys():
                    self.state[name] = jax.device_put(given, everywhere)
        self.advance = make_step(system, optimizer)
        self.recorder = metrics.Recorder(
            workdir, self.step, metrics.open_trackers(c, workdir)
        )
        self.tokens_per_step = c.batch_size * system.predicted
        self.parameters = transformer.count_parameters(self.state["params"])
        flops = transformer.flops_per_token(system.model_config, self.parameters)
        self.slow_device = jax.default_backend() == "cpu"
        peak = metrics.peak_flops(jax.devices()[0].device_kind)
        self.mfu = flops / (peak * jax.device_count()) if peak else None

    def run_step(self) -> dict[str, jax.Array]:
        """Starts one optimizer step; returns its metrics, not yet computed."""
        import jax
        import numpy as np

        c = self.config
        tokens = self.data.batch_at(
            c.seed, "train", self.step, c.batch_size, self.system.window
        )
        self.state, metrics = self.advance(
            self.state, np.int32(self.step), jax.device_put(tokens, self.rows)
        )
        self.step += 1
        return metrics

    def evaluate(self) -> dict[str, float]:
        """Returns train and validation losses over the same windows every time."""
        from jaxgpt.evaluate import means, scores
        from jaxgpt.step import averaged

        c, params = self.config, averaged(self.state)
        result: dict[str, float] = {}
        for split in ("train", "val"):
            tokens = self.data.fixed(split, self.system.window, c.eval_sequences)
            rows = c.batch_size // c.accumulation
            nll = scores(self.system, params, tokens, rows, c.seed)
            found = means(nll)
            if split == "val":
                found |= self.system.figures(tokens, nll[""])
                curves = self.system.by_position(tokens, nll[""])
                self.recorder.write_positions(curves)
            pictures = self.workdir / "pictures" if split == "val" else None
            found |= self.system.demonstrate(
                params, self.data, split, pictures, f"{self.step:07}"
            )
            result |= {f"{split}_{name}": value for name, value in found.items()}
        return result

    def save(self, evaluation: dict[str, float] | None) -> None:
        """Starts saving a checkpoint; an evaluation of this step ranks it."""
        self.checkpoints.save(self.step, self.state, evaluation)

    def row(self, values: dict[str, float], pace: float) -> dict[str, float]:
        """Returns a row of metrics.jsonl; pace is in steps per second."""
        row = {
            "step": self.step,
            "tokens": self.step * self.tokens_per_step,
            "learning_rate": float(self.rate(self.step - 1)),
            "tokens_per_second": pace * self.tokens_per_step,
        }
        if self.mfu:
            row["mfu"] = self.mfu * row["tokens_per_second"]
        return row | values


def finite(metrics: dict[str, jax.Array], step: int) -> dict[str, float]:
    """Waits for the metrics of a step; raises DivergedError where one is not finite."""
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"step {step}: the {name} is {value}")
    return values


def loop(trainer: Trainer, progress: Progress, interruption: Interruption) -> None:
    """Advances a run to its last step, or until it is interrupted.

    Raises:
      DivergedError: where the loss or the gradient is not finite; the checkpoints
        kept are from before.
    """
    c, recorder = trainer.config, trainer.recorder
    pending = None
    marked, mark = trainer.step, time.perf_counter()
    suggested = not trainer.slow_device
    while trainer.step < c.steps and not interruption.signal:
        metrics = trainer.run_step()
        step = trainer.step
        if pending is not None:
            # The step before: the device stays busy with this one meanwhile.
            finite(pending, step - 1)
        pending = metrics
        evaluates = step % c.eval_interval == 0 or step == c.steps
        saves = step % c.checkpoint_interval == 0 or step == c.steps
        if not (evaluates or saves or step % c.log_interval == 0):
            continue
        values = finite(metrics, step)
        row = trainer.row(values, (step - marked) / (time.perf_counter() - mark))
        evaluation = trainer.evaluate() if evaluates else None
        recorder.write(row | (evaluation or {}))
        progress.update(step, row)
        if evaluation:
            recorder.summarise()
            progress.evaluated(step, evaluation)
        if saves:
            trainer.save(evaluation)
        if not suggested and step - progress.start >= 2 * c.log_interval:
            suggested = True
            progress.suggest(SLOW)
        pending = None
        marked, mark = step, time.perf_counter()


def train(config: ConfigDict, workdir: str | pathlib.Path) -> int:
    """Trains a run to its last step, from wherever it stands.

    Args:
      config: validated (see config.load).
      workdir: folder of the run; made, or resumed from.

    Returns:
      The exit code: 0, 1 where the loss diverged, 128 + the signal that ended it.

    Raises:
      UserError: for input that cannot be used.
      CheckError: for an evaluation that cannot be right.
    """
    import jax

    from jaxgpt.metrics import Progress
    from jaxgpt.run import adopt_start, prepare

    workdir = configs.user_path(str(workdir))
    cli.use_float64(config.model.dtype)
    if config.init_from:
        adopt_start(config, workdir)
    system, data = prepare(config, workdir)
    trainer = Trainer(system, data, workdir)
    start, steps = trainer.step, system.config.steps
    progress = Progress(start, steps)
    progress.line(
        f"{workdir}: {trainer.parameters:,} parameters on {jax.device_count()} "
        f"{jax.devices()[0].device_kind}, "
        + (f"resuming after step {start} of {steps}" if start else f"{steps} steps")
    )
    try:
        with Interruption() as interruption:
            if start == 0:
                evaluation = trainer.evaluate()
                trainer.recorder.write({"step": 0, "tokens": 0} | evaluation)
                progress.evaluated(0, evaluation)
            loop(trainer, progress, interruption)
            if interruption.signal:
                trainer.save(None)
    except DivergedError as error:
        trainer.checkpoints.report_errors(wait=True)
        kept = ", ".join(map(str, trainer.checkpoints.steps())) or "none"
        cli.say(
            f"error: {error}; checkpoints kept: {kept}. Lower "
            "optimizer.learning_rate or optimizer.grad_clip"
        )
        return 1
    finally:
        progress.close()
        trainer.recorder.summarise()
        trainer.checkpoints.close()
    if trainer.step not in trainer.checkpoints.steps():
        cli.say(f"error: the state after step {trainer.step} is lost: it was not saved")
        return 1
    if interruption.signal:
        cli.say(f"stopped after step {trainer.step}; the same command resumes")
        return 128 + interruption.signal
    cli.say(f"done: python -m jaxgpt.sample --workdir={workdir}")
    return 0


def default_workdir(spec: str) -> str:
    """Returns runs/NAME or runs/NAME-variant for configs/NAME.py[:variant]."""
    path, _, variant = spec.partition(":")
    return f"runs/{pathlib.Path(path).stem}" + (f"-{variant}" if variant else "")


def command(argv: list[str]) -> int:
    """Parses arguments, config overrides among them, and trains."""
    options, overrides = configs.split_overrides(argv)
    parser = cli.Parser("jaxgpt.train", __doc__, epilog=configs.describe_fields())
    parser.add_argument(
        "--config",
        help="configs/NAME.py or configs/NAME.py:variant; without it, the run in "
        "--workdir goes on with the config it has",
    )
    parser.add_argument("--workdir", help="default: runs/NAME or runs/NAME-variant")
    args = parser.parse_args(options)
    if args.config:
        config = configs.load(args.config, overrides)
        workdir = args.workdir or default_workdir(args.config)
    elif args.workdir:
        workdir = args.workdir
        frozen = configs.load_frozen(configs.user_path(workdir))
        config = configs.validate(configs.override(frozen, overrides))
    else:
        raise UserError("give --config=configs/NAME.py, or --workdir of a run to go on")
    cli.set_up_jax()
    return train(config, workdir)


if __name__ == "__main__":
    cli.main(command)
