"""Every configuration field, once: its default, its meaning, its limits.

A config file in configs/ holds one experiment: a function `get_config(variant)` that
returns `base()` with its differences. A run freezes the resolved config as
`config.json`; everything after training reads that file and executes nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


class UserError(Exception):
    """Wrong usage or input: one line naming the thing and the remedy (exit code 2)."""


class CheckError(Exception):
    """A result that cannot be right: one line naming it (exit code 1)."""


def user_path(name: str) -> pathlib.Path:
    """Returns the path a user named, "~" expanded; UserError where it cannot be one."""
    try:
        path = pathlib.Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"'{name[:80]}' is no path: {error}"[:300]) from None
    return path


@dataclasses.dataclass(frozen=True)
class Field:
    """One configuration field: its type is the type of its default."""

    default: int | float | str | bool
    help: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None


MAX_SEED = 2**32 - 1  # JAX's keys hold no more: larger seeds wrap around or overflow.
SYSTEMS = ("sigma", "sigma-task", "causal", "gssm", "memory")
POSITIONS = ("learned", "sinusoidal", "learned-sinusoidal", "alibi", "rope", "none")
TOKENIZERS = ("char", "gpt2", "sentencepiece")
NORMS = ("layer", "rms", "none")
ORDERS = ("random", "left-to-right", "fractal", "curriculum")

FIELDS: dict[str, Field] = {
    "system": Field("sigma", "what is trained", SYSTEMS),
    "seed": Field(1337, "seeds every random stream", minimum=0),
    "steps": Field(5000, "optimizer steps", minimum=1),
    "batch_size": Field(64, "sequences per step over all devices", minimum=1),
    "accumulation": Field(1, "micro-batches a step is split into", minimum=1),
    "init_from": Field(
        "", "start from the parameters of this run, or of a GPT-2 folder or name"
    ),
    "model.n_layer": Field(6, "transformer blocks", minimum=1),
    "model.n_head": Field(6, "attention heads", minimum=1),
    "model.n_embd": Field(384, "width of the residual stream", minimum=1),
    "model.block_size": Field(256, "longest sequence, in tokens", minimum=2),
    "model.vocab_size": Field(0, "tokens known; 0 takes the tokenizer's", minimum=0),
    "model.dropout": Field(0.0, "probability of dropping an activation", minimum=0),
    "model.positions": Field(
        "learned",
        "how a token knows where it stands; σ-GPT's are learned or sinusoidal",
        POSITIONS,
    ),
    "model.sinusoid_scale": Field(
        0.03, "sinusoidal: their amplitude, about that of fresh token embeddings"
    ),
    "model.rope_theta": Field(
        1e4, "RoPE: ratio of the fastest frequency to the slowest", minimum=1
    ),
    "model.rope_frequency": Field(
        1.0, "RoPE: the fastest frequency, in radians per token"
    ),
    "model.rope_pairs": Field(
        "halves",
        "RoPE: channel k of a head turns with k + half of its width, or 2k with 2k + 1",
        ("halves", "neighbours"),
    ),
    "model.norm": Field("layer", "before attention and feed-forward", NORMS),
    "model.norm_epsilon": Field(1e-5, "added to a norm's variance", minimum=0),
    "model.final_norm": Field(True, "a norm before the logits too"),
    "model.bias": Field(
        False, "biases in layer norms, linear layers (not SwiGLU's) and an untied head"
    ),
    "model.attention_bias": Field(True, "with model.bias: in attention too"),
    "model.activation": Field(
        "gelu",
        "of the feed-forward; gelu_tanh is OpenAI's, swiglu has a gate",
        ("gelu", "gelu_tanh", "relu", "swiglu"),
    ),
    "model.feed_forward_width": Field(
        0, "0 is 4 n_embd, or for swiglu two thirds of it: as many weights", minimum=0
    ),
    "model.tied_head": Field(True, "logits from the token table, not from their own"),
    "model.init": Field(
        "gpt2",
        "of matrices: Gaussian of deviation 0.02, less into the residual stream; or "
        "width_in ^ -0.5, cut off at three deviations",
        ("gpt2", "fan_in"),
    ),
    "model.key_width": Field(
        0, "of a head's queries and keys; 0 is that of its values", minimum=0
    ),
    "model.qk_norm": Field(False, "bring queries and keys to root mean square 1"),
    "model.dtype": Field(
        "float32",
        "operands of matrix products; parameters, softmax and loss stay float32",
        ("float32", "bfloat16", "float64"),
    ),
    "model.remat": Field(
        "none",
        "computed again in the backward pass, to save memory: nothing, all of a block "
        "but its matrix products, or all of it",
        ("none", "dots", "full"),
    ),
    "model.scan_layers": Field(
        False, "compile one block and loop over the layers: minutes less for deep ones"
    ),
    "optimizer.learning_rate": Field(1e-3, "peak learning rate", minimum=0),
    "optimizer.min_learning_rate": Field(1e-4, "where the cosine ends", minimum=0),
    "optimizer.warmup_steps": Field(100, "linear warmup, in steps", minimum=0),
    "optimizer.warmup_from_zero": Field(
        False, "the first step's rate is 0, not peak / (warmup_steps + 1)"
    ),
    "optimizer.decay_steps": Field(
        0, "step at which the cosine ends; 0 means steps", minimum=0
    ),
    "optimizer.rates": Field(
        "",
        "instead of the cosine, rates from steps on, like 2000:2e-5,6000:4e-6; before "
        "them learning_rate",
    ),
    "optimizer.beta1": Field(0.9, "AdamW: decay of the first moment", minimum=0),
    "optimizer.beta2": Field(0.99, "AdamW: decay of the second moment", minimum=0),
    "optimizer.weight_decay": Field(0.1, "AdamW: decay of parameters", minimum=0),
    "optimizer.decays": Field(
        "matrices", "AdamW: which parameters decay", ("matrices", "all")
    ),
    "optimizer.grad_clip": Field(
        1.0, "largest global gradient norm; 0 never clips", minimum=0
    ),
    "optimizer.ema_decay": Field(
        0.0,
        "average parameters with this decay a step, evaluate and sample with the "
        "average; 0 keeps none",
        minimum=0,
    ),
    "data.path": Field(
        "data/shakespeare.txt",
        "a text file, a folder of text files, or a folder of nanoGPT .bin files; of "
        "gssm an HDF5 file, or empty to draw sequences as they are needed; of memory a "
        "folder of documents, or empty for the recall task",
    ),
    "data.tokenizer": Field("char", "vocabulary of the text", TOKENIZERS),
    "data.vocab_size": Field(
        0, "sentencepiece: tokens to train for; 0 takes those of its model", minimum=0
    ),
    "data.sentencepiece_model": Field(
        "", "sentencepiece: a .model file to use; without it one is trained"
    ),
    "data.sentencepiece_type": Field(
        "unigram", "sentencepiece: how one is trained", ("unigram", "bpe")
    ),
    "data.split": Field(
        "end",
        "which part is held out: the end of the text (nanoGPT's), or chunks of it that "
        "split_seed draws (teenyGPT's)",
        ("end", "chunks"),
    ),
    "data.val_fraction": Field(0.1, "share of the text held out to choose by"),
    "data.test_fraction": Field(
        0.0, "share held out and never looked at; 0 has no test split", minimum=0
    ),
    "data.chunk_tokens": Field(10000, "split=chunks: tokens of each", minimum=2),
    "data.split_seed": Field(0, "split=chunks: seeds their order", minimum=0),
    "sigma.order": Field("random", "generation orders in training", ORDERS),
    "sigma.order_start": Field(
        0.0, "curriculum: share of random orders at step 0", minimum=0
    ),
    "sigma.left_to_right_share": Field(
        0.0, "share of sequences read left to right whatever the order", minimum=0
    ),
    "sigma.begin_token": Field(
        False, "read a beginning token first, so that the first token is modelled too"
    ),
    "sigma.adaptive_norm": Field(
        False, "scale and shift each block's norms by the target position (AdaLN)"
    ),
    "task.name": Field("maze", "what a sigma-task learns; see docs/sigma-tasks.md"),
    "task.train_sequences": Field(100000, "drawn to train on", minimum=1),
    "task.val_sequences": Field(10000, "drawn to judge by", minimum=1),
    "task.data_seed": Field(0, "seeds them", minimum=0),
    "task.path": Field(
        "",
        "of file two texts, TRAIN,VAL; of mnist a folder of IDX files; of vertical a "
        "CSV file of flights, empty to draw them",
    ),
    "task.learn": Field(
        "rest",
        "what the loss counts: what follows the given tokens; or all, the given ones "
        "shuffled too, as the original does",
        ("rest", "all"),
    ),
    "task.strategies": Field(
        "left-to-right,shuffled,fractal,burst,exact-burst",
        "ways to generate at an evaluation; empty generates nothing",
    ),
    "task.eval_sequences": Field(
        64, "generated and judged in each way, per split and evaluation", minimum=1
    ),
    "task.height": Field(13, "of the grid: maze, snake, picoclvr, ...", minimum=2),
    "task.width": Field(21, "of the grid", minimum=2),
    "task.walls": Field(15, "in the grid: maze, greed", minimum=0),
    "task.min_distance": Field(
        10, "maze: rows plus columns from start to goal, at least", minimum=1
    ),
    "task.length": Field(
        100,
        "of a sequence: tokens of the toy laws, steps of stack, snake, ...",
        minimum=1,
    ),
    "task.probability": Field(0.1, "product: of a one", minimum=0),
    "task.step_length": Field(10, "step: ones in a row", minimum=1),
    "task.colors": Field(5, "snake, picoclvr: colours", minimum=1),
    "task.digits": Field(3, "stack, addition: digits of a number", minimum=1),
    "gssm.graph": Field(
        "data/graphs/easy.yaml",
        "a JSON or YAML file with the nodes, or the JSON itself (as a run keeps it)",
    ),
    "gssm.sequences": Field(
        0, "train on the first so many sequences only; 0 on all there are", minimum=0
    ),
    "gssm.graph_seed": Field(0, "draws the kernels of the graph", minimum=0),
    "gssm.clip": Field(
        1e-10, "least probability in a kernel drawn; 0 leaves zeros", minimum=0
    ),
    "gssm.first_token": Field(
        "start",
        "sequences begin with the start state 0, or with the first token drawn",
        ("start", "drawn"),
    ),
    "memory.mode": Field(
        "associative",
        "what is read from the memory: vectors joined with the input (VardaGPT); keys "
        "and values in one layer's attention (Memorizing Transformer); the next token "
        "of similar states, mixed into the prediction without training (kNN-LM)",
        ("associative", "attention", "output"),
    ),
    "memory.reading": Field(
        "on",
        "read one's own memory, none, or another row's",
        ("on", "off", "shuffled"),
    ),
    "memory.memory_size": Field(1024, "most entries of a row; more evict", minimum=1),
    "memory.memory_dim": Field(
        0, "associative: width of a storable vector; 0 is n_embd", minimum=0
    ),
    "memory.num_search_results": Field(5, "entries read for each token", minimum=1),
    "memory.shared": Field(False, "all rows of a batch share one memory"),
    "memory.eviction": Field(
        "oldest",
        "of a full row: which entry gives way, or whether what is new is left out",
        ("oldest", "weakest", "refuse"),
    ),
    "memory.keep": Field(
        "all",
        "in evaluation and sampling: store all, or what the store decision keeps",
        ("all", "decided"),
    ),
    "memory.forgetfulness_factor": Field(
        0.0, "training: share of entries forgotten at random a step", minimum=0
    ),
    "memory.decay": Field(
        1.0, "training: an entry's strength is multiplied by this a step", minimum=0
    ),
    "memory.context": Field(
        3,
        "associative: tokens that make an address, each weighing 0.6 of the next",
        minimum=1,
    ),
    "memory.store_layer": Field(
        0,
        "associative: the hidden state that is stored: 0 is what enters the first "
        "block, i leaves the i-th, -1 the last one's norm",
    ),
    "memory.join_std": Field(
        0.0, "associative: deviation of fresh weights on what is read; 0 reads nothing"
    ),
    "memory.budget": Field(
        0.0,
        "associative: loss for each entry kept, growing from 0.2 to 0.4 of the steps; "
        "store decisions are then drawn in training",
        minimum=0,
    ),
    "memory.delete": Field(False, "associative: the model also deletes what it read"),
    "memory.layer": Field(-1, "attention: the block that reads; -1 is the last"),
    "memory.weight": Field(
        0.25, "output: share of the memory's distribution", minimum=0
    ),
    "memory.temperature": Field(
        1.0, "output: of distances, each divided by the width", minimum=1e-6
    ),
    "memory.index_type": Field(
        "flat", "exact, or approximate", ("flat", "ivf", "compressed", "graph")
    ),
    "memory.num_clusters": Field(100, "ivf, compressed: clusters", minimum=1),
    "memory.num_probes": Field(8, "ivf, compressed: clusters looked at", minimum=1),
    "memory.code_bytes": Field(64, "compressed: bytes of a code", minimum=1),
    "memory.candidates": Field(
        16, "compressed: times as many are ranked exactly", minimum=1
    ),
    "memory.links": Field(32, "graph: links of a node (HNSW's M)", minimum=2),
    "memory.ef_construction": Field(40, "graph: breadth of building", minimum=1),
    "memory.ef_search": Field(64, "graph: breadth of searching", minimum=1),
    "memory.threads": Field(1, "of FAISS, which slow down XLA's", minimum=1),
    "patience": Field(
        0, "stop after so many evaluations without a better loss; 0 never", minimum=0
    ),
    "mesh.data": Field(
        0, "devices that split a batch; 0 is all that fsdp and tensor leave", minimum=0
    ),
    "mesh.fsdp": Field(
        1, "devices that split a batch, and parameters and moments too", minimum=1
    ),
    "mesh.tensor": Field(
        1, "devices that split heads, feed-forwards and the vocabulary", minimum=1
    ),
    "deterministic": Field(
        False,
        "sum gradients in a fixed order: the same bits on any number of devices that "
        "divides deterministic_groups",
    ),
    "deterministic_groups": Field(
        8, "parts of a batch that deterministic sums one after another", minimum=1
    ),
    "eval_interval": Field(250, "steps between evaluations", minimum=1),
    "eval_sequences": Field(256, "fixed windows per split and evaluation", minimum=1),
    "checkpoint_interval": Field(250, "steps between checkpoints", minimum=1),
    "keep": Field(2, "latest checkpoints kept, beside the best one", minimum=1),
    "nonfinite": Field(
        "stop",
        "a step whose loss or gradient is not finite stops the run, or is skipped",
        ("stop", "skip"),
    ),
    "log_interval": Field(10, "steps between metrics lines", minimum=1),
    "profile": Field(
        "",
        "steps to trace for XProf, FIRST:LAST, into profile/ of the run; also says "
        "where the time of a step goes",
    ),
    "tensorboard": Field(False, "also write TensorBoard events (extra: tracking)"),
    "wandb_project": Field("", "also log to this Weights & Biases project"),
}


def base() -> ConfigDict:
    """Returns the default config, locked: every field of `FIELDS` and no other."""
    config = ConfigDict()
    for key, field in FIELDS.items():
        *groups, name = key.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = ConfigDict()
            node = node[group]
        node[name] = field.default
    return config.lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} for a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def override(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Sets dotted keys in place; strings are read as the field's type.

    Raises:
      UserError: for an unknown key (naming the nearest known one) or a value that
        the field cannot hold.
    """
    for key, value in changes.items():
        check_key(key)
        config.update_from_flattened_dict({key: _parse(key, FIELDS[key], value)})
    return config


