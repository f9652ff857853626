"""nanoGPT and σ-GPT: state dicts, and the checkpoints of their train.py.

Also build-nanogpt's, which always has biases, and another GELU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from jaxgpt import config as configs
from jaxgpt.data.tokenizers import CharTokenizer, GPT2Tokenizer
from jaxgpt.interop import adamw
from jaxgpt.interop.base import Export
from jaxgpt.interop.gpt2 import ACTIVATIONS, GPT2, POSITIONS, SIZES, TABLE, GPT2Family
from jaxgpt.interop.rules import Rule, check_setting, read_numbers
from jaxgpt.interop.weights import Arrays, Source

# nanoGPT's train.py: our field, its key and its default.
TRAINING = {
    "batch_size": ("batch_size", 12),
    "accumulation": ("gradient_accumulation_steps", 1),
    "steps": ("max_iters", 600000),
    "optimizer.learning_rate": ("learning_rate", 6e-4),
    "optimizer.min_learning_rate": ("min_lr", 6e-5),
    "optimizer.warmup_steps": ("warmup_iters", 2000),
    "optimizer.decay_steps": ("lr_decay_iters", 600000),
    "optimizer.beta1": ("beta1", 0.9),
    "optimizer.beta2": ("beta2", 0.95),
    "optimizer.weight_decay": ("weight_decay", 0.1),
    "optimizer.grad_clip": ("grad_clip", 1.0),
    "eval_interval": ("eval_interval", 2000),
    "checkpoint_interval": ("eval_interval", 2000),
}
# Other settings in a checkpoint's "config", which change no logit.
OTHER_TRAINING = """
always_save_checkpoint backend compile dataset decay_lr device dtype eval_iters
eval_only init_from log_interval order_type out_dir wandb_log wandb_project
wandb_run_name
"""
# σ-GPT's order_type: "randcur:PERCENT" is a curriculum that starts with this share of
# random orders, "curriculumrandom" one that starts with none.
ORDERS = {
    "random": "random",
    "left-to-right": "left-to-right",
    "fractal": "fractal",
    "curriculumrandom": "curriculum",
    "randcur": "curriculum",
}


class NanoGPT(GPT2Family):
    """nanoGPT's checkpoints."""

    # Until December 2024 update i of the warmup had the learning rate
    # peak * i / warmup_iters, since then peak * (i + 1) / (warmup_iters + 1).
    warmup_from_zero = False

    def model_fields(self, source: Source) -> dict[str, Any]:
        """Adds whether there are biases, by default as in the weights, and the GELU."""
        settings, path = source.settings, source.path
        bias = settings.get("bias", "transformer.ln_f.bias" in source.state)
        check_setting(isinstance(bias, bool), path, "bias", "true or false", bias)
        default = "gelu_new" if self._is_early(source) else "gelu"
        name = settings.get("activation_function", default)
        activation = ACTIVATIONS.get(name if isinstance(name, str) else "")
        known = f"one of {', '.join(ACTIVATIONS)}"
        check_setting(activation is not None, path, "activation_function", known, name)
        fields = super().model_fields(source)
        return fields | {"bias": bias, "activation": activation}

    def _is_early(self, source: Source) -> bool:
        """Returns whether a checkpoint is build-nanogpt's, or older than June 2023.

        Both use OpenAI's GELU. They lack the setting `bias` (build-nanogpt, and nanoGPT
        before 27 January 2023), or have the groups of parameters of before 6 May 2023.
        """
        sizes = adamw.group_sizes(self._optimizer(source))
        no_bias = bool(source.held) and "bias" not in source.held
        return no_bias or sizes == _early_groups(source.state)[0]

    def _optimizer(self, source: Source) -> Mapping[str, Any]:
        """Returns the state_dict of the optimizer; {} if there is none."""
        return adamw.held_by(source.checkpoint, self.optimizer_key)

    def optimized(
        self, optimizer: Mapping[str, Any], state: Arrays, table: list[Rule]
    ) -> list[str]:
        """See `Format`; train.py has two groups, other programs may have one."""
        state = {rule.name: state[rule.name] for rule in table}
        matrices = [name for name in state if state[name].ndim >= 2]
        flat = [name for name in state if state[name].ndim < 2]
        sizes, names = _early_groups(state)
        orders = {
            (): matrices + flat,  # Unknown.
            (len(matrices), len(flat)): matrices + flat,
            (len(state),): [*state],
            sizes: names,
        }
        return orders.get(adamw.group_sizes(optimizer), [])

    def training_fields(self, source: Source) -> dict[str, Any]:
        """Returns the settings of train.py."""
        config = source.checkpoint.get("config")
        if not isinstance(config, Mapping):
            return {}
        fields = read_numbers(config, TRAINING, source.path)
        fields["batch_size"] *= fields["accumulation"]
        decays = config.get("decay_lr", True)
        valid = isinstance(decays, bool | int)
        check_setting(valid, source.path, "decay_lr", "true or false", decays)
        if not decays:
            rate = fields["optimizer.learning_rate"]
            fields |= {"optimizer.min_learning_rate": rate, "optimizer.warmup_steps": 0}
        known = self._warmup_from_zero(source, fields)
        zero = self.warmup_from_zero if known is None else known
        return fields | {"optimizer.warmup_from_zero": zero}

    def _warmup_from_zero(
        self, source: Source, fields: Mapping[str, Any]
    ) -> bool | None:
        """Returns how the warmup began; None if the current rate does not show it.

        A checkpoint has the rate of its next update. After the warmup, and before the
        first update, the answer is how the format's warmup begins.
        """
        warmup, optimizer = fields["optimizer.warmup_steps"], self._optimizer(source)
        step = source.checkpoint.get("iter_num", 0)
        step = adamw.read_count("iter_num", step, source.path)
        if not optimizer or step >= warmup:
            return self.warmup_from_zero
        if not adamw.group_sizes(optimizer):
            return None
        rate = optimizer["param_groups"][0].get("lr")
        for zero, ahead in ((True, 0), (False, 1)):
            peak = fields["optimizer.learning_rate"]
            expected = peak * (step + ahead) / (warmup + ahead)
            if type(rate) is float and math.isclose(rate, expected, rel_tol=1e-6):
                return zero
        return None

    def notes(self, source: Source) -> tuple[str, ...]:
        """Adds what the checkpoint does not tell, and what is assumed."""
        source = dataclasses.replace(source, state=self.parameters(source))
        lines = [*super().notes(source)]
        if "activation_function" not in source.settings and self._is_early(source):
            lines.append(
                "its GELU is taken to be OpenAI's, with tanh, as in build-nanogpt and "
                "nanoGPT before June 2023: otherwise pass --source_config=FILE.json "
                'with {"activation_function": "gelu"}'
            )
        optimizer = self._optimizer(source)
        sizes = adamw.group_sizes(optimizer)
        table = [Rule(name, "") for name in source.state]
        if source.checkpoint and not optimizer:
            lines.append("it has no optimizer state: only its weights are imported")
        elif optimizer and not self.optimized(optimizer, source.state, table):
            lines.append(
                f"its optimizer state is left out: its groups of {sizes} parameters "
                "are not nanoGPT's"
            )
        elif optimizer and sizes == _early_groups(source.state)[0]:
            lines.append(
                "its optimizer, of nanoGPT before May 2023, did not decay embeddings: "
                "training here does"
            )
        fields = self.training_fields(source)
        if fields and self._warmup_from_zero(source, fields) is None:
            zero = self.warmup_from_zero
            lines.append(
                "whether its warmup began at a learning rate of 0 cannot be told: "
                f"optimizer.warmup_from_zero is {zero}"
            )
        return tuple(lines)

    def checkpoint(self, export: Export) -> dict[str, Any]:
        """Returns what train.py saves, for its sample.py and to resume."""
        c, state = export.config, export.state
        keys = (*self.sizes, "bias", "dropout")
        held = {
            "model": state | {"lm_head.weight": state[TABLE]},
            "model_args": {key: c.model[key] for key in keys},
            "iter_num": export.step,
            "best_val_loss": export.val_loss,
            "config": self._config(export),
        }
        return held | self.optimizer_entry(export)

    def groups(self, export: Export) -> list[tuple[list[str], float]]:
        """Returns the matrices and the rest."""
        c, state = export.config.optimizer, export.state
        matrices = [name for name in state if state[name].ndim >= 2]
        flat = [name for name in state if state[name].ndim < 2]
        rest = c.weight_decay if c.decays == "all" else 0.0
        return [(matrices, c.weight_decay), (flat, rest)]

    def _config(self, export: Export) -> dict[str, Any]:
        """Returns train.py's settings."""
        c = export.config
        flat = configs.flatten(c)
        settings = {key: flat[field] for field, (key, _) in TRAINING.items()}
        settings |= {key: c.model[key] for key in (*SIZES, "bias", "dropout")}
        settings |= {
            "batch_size": c.batch_size // c.accumulation,
            "eval_interval": c.eval_interval,
            "lr_decay_iters": c.optimizer.decay_steps or c.steps,
            "decay_lr": True,
        }
        # Without a dataset sample.py takes the tokens to be GPT-2's.
        named = {} if self._has_gpt2_tokens(export) else {"dataset": export.dataset}
        return settings | named

    def _has_gpt2_tokens(self, export: Export) -> bool:
        if export.tokenizer:
            return isinstance(export.tokenizer, GPT2Tokenizer)
        return export.config.model.vocab_size in self.gpt2_vocabularies

    def export_notes(self, export: Export) -> tuple[str, ...]:
        """Adds where sample.py reads the vocabulary."""
        notes, file = super().export_notes(export), f"data/{export.dataset}/meta.pkl"
        if self._has_gpt2_tokens(export):
            return notes
        line = f"its sample.py reads the vocabulary of its data from {file}"
        if isinstance(export.tokenizer, CharTokenizer):
            given, made = json.dumps(str(export.tokenizer_file)), json.dumps(file)
            code = (
                f'import json, pickle; c = json.load(open({given}, encoding="utf-8"))'
                '["characters"]; pickle.dump({"vocab_size": len(c), "stoi": {x: i for '
                'i, x in enumerate(c)}, "itos": dict(enumerate(c))}, '
                f'open({made}, "wb"))'
            )
            line += f", which this makes: python -c {shlex.quote(code)}"
        elif export.tokenizer:
            line = "its sample.py knows characters and GPT-2's tokens, not this run's"
        return (*notes, line)


