"""The page of runs that do a task: mazes are drawn and solved in place."""

from __future__ import annotations

import base64
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.inference import Run
from jaxgpt.model.layers import count_parameters
from jaxgpt.sampling.state import SamplerOutput, SamplingParams
from jaxgpt.systems.reader import Given
from jaxgpt.systems.sigma.tasks.maze import Maze
from jaxgpt.systems.sigma.tasks.system import SigmaTask
from jaxgpt.web.pages.base import Emit, Event
from jaxgpt.web.pages.text import FRAME, order_choices, sampler_choices
from jaxgpt.web.requests import Problem, Solve


class TaskPage:
    """Draws problems, solves them, and judges the answers."""

    kind = "task"

    def __init__(self, run: Run):
        assert isinstance(run.system, SigmaTask)
        self.run, self.system, self.task = run, run.system, run.system.task
        self.actions = {"problem": self.problem, "solve": self.solve}
        self.compiled: set[Any] = set()

    def describe(self) -> Event:
        """See `Page.describe`; "grid" is for tasks that can be drawn."""
        run, task = self.run, self.task
        grid = None
        if isinstance(task, Maze):
            grid = {"rows": task.shape[0], "columns": task.shape[1]}
        return {
            "system": f"{run.config.system}: {run.config.task.name}",
            "step": run.step,
            "parameters": count_parameters(run.params),
            "longest": task.length,
            "words": list(task.words),
            "grid": grid,
            "samplers": sampler_choices(run),
            "orders": order_choices(),
        }

    def problem(self, request: Problem, emit: Emit) -> None:
        """Sends a problem with its answer: tokens, and which of them are given."""
        if self.task.files:
            data: Any = self.run.open_data()
            _, known, tokens = self.system.problems(data, "val", 1, request.seed)
        else:
            draws = np.random.default_rng(request.seed)
            tokens, known = self.task.sample(draws, 1)
        emit(
            {
                "type": "done",
                "tokens": tokens[0].tolist(),
                "known": known[0].tolist(),
                "text": self.task.text(np.where(known[0], tokens[0], 0)),
            }
        )

    def solve(self, request: Solve, emit: Emit) -> None:
        """Fills what is not given; sends tokens as they are decoded, then a verdict."""
        reference_T, known_T = np.array(request.tokens), np.array(request.known)
        T, words = self.task.length, self.task.vocab_size
        if len(reference_T) != T or len(known_T) != T:
            raise UserError(f"a problem of this task must have {T} tokens")
        if reference_T.max() >= words or known_T.all():
            raise UserError(f"its tokens must be below {words}, and some not given")
        reference_T = reference_T.astype(np.int32)
        sampling = SamplingParams.of(request.sampling)
        key = (sampling.sampler, sampling.order, sampling.top_k, sampling.top_p < 1)
        emit({"type": "running", "compiling": key not in self.compiled})
        sent_at, wanted = -1.0, True

        def show(output: SamplerOutput) -> bool:
            nonlocal sent_at, wanted
            frame = None
            if time.perf_counter() - sent_at >= FRAME:
                frame = _frame(output)
                sent_at = time.perf_counter()
            wanted = emit(frame)
            return wanted

        given = Given(np.where(known_T, reference_T, 0), known_T)
        began = time.perf_counter()
        output = self.run.fill(given, sampling, 1, request.seed, show=show)
        seconds = time.perf_counter() - began
        if not wanted:
            return
        self.compiled.add(key)
        emit(_frame(output))
        arrays = output.tokens_BT, reference_T[None], known_T[None]
        verdict = self.task.judge(*arrays)
        emit(
            {
                "type": "done",
                "seconds": seconds,
                "passes": int(output.num_forward_passes_B[0]),
                "generated": int((~known_T).sum()),
                "log_prob": float(output.log_p_BT.sum()),
                "text": self.task.text(output.tokens_BT[0]),
                "verdict": {name: float(value[0]) for name, value in verdict.items()},
                "picture": self.picture(*arrays),
            }
        )

    def picture(self, *arrays_NT: np.ndarray) -> str:
        """Returns the task's picture as a data URL; see `Task.plot`."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "picture.png")
            self.system.plot(path, *arrays_NT)
            data = base64.b64encode(path.read_bytes()).decode()
        return f"data:image/png;base64,{data}"


def _frame(output: SamplerOutput) -> Event:
    return {
        "type": "frame",
        "tokens": output.tokens_BT[0].tolist(),
        "decoded": output.decoded_BT[0].tolist(),
        "passes": int(output.num_forward_passes_B[0]),
    }