def check_key(key: str) -> None:
    """Raises UserError for an unknown key, naming the nearest known one."""
    if key not in FIELDS:
        near = difflib.get_close_matches(key, FIELDS, n=1, cutoff=0.0)
        raise UserError(f"unknown config key '{key}': did you mean '{near[0]}'?")


def with_variant(
    config: ConfigDict, variant: str, variants: Mapping[str, Mapping[str, Any]]
) -> ConfigDict:
    """Applies the named variant of a config file; "" changes nothing."""
    if variant and variant not in variants:
        known = ", ".join(f":{name}" for name in variants) or "none"
        raise UserError(f"unknown variant ':{variant}': this config has {known}")
    return override(config, variants.get(variant, {}))


def _parse(key: str, field: Field, value: Any) -> Any:
    kind = type(field.default)
    try:
        if kind is bool and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
        elif kind is int and float(value) != int(float(value)):
            raise ValueError
        elif kind is int:
            value = (
                int(value) if str(value).lstrip("+-").isdigit() else int(float(value))
            )
        elif kind is bool and not isinstance(value, bool):
            raise ValueError
        value = kind(value)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (KeyError, ValueError, TypeError, OverflowError):
        raise UserError(
            f"config key '{key}' holds {_KINDS[kind]}: '{value}' is none"
        ) from None
    if field.choices and value not in field.choices:
        raise UserError(
            f"config key '{key}' is one of {', '.join(field.choices)}: not '{value}'"
        )
    if field.minimum is not None and not value >= field.minimum:
        raise UserError(
            f"config key '{key}' is at least {field.minimum:g}: not {value}"
        )
    return value


