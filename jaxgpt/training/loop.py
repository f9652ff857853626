"""The training loop: a run, its state, its files, and how they advance."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxgpt.errors import log
from jaxgpt.model.config import count_parameters, flops_per_token
from jaxgpt.parallel import distributed
from jaxgpt.systems.base import System
from jaxgpt.systems.scoring import mean_losses
from jaxgpt.training import metrics, optimizers
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.metrics import Progress
from jaxgpt.training.nonfinite import NonFinitePolicy
from jaxgpt.training.profiling import Profiler
from jaxgpt.training.signals import SignalHandler
from jaxgpt.training.step import eval_params
from jaxgpt.training.train_state import TrainState

SLOW = 15 * 60
RETRY_WAIT_S = 1.0


class Trainer:
    """One run: its state, its files, and how they advance."""

    def __init__(
        self,
        system: System,
        data: Any,
        workdir: pathlib.Path,
        initial_params: Callable[[dict], dict] | None = None,
        freeze: Callable[[], None] | None = None,
    ):
        """Restores the run in workdir, or begins it.

        Args:
          system: what is trained.
          data: as of `System.open_data`.
          workdir: folder of the run.
          initial_params: maps fresh parameters to those that a new run begins with.
          freeze: writes what the folder holds beside checkpoints and metrics.
        """
        self.system, self.data, self.config = system, data, system.config
        self.workdir, self.freeze = workdir, freeze
        c = self.config
        is_primary = jax.process_index() == 0
        self.checkpoints = Checkpoints(workdir, c.keep)
        self.train_state = TrainState(
            system, data, self.checkpoints, initial_params=initial_params
        )
        self.rate = optimizers.learning_rate_schedule(c)
        self.recorder = metrics.Recorder(
            workdir,
            self.step,
            metrics.open_trackers(c, workdir) if is_primary else [],
            writes=is_primary,
        )
        self.agreement = distributed.PipelinedMax(self.train_state.layout.mesh)
        self.profiler = Profiler(c, workdir)
        self.guard = NonFinitePolicy(self.train_state, workdir)
        self.tokens_per_step = c.batch_size * system.num_predicted
        self.parameters = count_parameters(self.train_state.state["params"])
        flops = flops_per_token(system.model_config, self.parameters)
        self.slow_device = jax.default_backend() == "cpu"
        peak = metrics.peak_flops(jax.devices()[0].device_kind)
        self.mfu = flops / (peak * jax.device_count()) if peak else None

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.train_state.step

    def evaluate(self) -> dict[str, float]:
        """Returns train and validation losses over the same windows every time."""
        c, params = self.config, eval_params(self.train_state.state)
        result: dict[str, float] = {}
        for split in ("train", "val"):
            tokens = self.data.eval_windows(split, self.system.window, c.eval_sequences)
            rows = c.batch_size // c.accumulation
            nll = self.system.eval_nll(
                params, tokens, rows, c.seed, self.train_state.layout
            )
            found = mean_losses(nll)
            if split == "val":
                found |= self.system.extra_metrics(tokens, nll[""])
                curves = self.system.by_position(tokens, nll[""])
                self.recorder.write_positions(curves)
            pictures = self.workdir / "pictures" if split == "val" else None
            found |= self.system.evaluate_generation(
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
        return metrics.out_of_patience(self.recorder.rows, self.config.patience)

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
        if not (self.workdir / "config.json").exists():
            log(f"warning: '{self.workdir}' is gone: writing it again")
            self.workdir.mkdir(parents=True, exist_ok=True)
            if self.freeze:
                self.freeze()
        self.checkpoints.save(self.step, self.train_state.saved(), evaluation)

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


def loop(trainer: Trainer, progress: Progress, interruption: SignalHandler) -> None:
    """Advances a run to its last step, or until it is interrupted.

    Raises:
      DivergedError: where the loss or the gradient is not finite; the checkpoints
        kept are from before.
      Interrupted: where an evaluation was broken off.
    """
    c, recorder, guard = trainer.config, trainer.recorder, trainer.guard
    clock, profiler = trainer.train_state.clock, trainer.profiler
    pending = None
    marked, mark = trainer.step, time.perf_counter()
    suggested = not trainer.slow_device
    stops = trainer.out_of_patience()
    while (
        trainer.step < c.steps
        and not stops
        and not trainer.agreement(interruption.signal)
    ):
        profiler.before(trainer.step + 1)
        metrics = trainer.train_state.run_step()
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
