"""A PyTorch model and ours with the same random weights, and steps of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxgpt import config as configs
from jaxgpt.interop import formats, rules
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from parity_tests.torch_gpt import GPT, GPTConfig
from parity_tests.torch_teeny import Teeny

L, H, D, T, V, B = 2, 3, 42, 17, 23, 4


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models of one original; `loss_of` is PyTorch's on (tokens, order)."""

    name: str
    module: torch.nn.Module
    loss_of: Callable[[np.ndarray, np.ndarray], torch.Tensor]
    logits_of: Callable[[np.ndarray, np.ndarray], torch.Tensor]
    system: System
    table: list[rules.Rule]

    def to_ours(self, arrays: dict[str, torch.Tensor]) -> dict:
        """PyTorch's parameters (or gradients) as our tree."""
        abstract = jax.eval_shape(self.system.init, jax.random.key(0))
        state = {name: a.detach().numpy().copy() for name, a in arrays.items()}
        return rules.to_jax(state, self.table, abstract, self.name)

    def params(self) -> dict:
        """PyTorch's parameters now, as our tree."""
        return self.to_ours(dict(self.module.named_parameters()))

    def batch(self, tokens: np.ndarray, order: np.ndarray) -> dict:
        """A batch as our system takes it."""
        return {"tokens": tokens, "order": order}

    def loss(self, params: dict, batch: dict) -> jax.Array:
        """Our mean loss."""
        return self.system.nll(params, batch).mean()


def make(name: str, dtype: str, size=(L, H, D, T, V), noise: float = 0.1) -> Pair:
    """Builds a pair; in float64 inside jax.enable_x64 only."""
    layers, heads, width, block, vocab = size
    form = formats.get_format(name)
    torch.manual_seed(0)
    double = name == "sigma-gpt"
    if name == "gpt2":
        module, loss_of, logits_of = _huggingface(size)
    elif name == "teenygpt":
        # The slopes of 2 heads are numbers that float32 has, as the twin's buffer is.
        heads = 2
        module = Teeny(layers, heads, width, block, vocab)
        loss_of, logits_of = _twin(module, False)
    else:
        config = GPTConfig(layers, heads, width, block, vocab, bias=True, double=double)
        module = GPT(config)
        loss_of, logits_of = _twin(module, double)
    module = module.to(getattr(torch, dtype))
    for parameter in module.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    fields = {"n_layer": layers, "n_head": heads, "n_embd": width, "block_size": block}
    fields |= {"vocab_size": vocab, "bias": True, "dtype": dtype}
    fields["activation"] = "gelu_tanh" if name == "gpt2" else "gelu"
    if name == "teenygpt":
        fields |= {"positions": "alibi", "activation": "swiglu", "norm": "layer"}
        fields |= form.fixed_fields(fields)
    changes = {f"model.{key}": value for key, value in fields.items()}
    changes |= {"system": form.system, "optimizer.warmup_steps": 2}
    changes |= {"optimizer.decay_steps": 40}
    system = build_system(configs.override(configs.base(), changes))
    table = form.rules(system.config.model)
    return Pair(name, module, loss_of, logits_of, system, table)


def _twin(module, double):
    def split(tokens, order):
        tokens, order = torch.tensor(tokens).long(), torch.tensor(order).long()
        if not double:
            return tokens, ()
        return tokens.gather(1, order), ((order[:, :-1], order[:, 1:]),)

    def loss_of(tokens, order):
        read, where = split(tokens, order)
        return module.loss(read[:, :-1], read[:, 1:], *where)

    def logits_of(tokens, order):
        read, where = split(tokens, order)
        return module(read[:, :-1], *where)

    return loss_of, logits_of


def _huggingface(size):
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, width, block, vocab = size
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=block,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    module = GPT2LMHeadModel(config).eval()

    def loss_of(tokens, _):
        ids = torch.tensor(tokens).long()
        logits = module(ids[:, :-1]).logits
        targets = ids[:, 1:].flatten()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)

    def logits_of(tokens, _):
        return module(torch.tensor(tokens).long()[:, :-1]).logits

    return module, loss_of, logits_of


def random_batches(pair: Pair, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and orders [count, B, T] drawn from a fixed seed."""
    model = pair.system.model_config
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (count, B, pair.system.window))
    block = np.tile(np.arange(model.block_size), (count, B, 1))
    return tokens.astype(np.int32), rng.permuted(block, axis=2).astype(np.int32)


def ours_and_theirs(pair: Pair, tokens: np.ndarray, orders: np.ndarray):
    """Yields (our loss, their loss, our parameters) after each AdamW step of both.

    Clipping, schedule and decay groups are those of the config; PyTorch's rate is
    set from our schedule.
    """
    c = pair.system.config.optimizer
    optimizer = optimizers.make_optimizer(pair.system.config)
    rate = optimizers.learning_rate_schedule(pair.system.config)
    params = pair.params()
    state = optimizer.init(params)
    groups = [
        {"params": [p for p in pair.module.parameters() if p.dim() > 1]},
        {"params": [p for p in pair.module.parameters() if p.dim() < 2]},
    ]
    groups[1]["weight_decay"] = 0.0
    theirs = torch.optim.AdamW(
        groups, lr=1.0, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay
    )

    @jax.jit
    def step(params, state, batch):
        value, grads = jax.value_and_grad(pair.loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for index, (part, order) in enumerate(zip(tokens, orders, strict=True)):
        loss = pair.loss_of(part, order)
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.module.parameters(), c.grad_clip)
        for group in theirs.param_groups:
            group["lr"] = float(rate(jnp.int32(index)))
        theirs.step()
        params, state, value = step(params, state, pair.batch(part, order))
        yield float(value), loss.item(), params