_KINDS = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
}


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes --config.a.b=value (or two words) out of a command line.

    Returns:
      (the other arguments, {"a.b": "value"}).
    """
    rest, overrides = [], {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        overrides[key] = value if equals else next(words, "")
    return rest, overrides


def memory_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes --config.memory.X=value out of a command line that reads a run.

    A memory is what a trained model may be given another of: with system=memory and
    memory.mode=output even one that had none.

    Raises:
      UserError: for other fields, which are the run's.
    """
    rest, overrides = split_overrides(argv)
    for key in overrides:
        if not key.startswith("memory.") and key != "system":
            raise UserError(
                f"--config.{key} is for training: here only --config.memory.* and "
                "--config.system=memory change a run"
            )
    return rest, overrides


def describe_fields(prefix: str = "") -> str:
    """Returns the help text of every field, for --help, or of those of a group."""
    lines = ["config fields, set by --config.NAME=VALUE (default):"]
    fields = {key: f for key, f in FIELDS.items() if key.startswith(prefix)}
    for key, field in fields.items():
        choices = f" [{'|'.join(field.choices)}]" if field.choices else ""
        lines.append(f"  {key} ({field.default!r})\n      {field.help}{choices}")
    return "\n".join(lines)


def load(spec: str, overrides: Mapping[str, str]) -> ConfigDict:
    """Executes a config file, "path.py" or "path.py:variant", and applies overrides.

    Raises:
      UserError: for a missing file, one without get_config, or a bad override.
    """
    path, _, variant = spec.partition(":")
    file = user_path(path)
    if not file.is_file():
        known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        hint = f": there are {', '.join(known)}" if known else ""
        raise UserError(f"no config file '{path}'{hint}")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"config file '{path}' is not Python: its name ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(variant)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(
            f"config file '{path}' cannot be read: {_one_line(error)}"
        ) from None
    if (
        not isinstance(config, ConfigDict)
        or not FIELDS.keys() <= flatten(config).keys()
    ):
        raise UserError(f"'{path}': get_config must return base() with its differences")
    return validate(override(config, overrides))


