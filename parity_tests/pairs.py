"""A PyTorch model and ours with the same random weights, and steps of both.

A new original is a `Twin` in `TWINS`; what is measured of it is in `measures`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from ml_collections import ConfigDict
from torch.nn import functional as F

from configs.sigma_task import ORIGINAL
from jaxgpt import config as configs
from jaxgpt.interop import formats, nanollama, rules
from jaxgpt.interop.rules import Rule, layer_rules
from jaxgpt.model.positions import in_order
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from parity_tests.torch_gpt import GPT, GPTConfig
from parity_tests.torch_memory import AssociativeGPT, AttentionGPT, OutputGPT
from parity_tests.torch_nanollama import NanoLlama
from parity_tests.torch_tasks import TaskGPT
from parity_tests.torch_teeny import Teeny

L, T, V, B = 2, 17, 23, 4
FFN_DIM = 50  # nanollama's feed-forward, of which 4 n_embd is no multiple.
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Twin:
    """How an original is written in PyTorch, and what it is called here.

    Attributes:
      make: (sizes by our names, dropout) -> the module.
      fields: of our config, beyond sizes and those that the format fixes.
      n_head, n_embd: of the measured model.
      decays_all: AdamW's weight decay is for all parameters, and gradients are not
        clipped; otherwise as nanoGPT.
      warmup_from_zero: the first step has rate 0, as σ-GPT's.
      table: of names, where the original is no import format.
      has_dropout: in the twin.
      exact: takes what the twin computes in float32, whatever its dtype, from ours, as
        cosines of PyTorch and NumPy differ in the last bit.
    """

    make: Callable[[dict, float], torch.nn.Module]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    n_head: int = 3
    n_embd: int = 42
    decays_all: bool = False
    warmup_from_zero: bool = False
    table: Callable[[ConfigDict], list[Rule]] | None = None
    has_dropout: bool = False
    exact: Callable[[torch.nn.Module], None] | None = None


def _gpt(double: bool) -> Callable:
    return lambda sizes, dropout: GPT(
        GPTConfig(**sizes, bias=True, dropout=dropout, double=double)
    )


def _huggingface(sizes: dict, dropout: float) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=sizes["vocab_size"],
        n_positions=sizes["block_size"],
        **{key: sizes[key] for key in ("n_embd", "n_layer", "n_head")},
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
    )
    return GPT2LMHeadModel(config).eval()


def _task_table(model: ConfigDict) -> list[Rule]:
    table = [Rule("embedding.weight", "table")]
    for i in range(model.n_layer):
        for there, here, bias in (
            ("norm_1", "norm_1", True),
            ("attn.qkv", "attn/qkv", False),
            ("attn.out", "attn/out", False),
            ("norm_2", "norm_2", True),
            ("up", "mlp/up", True),
            ("down", "mlp/down", True),
        ):
            path = f"transformer/blocks/{i}/{here}"
            table += layer_rules(f"blocks.{i}.{there}", path, bias)
    return table + layer_rules("readout", "unembed", True)


def _nanollama(sizes: dict, dropout: float) -> torch.nn.Module:
    keys = formats.get_format("nanollama").sizes
    names = {keys[name]: size for name, size in sizes.items()}
    return NanoLlama(names | {"ffn_dim": FFN_DIM, "rope_theta": 1e4})


def _take_angles(module: torch.nn.Module) -> None:
    for layer in module.layers:
        length, pairs, _ = layer.attn.rope_modulator.shape
        table = nanollama.modulator(length, 2 * pairs, 1e4)
        layer.attn.rope_modulator = torch.tensor(table).double()


# The transformer of σ-GPT's tasks, but for its sizes.
TASK_MODEL = {"system": "sigma", "sigma.begin_token": True} | {
    key: value
    for key, value in ORIGINAL.items()
    if key.startswith("model.") and key != "model.dropout"
}
GELU = {"model.bias": True, "model.activation": "gelu"}
TWINS = {
    "nanogpt": Twin(_gpt(double=False), GELU, has_dropout=True),
    "sigma-gpt": Twin(_gpt(double=True), GELU, warmup_from_zero=True, has_dropout=True),
    "gpt2": Twin(
        _huggingface,
        {"model.bias": True, "model.activation": "gelu_tanh"},
        has_dropout=True,
    ),
    # The slopes of 2 heads are numbers that float32 has, as the twin's buffer is.
    "teenygpt": Twin(
        lambda sizes, _: Teeny(*(sizes[key] for key in SIZES)),
        {
            "model.positions": "alibi",
            "model.activation": "swiglu",
            "model.norm": "layer",
        },
        n_head=2,
        decays_all=True,
    ),
    "nanollama": Twin(
        _nanollama,
        {"model.feed_forward_width": FFN_DIM, "model.rope_angles": "float32"},
        decays_all=True,
        warmup_from_zero=True,
        exact=_take_angles,
    ),
    "sigma-tasks": Twin(
        lambda sizes, _: TaskGPT(
            *(sizes[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size")),
            key_width=10,
            hidden=50,
        ),
        {
            **TASK_MODEL,
            "model.key_width": 10,
            "model.feed_forward_width": 50,
        },
        n_head=2,
        n_embd=44,
        table=_task_table,
    ),
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models of one original, of the same weights.

    Tokens [B, T] (or T + 1, for those that read left to right) and orders [B, T] are
    int32; logits are of every token read but the last.
    """

    name: str
    module: torch.nn.Module
    system: System
    table: list[Rule]

    def to_ours(self, arrays: dict[str, torch.Tensor]) -> dict:
        """PyTorch's parameters (or gradients) as our tree."""
        abstract = jax.eval_shape(self.system.init, jax.random.key(0))
        # No format has scalars: they go through as vectors of one number.
        vector = lambda a: jax.ShapeDtypeStruct(a.shape or (1,), a.dtype)
        state = {n: np.atleast_1d(a.detach().numpy().copy()) for n, a in arrays.items()}
        vectors = jax.tree.map(vector, abstract)
        tree = rules.to_jax(state, self.table, vectors, self.name)
        return jax.tree.map(lambda a, like: a.reshape(like.shape), tree, abstract)

    def params(self) -> dict:
        """PyTorch's parameters now, as our tree."""
        return self.to_ours(dict(self.module.named_parameters()))

    def read_there(self, tokens: np.ndarray, order: np.ndarray):
        """What PyTorch's model reads: tokens, and for σ-GPT both positions."""
        read, at = torch.tensor(tokens).long(), torch.tensor(order).long()
        if self.system.extra_tokens:
            return read, ()
        read = read.gather(1, at)
        if self.system.model_config.begin_token:
            first = torch.full_like(read[:, :1], self.system.model_config.vocab_size)
            read = torch.cat([first, read], 1)
            at = torch.cat([torch.full_like(first, -1), at], 1)
        return read, (at[:, :-1], at[:, 1:])

    def logits_there(self, tokens: np.ndarray, order: np.ndarray) -> torch.Tensor:
        """PyTorch's logits."""
        read, where = self.read_there(tokens, order)
        logits = self.module(read[:, :-1], *([where] if where else []))
        return getattr(logits, "logits", logits)

    def loss_there(self, tokens: np.ndarray, order: np.ndarray) -> torch.Tensor:
        """PyTorch's mean loss."""
        read, _ = self.read_there(tokens, order)
        logits = self.logits_there(tokens, order)
        return F.cross_entropy(logits.flatten(0, 1), read[:, 1:].flatten())

    def read(self, tokens: np.ndarray, order: np.ndarray):
        """What our model reads: tokens [B, S + 1] and positions, each [B, S]."""
        if not self.system.extra_tokens:
            return self.system.read(jnp.asarray(tokens), jnp.asarray(order))
        shape = (len(tokens), tokens.shape[1] - 1)
        positions = in_order(shape[1], self.system.model_config)
        return tokens, tuple(jnp.broadcast_to(p, shape) for p in positions)

    def loss(self, params: dict, batch: dict) -> jax.Array:
        """Our mean loss."""
        return self.system.nll(params, batch).mean()


