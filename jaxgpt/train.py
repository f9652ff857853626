"""Train; the same command resumes.

python -m jaxgpt.train --config=configs/sigma_char.py:laptop
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxgpt import cli, distributed
from jaxgpt import config as configs
from jaxgpt.errors import UserError, log
from jaxgpt.interruption import Interrupted, Interruption

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from jaxgpt.metrics import Progress
    from jaxgpt.systems import System

SLOW = 15 * 60
RETRY_WAIT_S = 1.0


class Trainer:
    """One run: its state, its files, and how they advance."""

    def __init__(self, system: System, data: Any, workdir: pathlib.Path):
        import jax

        from jaxgpt import metrics, optim
        from jaxgpt.checkpoint import Checkpoints
        from jaxgpt.core import transformer
        from jaxgpt.guard import Guard
        from jaxgpt.profiling import Profiler
        from jaxgpt.stepper import Stepper

        self.system, self.data, self.config = system, data, system.config
        self.workdir = workdir
        c = self.config
        leads = jax.process_index() == 0
        self.checkpoints = Checkpoints(workdir, c.keep)
        self.stepper = Stepper(system, data, self.checkpoints)
        self.rate = optim.schedule(c)
        self.recorder = metrics.Recorder(
            workdir,
            self.step,
            metrics.open_trackers(c, workdir) if leads else [],
            writes=leads,
        )
        self.agreement = distributed.Agreement(self.stepper.layout.mesh)
        self.profiler = Profiler(c, workdir)
        self.guard = Guard(self.stepper, workdir)
        self.tokens_per_step = c.batch_size * system.predicted
        self.parameters = transformer.count_parameters(self.stepper.state["params"])
        flops = transformer.flops_per_token(system.model_config, self.parameters)
        self.slow_device = jax.default_backend() == "cpu"
        peak = metrics.peak_flops(jax.devices()[0].device_kind)
        self.mfu = flops / (peak * jax.device_count()) if peak else None

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.stepper.step

    def evaluate(self) -> dict[str, float]:
        """Returns train and validation losses over the same windows every time."""
        from jaxgpt.evaluate import means
        from jaxgpt.step import averaged

        c, params = self.config, averaged(self.stepper.state)
        result: dict[str, float] = {}
        for split in ("train", "val"):
            tokens = self.data.fixed(split, self.system.window, c.eval_sequences)
            rows = c.batch_size // c.accumulation
            nll = self.system.scores(params, tokens, rows, c.seed, self.stepper.layout)
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

    def due(self, interval: int) -> bool:
        """Returns whether this step ends an interval, or the run."""
        return self.step % interval == 0 or self.step == self.config.steps

    def owes_evaluation(self) -> bool:
        """Returns whether this step's evaluation is not on record."""
        rows = self.recorder.rows
        done = rows and rows[-1]["step"] == self.step and "val_loss" in rows[-1]
        return self.due(self.config.eval_interval) and not done

    def out_of_patience(self) -> bool:
        """Returns whether the best validation loss was too many evaluations ago."""
        from jaxgpt.metrics import out_of_patience

        return out_of_patience(self.recorder.rows, self.config.patience)

    def record(self, evaluation: dict[str, float], progress: Progress) -> None:
        """Writes down and shows an evaluation of this step."""
        tokens = self.step * self.tokens_per_step
        self.recorder.write({"step": self.step, "tokens": tokens} | evaluation)
        self.recorder.summarise(last=False)
        progress.evaluated(self.step, evaluation)

    def save(self, evaluation: dict[str, float] | None) -> None:
        """Starts saving a checkpoint; an evaluation of this step ranks it.

        A folder that was moved or removed meanwhile is made whole again.
        """
        from jaxgpt.run import freeze

        if not (self.workdir / "config.json").exists():
            log(f"warning: '{self.workdir}' is gone: writing it again")
            self.workdir.mkdir(parents=True, exist_ok=True)
            freeze(self.config, self.data, self.workdir)
        self.checkpoints.save(self.step, self.stepper.saved(), evaluation)

    def make_sure(self) -> None:
        """Waits for the last save, and tries once more where it failed."""
        self.checkpoints.report_errors(wait=True)
        if self.step not in self.checkpoints.steps():
            # Threads of the failed save may write to the folder that is made anew.
            time.sleep(RETRY_WAIT_S)
            self.save(None)

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


