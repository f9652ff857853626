"""The training loop, and the run that it advances."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax

from jaxgpt.errors import log
from jaxgpt.model.layers import count_parameters
from jaxgpt.parallel import distributed
from jaxgpt.parallel.hardware import peak_flops
from jaxgpt.systems.base import Evaluation
from jaxgpt.systems.scoring import mean_losses
from jaxgpt.training import metrics, optimizers
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, MismatchError
from jaxgpt.training.cost import Cost
from jaxgpt.training.nonfinite import NonFinitePolicy
from jaxgpt.training.profiling import Profiler
from jaxgpt.training.progress import Progress
from jaxgpt.training.signals import SignalHandler
from jaxgpt.training.step import eval_params
from jaxgpt.training.train_state import Setup, TrainState, abstract_state

SAVE_RETRY_WAIT_S = 1.0

# Called with each row that training logs, once it is in metrics.jsonl. False ends the
# run cleanly after this step, as a signal does; the same call resumes it.
Callback = Callable[[metrics.Row], bool | None]


def go_on(row: metrics.Row) -> None:
    """The callback that does nothing."""


class Trainer:
    """One run: its state, its metrics and its checkpoints."""

    def __init__(self, setup: Setup, callback: Callback = go_on):
        """Restores the run in `setup.workdir`, or begins it."""
        cost = Cost(setup.workdir)
        self.callback = callback
        self.setup, self.system, self.workdir = setup, setup.system, setup.workdir
        self.config = c = setup.config
        is_primary = jax.process_index() == 0
        self.checkpoints = Checkpoints(self.workdir, c.keep)
        self.train_state = TrainState(setup, self.checkpoints)
        if is_primary:  # Only now, so that a run that cannot be resumed is not changed.
            setup.freeze()
        self.learning_rate = optimizers.learning_rate_schedule(c)
        self.recorder = metrics.Recorder(
            self.workdir,
            self.step,
            metrics.open_trackers(c, self.workdir) if is_primary else [],
            writes=is_primary,
            cost=cost,
        )
        self.max_over_processes = distributed.PipelinedMax(setup.mesh)
        self.profiler = Profiler(c, self.workdir)
        self.nonfinite_policy = NonFinitePolicy(self.train_state, self.workdir)
        self.tokens_per_step = c.batch_size * self.system.num_predicted
        self.parameters = count_parameters(self.train_state.arrays["params"])
        flops = self.system.flops_per_token(self.parameters)
        peak = peak_flops(jax.devices()[0].device_kind)
        cost.fixed = {"parameters": self.parameters, "flops_per_token": flops}
        self.mfu_per_token = flops / (peak * jax.device_count()) if peak else None

    @property
    def step(self) -> int:
        """The number of steps done."""
        return self.train_state.step

    def evaluate(self) -> dict[str, float]:
        """Returns train and validation losses over the same windows every time."""
        c, params = self.config, eval_params(self.train_state.arrays)
        data, rows = self.setup.data, c.batch_size // c.accumulation
        result: dict[str, float] = {}
        for split in ("train", "val"):
            tokens = data.eval_windows(split, self.system.window, c.eval_sequences)
            nll = self.system.eval_nll(
                params, tokens, rows, c.seed, self.train_state.layout
            )
            found = mean_losses(nll)
            evaluation = Evaluation(
                data=data,
                split=split,
                windows=tokens,
                nll_NT=nll[""],
                rows=rows,
                pictures=self.workdir / "pictures" if split == "val" else None,
                label=f"{self.step:07}",
                write_curves=self.recorder.write_positions,
            )
            found |= self.system.extra_metrics(params, evaluation)
            result |= {f"{split}_{name}": value for name, value in found.items()}
        return result

    def due(self, interval: int) -> bool:
        """Returns whether this step ends an interval, or the run."""
        return self.step % interval == 0 or self.step == self.config.steps

    def owes_evaluation(self) -> bool:
        """Returns whether this step's evaluation is due and not in the metrics."""
        rows = self.recorder.rows
        done = rows and rows[-1]["step"] == self.step and "val_loss" in rows[-1]
        return self.due(self.config.eval_interval) and not done

    def out_of_patience(self) -> bool:
        """Returns whether the best validation loss was too many evaluations ago."""
        return metrics.out_of_patience(self.recorder.rows, self.config.patience)

    def record_evaluation(self, losses: dict[str, float], progress: Progress) -> None:
        """Records and shows an evaluation of this step."""
        tokens = self.step * self.tokens_per_step
        self.recorder.write({"step": self.step, "tokens": tokens} | losses)
        self.recorder.summarise(last=False)
        progress.evaluated(self.step, losses)

    def save(self, evaluation: dict[str, float] | None) -> None:
        """Starts saving a checkpoint, ranked by an evaluation of this step.

        A folder that was moved or removed in the meantime is written again.
        """
        if not (self.workdir / "config.json").exists():
            log(f"warning: '{self.workdir}' is gone: writing it again")
            self.workdir.mkdir(parents=True, exist_ok=True)
            self.setup.freeze()
        items = self.train_state.checkpoint_items()
        self.checkpoints.save(self.step, items, evaluation)

    def ensure_saved(self) -> None:
        """Waits for the last save, and retries once if it failed."""
        self.checkpoints.report_errors(wait=True)
        if self.step not in self.checkpoints.steps():
            # Threads of the failed save may still be writing to the folder.
            time.sleep(SAVE_RETRY_WAIT_S)
            self.save(None)

    def row(self, values: dict[str, float], pace: float) -> metrics.Row:
        """Returns a row of metrics.jsonl; pace is in steps per second."""
        row = {
            "step": self.step,
            "tokens": self.step * self.tokens_per_step,
            "learning_rate": float(self.learning_rate(self.step - 1)),
            "tokens_per_second": pace * self.tokens_per_step,
        }
        if self.mfu_per_token:
            row["mfu"] = self.mfu_per_token * row["tokens_per_second"]
        return row | values