def make(
    name: str, dtype: str, sizes: dict | None = None, noise: float = 0.1, **fields
) -> Pair:
    """Builds a pair; in float64 inside jax.enable_x64 only.

    Args:
      name: of `TWINS`.
      dtype: of both models.
      sizes: by our names, instead of those measured.
      noise: added to every parameter, gains and biases too.
      fields: of `config.model`.
    """
    twin, sizes = TWINS[name], sizes or sizes_of(name)
    torch.manual_seed(0)
    module = twin.make(sizes, fields.get("dropout", 0.0)).to(getattr(torch, dtype))
    if twin.exact and dtype == "float64":
        twin.exact(module)
    for parameter in module.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    system = build_system(settings(name, sizes, dtype=dtype, **fields))
    find = twin.table or formats.get_format(name).rules
    return Pair(name, module, system, find(system.config.model))


def sizes_of(name: str) -> dict[str, int]:
    """Returns the sizes of the measured model."""
    twin = TWINS[name]
    return dict(zip(SIZES, (L, twin.n_head, twin.n_embd, T, V), strict=True))


def settings(name: str, sizes: dict, **fields: Any) -> ConfigDict:
    """Returns the config of our model of an original, and of its training."""
    twin = TWINS[name]
    model = {f"model.{key}": value for key, value in (sizes | fields).items()}
    changes = twin.fields | model
    if not twin.table:
        form = formats.get_format(name)
        short = {k.removeprefix("model."): v for k, v in changes.items()}
        fixed = {f"model.{k}": v for k, v in form.fixed_fields(short).items()}
        changes = {"system": form.system} | fixed | changes
    changes |= {"optimizer.warmup_steps": 10, "optimizer.decay_steps": 40}
    changes |= {"optimizer.warmup_from_zero": twin.warmup_from_zero}
    if twin.decays_all:
        changes |= {"optimizer.decays": "all", "optimizer.grad_clip": 0.0}
    return configs.override(configs.base(), changes)