def loop(trainer: Trainer, progress: Progress, interruption: Interruption) -> None:
    """Advances a run to its last step, or until it is interrupted.

    Raises:
      DivergedError: where the loss or the gradient is not finite; the checkpoints
        kept are from before.
      Interrupted: where an evaluation was broken off.
    """
    c, recorder, guard = trainer.config, trainer.recorder, trainer.guard
    clock, profiler = trainer.stepper.clock, trainer.profiler
    pending = None
    marked, mark = trainer.step, time.perf_counter()
    suggested = not trainer.slow_device
    stops = trainer.out_of_patience()
    while (
        trainer.step < c.steps
        and not stops
        and not trainer.agreement.ask(interruption.signal)
    ):
        profiler.before(trainer.step + 1)
        metrics = trainer.stepper.run_step()
        step = trainer.step
        profiler.after(step, metrics)
        if pending is not None:
            # The step before: the device stays busy with this one meanwhile.
            with clock.part("device"):
                guard.check(pending, step - 1)
        pending = metrics
        evaluates, saves = (
            trainer.due(c.eval_interval),
            trainer.due(c.checkpoint_interval),
        )
        if not (evaluates or saves or step % c.log_interval == 0):
            continue
        with clock.part("device"):
            values, pending = guard.check(metrics, step), None
        row = trainer.row(values, (step - marked) / (time.perf_counter() - mark))
        recorder.write(row)
        progress.update(step, row)
        evaluation = None
        if evaluates:
            with interruption.evaluating(), clock.part("evaluation"):
                evaluation = trainer.evaluate()
            trainer.record(evaluation, progress)
            stops = trainer.out_of_patience()
        with clock.part("checkpoint"):
            trainer.checkpoints.report_errors()
            if saves or stops:
                trainer.save(evaluation)
        if not suggested and step - progress.start >= 2 * c.log_interval:
            suggested = True
            progress.suggest(SLOW)
        marked, mark = step, time.perf_counter()
    if stops:
        log(
            f"stopped after step {trainer.step}: {c.patience} evaluations in a row "
            "were no better than the best"
        )


def train(
    config: ConfigDict, workdir: str | pathlib.Path, allowed: Sequence[str] = ()
) -> int:
    """Trains a run to its last step, from wherever it stands.

    Args:
      config: validated (see config.load).
      workdir: folder of the run; made, or resumed from.
      allowed: keys in which config may differ from the run's.

    Returns:
      The exit code: 0, 1 where the loss diverged, 128 + the signal that ended it.

    Raises:
      UserError: for input that cannot be used.
      CheckError: for an evaluation that cannot be right.
    """
    from jaxgpt import systems

    # Before all else is loaded: a file that cannot be used is said at once.
    systems.kind(config.system).resolve(config)
    from jaxgpt.run import adopt_start, claim, open_system

    workdir = configs.user_path(str(workdir))
    cli.use_float64(config.model.dtype)
    if config.init_from:
        adopt_start(config, workdir)
    system, data = open_system(config)
    with claim(config, data, workdir, allowed):
        return _train(Trainer(system, data, workdir), workdir)


def _train(trainer: Trainer, workdir: pathlib.Path) -> int:
    import jax

    from jaxgpt.guard import DivergedError
    from jaxgpt.metrics import Progress

    start, steps = trainer.step, trainer.config.steps
    progress = Progress(start, steps)
    progress.line(
        f"{workdir}: {trainer.parameters:,} parameters on {jax.device_count()} "
        f"{jax.devices()[0].device_kind}, "
        + (f"resuming after step {start} of {steps}" if start else f"{steps} steps")
    )
    try:
        with Interruption(alone=jax.process_count() == 1) as interruption:
            with contextlib.suppress(Interrupted):
                if trainer.owes_evaluation():
                    with interruption.evaluating():
                        evaluation = trainer.evaluate()
                    trainer.record(evaluation, progress)
                loop(trainer, progress, interruption)
            interruption.signal = distributed.agree(interruption.signal)
            if interruption.signal:
                trainer.save(None)
            trainer.make_sure()
            trainer.profiler.close()
            if trainer.config.profile:
                progress.line(trainer.stepper.clock.report())
    except jax.errors.JaxRuntimeError:
        if jax.process_count() == 1:
            raise
        distributed.leave()
    except DivergedError as error:
        trainer.checkpoints.report_errors(wait=True)
        kept = ", ".join(map(str, trainer.checkpoints.steps())) or "none"
        log(
            f"error: {error}; checkpoints kept: {kept}. Lower "
            "optimizer.learning_rate or optimizer.grad_clip; to see where it began: "
            f"python -m jaxgpt.train --workdir={workdir} --replay={error.step}"
        )
        return 1
    finally:
        progress.close()
        trainer.recorder.summarise()
        trainer.checkpoints.close()
    if trainer.step not in trainer.checkpoints.steps():
        log(f"error: the state after step {trainer.step} is lost: it was not saved")
        return 1
    if interruption.signal:
        log(f"stopped after step {trainer.step}; the same command resumes")
        return 128 + interruption.signal
    log(f"done: python -m jaxgpt.sample --workdir={workdir}")
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
    parser.add_argument(
        "--allow",
        default="",
        help="config keys, with commas, that may differ from those the run has",
    )
    parser.add_argument(
        "--replay",
        type=int,
        help="redo this step of the run in --workdir, change nothing, and name the "
        "first tensor in it that is not finite",
    )
    distributed.add_options(parser)
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
    allowed = [key for key in args.allow.split(",") if key]
    for key in allowed:
        configs.check_key(key)
    shared = distributed.start(args)
    cli.set_up_jax()
    if args.replay is not None:
        from jaxgpt.replay import replay

        return replay(config, configs.user_path(workdir), args.replay)
    status = train(config, workdir, allowed)
    if shared:
        import jax

        jax.distributed.shutdown()
    return status


if __name__ == "__main__":
    cli.main(command)