def _one_line(error: Exception) -> str:
    """Returns kind and message; of a long one (a locked config's) the two ends."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-100:]}"


def validate(config: ConfigDict) -> ConfigDict:
    """Checks every value and the relations between fields; returns the config.

    Raises:
      UserError: naming the first field that cannot be.
    """
    override(config, flatten(config))
    for name, seed in (
        ("seed", config.seed),
        ("gssm.graph_seed", config.gssm.graph_seed),
        ("task.data_seed", config.task.data_seed),
    ):
        if seed > MAX_SEED:
            raise UserError(f"{name} is at most {MAX_SEED}: not {seed}")
    if config.gssm.clip >= 1:
        raise UserError(f"gssm.clip is below 1: not {config.gssm.clip}")
    if config.batch_size % config.accumulation:
        raise UserError(
            f"batch_size {config.batch_size} does not divide into accumulation "
            f"{config.accumulation} micro-batches"
        )
    profiled_steps(config.profile)
    rows, groups = config.batch_size, config.deterministic_groups
    if config.deterministic and rows % groups:
        raise UserError(
            f"batch_size {rows} does not divide into deterministic_groups {groups}"
        )
    if not 0 <= config.model.dropout < 1:
        raise UserError(f"model.dropout is below 1: not {config.model.dropout}")
    if not 0 < config.data.val_fraction < 1:
        raise UserError(
            f"data.val_fraction is between 0 and 1: not {config.data.val_fraction}"
        )
    if config.data.val_fraction + config.data.test_fraction >= 1:
        raise UserError(
            f"data.val_fraction {config.data.val_fraction} and data.test_fraction "
            f"{config.data.test_fraction} leave nothing to train on: lower one"
        )
    double = config.model.positions in ("learned", "sinusoidal")
    if config.system.startswith("sigma") and not double:
        raise UserError(
            f"model.positions={config.model.positions} is for causal models: σ-GPT has "
            "double positions, learned or sinusoidal"
        )
    rate_steps(config.optimizer.rates)
    for name in ("order_start", "left_to_right_share"):
        if config.sigma[name] > 1:
            raise UserError(f"sigma.{name} is at most 1: not {config.sigma[name]}")
    if config.system == "memory":
        _validate_memory(config)
    if config.optimizer.ema_decay >= 1:
        raise UserError(
            f"optimizer.ema_decay is below 1: not {config.optimizer.ema_decay}"
        )
    return config


def profiled_steps(text: str) -> range:
    """Reads `profile`: the steps that FIRST:LAST names, both included.

    Raises:
      UserError: for anything else but an empty text.
    """
    first, _, last = text.partition(":")
    if not text:
        return range(0)
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"profile is FIRST:LAST, steps such as 10:15: not '{text}'")
    return range(int(first), int(last) + 1)


def _validate_memory(config: ConfigDict) -> None:
    c = config.memory
    if config.accumulation > 1:
        raise UserError(
            "accumulation is 1 for system=memory: the memory changes with every segment"
        )
    for name in ("forgetfulness_factor", "decay", "weight"):
        if c[name] > 1:
            raise UserError(f"memory.{name} is at most 1: not {c[name]}")
    layers = config.model.n_layer
    for name, last in (("layer", layers - 1), ("store_layer", layers)):
        if not -1 <= c[name] <= last:
            raise UserError(f"memory.{name} is -1 to {last}: not {c[name]}")
    if c.mode == "attention" and config.model.positions == "rope":
        raise UserError(
            "memory.mode=attention does not go with model.positions=rope, which turns "
            "keys by their place: take learned, sinusoidal, alibi or none"
        )


def rate_steps(text: str) -> list[tuple[int, float]]:
    """Reads optimizer.rates: [(step, rate from there on)], the steps growing.

    Raises:
      UserError: for anything else.
    """
    try:
        pairs = [word.split(":") for word in text.split(",") if text]
        found = [(int(step), float(rate)) for step, rate in pairs]
        if found != sorted(set(found)) or any(s < 0 or r < 0 for s, r in found):
            raise ValueError
    except ValueError:
        raise UserError(
            f"optimizer.rates are like 2000:2e-5,6000:4e-6: not '{text}'"
        ) from None
    return found


def make_folder(workdir: pathlib.Path) -> None:
    """Makes the folder of a run; UserError where it cannot be made."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir '{workdir}' cannot be written: {error.strerror}"
        ) from None


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Freezes a resolved config as JSON, atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    temporary.replace(path)


def load_frozen(workdir: pathlib.Path) -> ConfigDict:
    """Reads the config.json of a run; UserError where it is missing or damaged."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"'{workdir}' holds no run: there is no config.json in it")
    try:
        return validate(override(base(), flatten(json.loads(path.read_text()))))
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from None


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old value, new value)} for the fields that differ."""
    a, b = flatten(old), flatten(new)
    return {key: (a[key], b[key]) for key in FIELDS if a[key] != b[key]}