def _early_groups(state: Mapping[str, Any]) -> tuple[tuple[int, ...], list[str]]:
    """Returns nanoGPT's groups before May 2023: their sizes, and the names in order.

    The first had the weights of linear layers, the second all else, with embeddings.
    """
    tables = (TABLE, POSITIONS)
    names = sorted(state)
    linear = [n for n in names if state[n].ndim >= 2 and n not in tables]
    rest = [n for n in names if n not in linear]
    return (len(linear), len(rest)), linear + rest


class SigmaGPT(NanoGPT):
    """σ-GPT's checkpoints: nanoGPT's, with the orders it was trained in."""

    warmup_from_zero = True

    def training_fields(self, source: Source) -> dict[str, Any]:
        """Adds the orders."""
        fields = super().training_fields(source)
        order = source.checkpoint["config"].get("order_type") if fields else None
        if order is None:
            return fields
        kind, _, percent = order.partition(":") if isinstance(order, str) else ("",) * 3
        try:
            share = float(percent) / 100 if kind == "randcur" else 0.0
        except ValueError:
            share = -1.0
        rule = f"one of {', '.join(ORDERS)}:PERCENT"
        valid = (
            kind in ORDERS and 0 <= share <= 1 and (kind == "randcur" or not percent)
        )
        check_setting(valid, source.path, "order_type", rule, order)
        return fields | {"sigma.order": ORDERS[kind], "sigma.order_start": share}

    def _config(self, export: Export) -> dict[str, Any]:
        """Adds the orders."""
        c = export.config.sigma
        order = next(theirs for theirs, ours in ORDERS.items() if ours == c.order)
        if order == "curriculumrandom" and c.order_start:
            order = f"randcur:{100 * c.order_start:g}"
        return super()._config(export) | {"order_type": order}


NANOGPT = NanoGPT(
    sizes={name: name for name in SIZES},
    shapes=GPT2.shapes,
    layer_prefix=GPT2.layer_prefix,
    numbers={"dropout": ("dropout", 0.0)},
    open_fields=("bias",),
    harmless=(
        "activation_function",
        "bias",
        *(key for key, _ in TRAINING.values()),
        *OTHER_TRAINING.split(),
    ),
    optimizer_key="optimizer",
    buffers=GPT2.buffers,
    gpt2_vocabularies=GPT2.gpt2_vocabularies,
)
# Its table of positions has a half for each of a token's two positions.
SIGMA_GPT = SigmaGPT(**{**vars(NANOGPT), "system": "sigma", "gpt2_vocabularies": ()})