def random_batches(pair: Pair, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and orders [count, B, T] drawn from a fixed seed."""
    model = pair.system.model_config
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (count, B, pair.system.window))
    block = np.tile(np.arange(model.block_size), (count, B, 1))
    return tokens.astype(np.int32), rng.permuted(block, axis=2).astype(np.int32)


def rate(config: ConfigDict, step: int) -> float:
    """The learning rate of nanoGPT's, or of σ-GPT's, training program at a step."""
    c = config.optimizer
    if step < c.warmup_steps:
        ahead = 0 if c.warmup_from_zero else 1
        return c.learning_rate * (step + ahead) / (c.warmup_steps + ahead)
    end = c.decay_steps or config.steps
    done = min((step - c.warmup_steps) / (end - c.warmup_steps), 1)
    span = c.learning_rate - c.min_learning_rate
    return c.min_learning_rate + 0.5 * (1 + math.cos(math.pi * done)) * span


def adamw(pair: Pair) -> torch.optim.AdamW:
    """PyTorch's optimizer, grouped as the original's."""
    c = pair.system.config.optimizer
    named = list(pair.module.parameters())
    flat = [p for p in named if p.dim() < 2]
    groups = [{"params": [p for p in named if p.dim() > 1]}]
    groups.append({"params": flat, "weight_decay": 0.0})
    if c.decays == "all":
        groups = [{"params": named}]
    for parameter in named:
        parameter.grad = torch.zeros_like(parameter)
    betas = (c.beta1, c.beta2)
    return torch.optim.AdamW(groups, lr=1.0, betas=betas, weight_decay=c.weight_decay)


def train_there(
    pair: Pair, optimizer, tokens: np.ndarray, orders: np.ndarray, first: int = 0
) -> Iterator[tuple[float, dict]]:
    """Trains PyTorch's model; yields the loss of each step and its gradients."""
    for index, (part, order) in enumerate(zip(tokens, orders, strict=True), first):
        yield step_there(pair, optimizer, pair.loss_there(part, order), index)


def step_there(pair: Pair, optimizer, loss, index: int) -> tuple[float, dict]:
    """One step of PyTorch's model; returns the loss and its gradients."""
    c = pair.system.config
    # To zeros: what a first segment does not use decays all the same, as ours does.
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in pair.module.named_parameters()}
    if c.optimizer.grad_clip:
        parameters = pair.module.parameters()
        torch.nn.utils.clip_grad_norm_(parameters, c.optimizer.grad_clip)
    for group in optimizer.param_groups:
        group["lr"] = rate(c, index)
    optimizer.step()
    return loss.item(), grads


