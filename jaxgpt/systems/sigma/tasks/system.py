"""σ-GPT beyond text: tasks whose generated sequences are judged and plotted.

A beginning token precedes the first token, so that a prompt may be empty. The prompt is
read first, left to right; the order of the rest is free.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import require
from jaxgpt.model import rng
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.base import Batch, Evaluation
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.system import SigmaGPT
from jaxgpt.systems.sigma.tasks import dataset, pictures
from jaxgpt.systems.sigma.tasks.base import Task
from jaxgpt.systems.sigma.tasks.config import TASKS

STRATEGIES = {
    "left-to-right": SamplingParams("ar", "left-to-right"),
    "shuffled": SamplingParams("ar", "random"),
    "fractal": SamplingParams("ar", "fractal"),
    "burst": SamplingParams("burst"),
    "exact-burst": SamplingParams("exact-burst", "random"),
}


def make_task(config: ConfigDict) -> Task:
    """Returns the task that `config.task` describes; UserError if it cannot be."""
    module, kind = TASKS[config.task.name].split(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), kind)(config)


def task_strategies(config: ConfigDict) -> list[str]:
    """Returns the names in `task.strategies`; UserError for an unknown one."""
    names = [name for name in config.task.strategies.split(",") if name]
    for name in names:
        rule = f"among {', '.join(STRATEGIES)}"
        require(name in STRATEGIES, "task.strategies", rule, name)
    return names


class SigmaTask(SigmaGPT):
    """σ-GPT that learns a task."""

    is_task = True
    reads_text = goes_past_block = fills_past_block = False

    @classmethod
    def resolve(cls, config: ConfigDict) -> None:
        """Sets the block size to the task's length, and reads a beginning token."""
        config.model.block_size = make_task(config).length
        config.sigma.begin_token = True
        task_strategies(config)

    @functools.cached_property
    def task(self) -> Task:
        """What is learnt."""
        return make_task(self.config)

    @property
    def max_draft_length(self) -> int:
        """All that is missing: for tasks the number of forward passes matters."""
        return self.window

    def open_data(self, tokenizer: Tokenizer | None = None) -> dataset.TaskData:
        """Opens the sequences, sampled before or now."""
        del tokenizer
        return dataset.open_data(self.task, self.config)

    def train_batch(self, tokens_BT: jax.Array, key: jax.Array, step) -> Batch:
        """Draws each row's order as `config.sigma.order` says, the prompt first."""
        c = self.config.sigma
        progress = step / self.config.steps
        return self.batch(
            tokens_BT, key, c.order, c.order_start, progress, c.left_to_right_share
        )

    def eval_batches(self, tokens_BT: jax.Array, key: jax.Array) -> dict[str, Batch]:
        """Returns batches in the order trained for, and left to right."""
        return {
            "": self.batch(tokens_BT, key, self.config.sigma.order),
            "_left_to_right": self.batch(tokens_BT, key, "left-to-right"),
        }

    def batch(
        self,
        marked_BT: jax.Array,
        key: jax.Array,
        kind: str,
        start: float = 1.0,
        progress: jax.Array | float = 1.0,
        straight: float = 0.0,
    ) -> Batch:
        """Returns tokens, order, and the weight of each prediction, 1 on average.

        For the arguments see `orders.training`.
        """
        tokens_BT, prompt_mask_BT = dataset.unmark(marked_BT)
        if self.config.task.learn == "all":
            prompt_mask_BT = jnp.zeros_like(prompt_mask_BT)
        B, T = tokens_BT.shape
        if kind == "fractal":
            order_BT = orders.prompt_first_fractal(prompt_mask_BT)
        else:
            progress = jnp.asarray(progress, jnp.float32)
            order_BT = orders.training(key, B, T, kind, start, progress, straight)
            order_BT = orders.prompt_first(order_BT, prompt_mask_BT)
        asked_BT = ~jnp.take_along_axis(prompt_mask_BT, order_BT, 1)
        weight_BT = asked_BT / asked_BT.mean()
        return {"tokens": tokens_BT, "order": order_BT, "weight": weight_BT}

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns [B, T] in prediction order, weighted: its mean is per asked token."""
        return self.token_nll(params, batch, dropout_key) * batch["weight"]

    def problems(
        self, data: dataset.TaskData, split: str, count: int, seed: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (tokens, zero outside the prompt; prompt_mask; all tokens), [N, T].

        The first ones of a split; with a seed, a random batch of it.
        """
        if seed is None:
            marked_NT = data.eval_windows(split, self.window, count)
        else:
            marked_NT = data.batch_at(seed, split, 0, count, self.window)
        reference_NT, prompt_mask_NT = dataset.unmark(marked_NT)
        return np.where(prompt_mask_NT, reference_NT, 0), prompt_mask_NT, reference_NT

    def extra_metrics(self, params: dict, evaluation: Evaluation) -> dict[str, Any]:
        """Generates from a split in each of `task.strategies`, and judges.

        Returns:
          {NAME_STRATEGY: mean}: what the judge says, and model calls of a sequence.
        """
        c = self.config
        tokens, prompt_mask, reference = self.problems(
            evaluation.data, evaluation.split, c.task.eval_sequences
        )
        key = rng.stream(c.seed, "sample")
        found: dict[str, float] = {}
        for name in task_strategies(c):
            filled = self.sample(params, tokens, prompt_mask, key, STRATEGIES[name])
            verdict = self.task.judge(filled.tokens_BT, reference, prompt_mask)
            verdict["calls"] = filled.num_forward_passes_B
            suffix = name.replace("-", "_")
            found |= {f"{k}_{suffix}": float(v.mean()) for k, v in verdict.items()}
            if evaluation.pictures:
                evaluation.pictures.mkdir(exist_ok=True)
                path = evaluation.pictures / f"{suffix}_{evaluation.label}.png"
                self.plot(path, filled.tokens_BT, reference, prompt_mask)
        return found

    def plot(self, path: pathlib.Path, *arrays_NT: np.ndarray) -> None:
        """Writes the task's picture of the first sequences; see `Task.plot`."""
        self.task.plot(path, *(array[: pictures.SHOWN] for array in arrays_NT))