def finished(setup: Setup) -> int | None:
    """Returns the step after which a run has ended; None if something is left to do.

    Writes nothing.
    """
    c, workdir = setup.config, setup.workdir
    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    rows = metrics.read_rows(workdir)
    if not (steps and rows and rows[-1]["step"] == steps[-1]):
        return None
    last = steps[-1]
    ended = last >= c.steps or metrics.out_of_patience(rows, c.patience)
    due = last % c.eval_interval == 0 or last == c.steps
    try:
        table = (workdir / "metrics.csv").read_text().splitlines()
        drawn = len(table) == len(rows) + 1 and (workdir / "loss.png").exists()
        if not (ended and drawn and ("val_loss" in rows[-1] or not due)):
            return None
        # Whether it is whole: training sets a damaged one aside and redoes its steps.
        checkpoints.restore(last, abstract_state(setup)[1], with_host=True)
    except (OSError, DamagedError, MismatchError):
        return None
    return last


def loop(trainer: Trainer, progress: Progress, signal_handler: SignalHandler) -> None:
    """Advances a run to its last step, or until a signal.

    Raises:
      DivergedError: if the loss or the gradient is not finite; the checkpoints kept
        are from before.
      Interrupted: if an evaluation was interrupted.
    """
    c, policy = trainer.config, trainer.nonfinite_policy
    clock, profiler = trainer.train_state.clock, trainer.profiler
    pending = None
    last_row, last_time = trainer.step, time.perf_counter()
    suggested = jax.default_backend() != "cpu"
    stops = trainer.out_of_patience()
    while (
        trainer.step < c.steps
        and not stops
        and not trainer.max_over_processes(signal_handler.signal)
    ):
        profiler.before_step(trainer.step + 1)
        found = trainer.train_state.run_step()
        step = trainer.step
        profiler.after_step(step, found)
        if pending is not None:
            # One step behind: this waits for the step before, while the device is busy
            # with the one just started.
            with clock.part("device"):
                policy.check(pending, step - 1)
        pending = found
        evaluates = trainer.due(c.eval_interval)
        saves = trainer.due(c.checkpoint_interval)
        if not (evaluates or saves or step % c.log_interval == 0):
            continue
        with clock.part("device"):
            values, pending = policy.check(found, step), None
        pace = (step - last_row) / (time.perf_counter() - last_time)
        row = trainer.row(values, pace)
        trainer.recorder.write(row)
        progress.update(step, row)
        evaluation = None
        if evaluates:
            with signal_handler.interruptible(), clock.part("evaluation"):
                evaluation = trainer.evaluate()
            trainer.record_evaluation(evaluation, progress)
            stops = trainer.out_of_patience()
        answer = trainer.callback(dict(trainer.recorder.rows[-1]))
        stops |= answer is not None and not answer
        with clock.part("checkpoint"):
            trainer.checkpoints.report_errors()
            if saves or stops:
                trainer.save(evaluation)
        # Not at the first rows, whose pace includes compilation.
        if not suggested and step - progress.start >= 2 * c.log_interval:
            suggested = True
            progress.suggest_smaller()
        last_row, last_time = step, time.perf_counter()