def train_here(
    pair: Pair, params: dict, state: Any, tokens: np.ndarray, orders: np.ndarray
) -> Iterator[tuple[float, dict, dict]]:
    """Trains ours from a state of the optimizer; yields loss, gradients, parameters."""
    optimizer = optimizers.make_optimizer(pair.system.config)

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(pair.loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, grads

    for part, order in zip(tokens, orders, strict=True):
        batch = {"tokens": part, "order": order}
        params, state, value, grads = step(params, state, batch)
        yield float(value), grads, params


# Of the memory: segments of a document, tokens of a segment, and documents.
SEGMENTS, SEGMENT, DOCUMENTS = 4, 8, 3
MEMORIES = {
    "output": OutputGPT,
    "attention": AttentionGPT,
    "associative": AssociativeGPT,
}


def make_memory(mode: str) -> Pair:
    """Builds GPT-2 with a memory; `attention` reads all that is stored."""
    results = SEGMENTS * SEGMENT if mode == "attention" else 5
    sizes = sizes_of("nanogpt") | {"block_size": SEGMENT, "vocab_size": 2 * V}
    torch.manual_seed(0)
    module = MEMORIES[mode](GPTConfig(**sizes, bias=True), results)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = settings("nanogpt", sizes)
    changes = {"system": "memory", "memory.mode": mode, "data.path": ""}
    changes |= {"memory.num_search_results": results}
    changes |= {"memory.memory_size": SEGMENTS * SEGMENT}
    system = build_system(configs.validate(configs.override(config, changes)))
    base = formats.get_format("nanogpt").rules(config.model)
    table = [dataclasses.replace(rule, name=f"gpt.{rule.name}") for rule in base]
    if mode == "attention":
        table.append(Rule("gate", "memory/gate"))
    if mode == "associative":
        table.append(Rule("sharpness", "memory/sharpness"))
        for layer in ("storable_vector", "store_decision", "join_input", "join_memory"):
            table += layer_rules(layer, f"memory/{layer}", layer != "join_memory")
    return Pair(mode, module, system, table)


def segments(pair: Pair) -> Iterator[tuple[dict, torch.Tensor]]:
    """Yields batches of our system and tokens [B, T + 1], document by document.

    PyTorch's model forgets where a document begins, as ours does by `start`.
    """
    rng, vocabulary = np.random.default_rng(0), pair.system.model_config.vocab_size
    for document in range(DOCUMENTS):
        tokens = rng.integers(0, vocabulary, (B, SEGMENTS * SEGMENT + 1))
        pair.module.begin()
        for start in range(0, SEGMENTS * SEGMENT, SEGMENT):
            part = tokens[:, start : start + SEGMENT + 1]
            batch = {
                "tokens": part.astype(np.int32),
                "document": np.full(B, document, np.int32),
                "start": np.full(B, start, np.int32),
                "weight": np.ones((B, SEGMENT), np.float32),
            }
            yield batch, torch.tensor(part)
