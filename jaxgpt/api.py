"""jaxgpt from Python: load, train, convert and configure; a stable interface.

    import jaxgpt

    run = jaxgpt.load("runs/quickstart")
    for sample in run.infill("<missing:24>my lord<missing:33>", num_samples=3):
        print(sample.text)

All of this is also there as `jaxgpt.NAME`, loaded on first use. Errors are exceptions
with the one-line messages of the commands: `UserError` for wrong input, `CheckError`
for a result that cannot be right.
"""

from __future__ import annotations

import copy
import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt import run as runs
from jaxgpt.commands import convert as conversion
from jaxgpt.commands import train as training
from jaxgpt.errors import CheckError, UserError, require
from jaxgpt.inference import Run
from jaxgpt.sampling.output import Sample
from jaxgpt.systems.sigma.likelihood import LogProb
from jaxgpt.training.loop import Callback, go_on

__all__ = [
    "CheckError",
    "LogProb",
    "Run",
    "Sample",
    "UserError",
    "config",
    "convert",
    "load",
    "train",
]

_set_up = functools.cache(backend.set_up_jax)


def load(
    path: str | pathlib.Path,
    *,
    step: int | str = "best",
    format: str = "",
    source_config: str | pathlib.Path | None = None,
    tokenizer: str | pathlib.Path | None = None,
) -> Run:
    """Loads a run, or another program's weights; writes nothing.

        jaxgpt.load("runs/quickstart")
        jaxgpt.load("openai-community/gpt2")  # or a folder of transformers
        jaxgpt.load("out/ckpt.pt")  # nanoGPT's

    Args:
      path: folder of a run; or weights: a Hugging Face folder or name, .pt, .npz or
        .safetensors.
      step: for a run: "best", "last", or a number.
      format: for weights, as in jaxgpt.convert; by default nanogpt for a .pt file, else
        gpt2.
      source_config: for weights: JSON with the original's configuration, if the file
        does not contain it.
      tokenizer: for weights: tokenizer.json or a folder; by default the source's own.

    Raises:
      UserError: if it is damaged, or neither a run nor readable weights.
    """
    _set_up()
    return runs.load(
        _text(path),
        str(step),
        format,
        _if_given(source_config),
        _if_given(tokenizer),
    )


def config(spec: str | pathlib.Path, /, **changes: Any) -> ConfigDict:
    """Returns the config of a file, with changes; validated and locked.

        jaxgpt.config("configs/sigma_char.py:laptop", **{"optimizer.name": "adamw"})

    Args:
      spec: "path.py" or "path.py:variant".
      **changes: values by dotted key.

    Raises:
      UserError: for a missing file, an unknown key, or an invalid value.
    """
    return configs.load(_text(spec), changes)


def train(
    config: ConfigDict | str | pathlib.Path,
    workdir: str | pathlib.Path,
    *,
    callback: Callback = go_on,
    overrides: Mapping[str, Any] | None = None,
    allow: Collection[str] = (),
) -> Run:
    """Trains a run to its last step, from wherever it stopped, and loads it.

        jaxgpt.train(jaxgpt.config("configs/quickstart.py"), "runs/quickstart")

    Does what `python -m jaxgpt.train` does: writes the same files, and logs the same
    lines on stderr. An interrupt saves a checkpoint and returns; the same call resumes.

    Args:
      config: from `jaxgpt.config`, or the arguments it takes.
      workdir: folder of the run.
      callback: called with each row that training logs, such as {"step": 50,
        "loss": 2.9, ...}; if it returns False, the run ends after this step. An
        exception ends the run at once: the same call resumes from the last checkpoint.
      overrides: changes by dotted keys, which take precedence over the model that
        `init_from` names, as on the command line.
      allow: keys that may differ from the config of the run that is resumed.

    Returns:
      The run, with its best checkpoint.

    Raises:
      UserError: for invalid input.
      CheckError: if the loss diverged, an evaluation cannot be right, or the last
        state was not saved.
    """
    _set_up()
    folder, changes = _text(workdir), dict(overrides or {})
    require(callable(callback), "callback", "callable", callback)
    if not isinstance(config, ConfigDict):
        config = configs.load(_text(config), {})
    resolved = configs.validate(configs.override(copy.deepcopy(config), changes))
    configs.check_allowed(allow)
    training.train(resolved, folder, allow, changes, callback=callback)
    return load(folder)


def convert(
    format: str,
    *,
    workdir: str | pathlib.Path,
    source: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    source_config: str | pathlib.Path | None = None,
    tokenizer: str | pathlib.Path | None = None,
    step: int | str = "best",
) -> dict[str, Any]:
    """Imports weights as a run, or exports those of a run.

        jaxgpt.convert("gpt2", source="openai-community/gpt2", workdir="runs/gpt2")
        jaxgpt.convert("gpt2", workdir="runs/gpt2", output="exported")

    Args:
      format: gpt2, nanogpt, sigma-gpt, teenygpt or nanollama.
      workdir: folder of the run; a new one for an import.
      source: to import: .pt, .npz, .safetensors, a Hugging Face folder or name.
      output: to export to: a folder (gpt2), .pt or .npz; must not exist.
      source_config, tokenizer: for imports, as in `load`.
      step: for exports: "best", "last", or a number.

    Returns:
      The JSON object that `jaxgpt.convert --json=-` prints.

    Raises:
      UserError: for weights that do not fit; nothing is written then.
    """
    _set_up()
    return conversion.convert(
        format,
        _text(workdir),
        _if_given(source),
        _if_given(output),
        _if_given(source_config),
        _if_given(tokenizer),
        str(step),
    )


def _if_given(path: str | pathlib.Path | None) -> str | None:
    return None if path is None else _text(path)


def _text(path: str | pathlib.Path) -> str:
    fits = isinstance(path, str | pathlib.PurePath) and str(path)
    require(bool(fits), "a path or name", "a str or a pathlib.Path", path)
    return str(path)
