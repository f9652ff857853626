"""The files of the originals' programs: how each writes them, and loads them again.

The programs themselves cannot be shipped; these keep to what their loading code asks
for: keys, names, shapes, and a strict `load_state_dict`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import torch

from jaxgpt.interop import formats
from parity_tests import pairs
from parity_tests.pairs import SIZES, Pair
from parity_tests.torch_gpt import GPT, GPTConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """A program's files.

    Attributes:
      suffix: of their names; "" is a folder.
      write: (pair, path, AdamW's state dict or None, steps done) writes one.
      load: (pair, path) -> a new PyTorch module, with what is in it.
      optimizer: the key of AdamW's state dict; "" where that is not kept.
      has_schedule: whether the settings of the learning rate are in it.
    """

    suffix: str
    write: Callable[[Pair, pathlib.Path, dict | None, int], Any]
    load: Callable[[Pair, pathlib.Path], torch.nn.Module]
    optimizer: str = ""
    has_schedule: bool = True


def _write_nanogpt(pair, path, optimizer, step):
    c = pair.system.config
    model_args = {key: c.model[key] for key in (*SIZES, "bias", "dropout")}
    config = {
        "learning_rate": c.optimizer.learning_rate,
        "min_lr": c.optimizer.min_learning_rate,
        "warmup_iters": c.optimizer.warmup_steps,
        "lr_decay_iters": c.optimizer.decay_steps,
        "max_iters": c.optimizer.decay_steps,
        "beta1": c.optimizer.beta1,
        "beta2": c.optimizer.beta2,
        "weight_decay": c.optimizer.weight_decay,
        "grad_clip": c.optimizer.grad_clip,
        "decay_lr": True,
        "batch_size": pairs.B,
        "gradient_accumulation_steps": 1,
        "eval_interval": 10,
        "dataset": "mine",
    }
    checkpoint = {"model": pair.module.state_dict(), "model_args": model_args}
    checkpoint |= {"config": config, "iter_num": step, "best_val_loss": 1e9}
    torch.save(checkpoint | ({"optimizer": optimizer} if optimizer else {}), path)


def _load_nanogpt(pair, path):
    checkpoint = torch.load(path, weights_only=True)
    double = not pair.system.extra_tokens
    module = GPT(GPTConfig(**checkpoint["model_args"], double=double))
    module.load_state_dict(checkpoint["model"])
    return module


def _load_huggingface(pair, path):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(path).eval()


def _state_under(key: str, suffix: str = ".pt", optimizer_key: str = "") -> Layout:
    """A file that holds {key: state dict}; its configuration is not in it."""

    def write(pair, path, optimizer, step):
        held = {key: pair.module.state_dict()}
        if optimizer:
            held |= {optimizer_key: optimizer, "scheduler": {"last_epoch": step}}
        torch.save(held, path)

    def load(pair, path):
        module = pairs.TWINS[pair.name].make(pairs.sizes_of(pair.name), 0.0)
        module.load_state_dict(torch.load(path, weights_only=True)[key])
        return module

    return Layout(suffix, write, load, optimizer_key, has_schedule=False)


NANOGPT = Layout(".pt", _write_nanogpt, _load_nanogpt, "optimizer")
LAYOUTS = {
    "nanogpt": NANOGPT,
    "sigma-gpt": NANOGPT,
    "gpt2": Layout(
        "", lambda pair, path, *_: pair.module.save_pretrained(path), _load_huggingface
    ),
    "teenygpt": _state_under("model_state_dict"),
    "nanollama": _state_under("model", ".pth", "optim"),
}
HAVE_MOMENTS = [name for name, layout in LAYOUTS.items() if layout.optimizer]


def write_settings(pair: Pair, path: pathlib.Path) -> str | None:
    """Writes the original's configuration where its files do not hold it."""
    more = {
        "teenygpt": {
            "positional_encoding_type": "ALIBI",
            "ffn_type": "SWISH_GLU",
            "layer_norm_type": "CLASSIC",
        },
        "nanollama": {"ffn_dim": pair.system.config.model.feed_forward_width},
    }
    if pair.name not in more:
        return None
    keys = formats.get_format(pair.name).sizes
    sizes = {keys[name]: size for name, size in pairs.sizes_of(pair.name).items()}
    path.write_text(json.dumps(sizes | more[pair.name]))
    return str(path)
