"""A run on disk, as sample, evaluate and verify find it."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
from ml_collections import ConfigDict

from jaxgpt import cli, systems
from jaxgpt import config as configs
from jaxgpt.checkpoint import Checkpoints, DamagedError
from jaxgpt.config import UserError
from jaxgpt.data import tokenizer as tok


@dataclasses.dataclass(frozen=True)
class Run:
    """A restored run: everything needed to score and generate."""

    workdir: pathlib.Path
    config: ConfigDict
    system: systems.System
    params: dict
    step: int
    tokenizer: tok.Tokenizer | None


def open_run(workdir: str, step: str = "best") -> Run:
    """Restores the parameters of a run, proved by their digests.

    Args:
      workdir: folder of the run.
      step: "best", "last", or a number.

    Raises:
      UserError: where there is no run, no such checkpoint, or it is damaged.
    """
    folder = pathlib.Path(workdir).expanduser()
    config = configs.load_frozen(folder)
    cli.use_float64(config.model.dtype)
    system = systems.make(config)
    checkpoints = Checkpoints(folder, read_only=True)
    chosen = checkpoints.pick(step)
    abstract = {"params": jax.eval_shape(system.init, jax.random.key(0))}
    try:
        params = checkpoints.restore(chosen, abstract)["params"]
    except DamagedError as error:
        others = ", ".join(str(s) for s in checkpoints.steps() if s != chosen) or "none"
        raise UserError(
            f"checkpoint {chosen} of '{workdir}' is damaged ({error}): take another "
            f"--step, there are {others}"
        ) from None
    file = folder / "tokenizer.json"
    tokenizer = tok.load(file) if file.exists() else None
    return Run(folder, config, system, params, chosen, tokenizer)
