"""The originals' golden numbers beside our model of the same weights."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.interop import formats, rules
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system
from parity_tests import GOLDEN
from parity_tests.tolerances import FLOAT32
from tests.suite import *  # noqa: F403 - hooks and fixtures

try:
    import torch
except ImportError:
    pytest.exit("the parity suite needs PyTorch: pip install 'jaxgpt[test]'", 1)
torch.set_num_threads(1)  # For models this small a second thread only costs time.

ORIGINALS = {"nanogpt": "nanogpt", "sigma-gpt": "sigma", "gpt2": "gpt2"}


@dataclasses.dataclass(frozen=True)
class Case:
    """An original's golden file, and our system for its configuration."""

    original: str
    golden: dict[str, np.ndarray]
    system: System
    table: list[rules.Rule]

    def params(self, prefix: str, dtype=np.float32) -> dict:
        """Our parameter tree from the golden arrays under a prefix."""
        start = f"{prefix}/"
        state = {
            name.removeprefix(start): array.astype(dtype)
            for name, array in self.golden.items()
            if name.startswith(start)
        }
        abstract = jax.eval_shape(self.system.init, jax.random.key(0))
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, np.dtype(dtype)), abstract
        )
        state.pop("lm_head.weight", None)
        return rules.to_jax(state, self.table, abstract, self.original)

    @property
    def batch(self) -> dict[str, jax.Array]:
        """The golden batch as our system takes it."""
        if self.original == "sigma-gpt":
            return {k: jnp.asarray(self.golden[k]) for k in ("tokens", "order")}
        ids = self.golden["ids"]
        last = self.golden["targets"][:, -1:]
        return {"tokens": jnp.asarray(np.concatenate([ids, last], 1))}

    def nll(self, params: dict, batch: dict | None = None) -> jax.Array:
        """Ours, on golden inputs and golden targets (which need not be the shift)."""
        if self.original == "sigma-gpt" or batch is not None:
            return self.system.nll(params, batch or self.batch)
        model = self.system.model(params)
        return model.nll(self.golden["ids"], self.golden["targets"])

    def logits(self, params: dict) -> jax.Array:
        """Our logits on the golden inputs."""
        if self.original == "sigma-gpt":
            tokens, order = self.batch["tokens"], self.batch["order"]
            return self.system.score(params, tokens, order)[0]
        return self.system.model(params)(self.golden["ids"])[0]


def load(original: str, file: str, dtype: str = "float32", **changes) -> Case:
    """Reads a golden file and builds our system for it."""
    with np.load(GOLDEN / ORIGINALS[original] / file) as archive:
        golden = dict(archive)
    form = formats.get_format(original)
    table = golden["param/transformer.wpe.weight"]
    embeddings = golden["param/transformer.wte.weight"]
    layers = {
        name.split(".")[2]
        for name in golden
        if name.startswith("param/") and ".h." in name
    }
    fields = {
        "system": form.system,
        "model.n_layer": len(layers),
        "model.n_head": 4,
        "model.n_embd": embeddings.shape[1],
        "model.block_size": table.shape[0],
        "model.vocab_size": embeddings.shape[0],
        "model.bias": "param/transformer.ln_f.bias" in golden,
        "model.activation": "gelu_tanh" if original == "gpt2" else "gelu",
        "model.dtype": dtype,
    }
    config = configs.override(configs.base(), fields | changes)
    return Case(original, golden, build_system(config), form.rules(config.model))


@pytest.fixture(params=list(ORIGINALS))
def case(request) -> Case:
    """Each original's perturbed tiny model."""
    name = (
        "tiny_perturbed.npz" if request.param == "gpt2" else "tiny_bias_perturbed.npz"
    )
    return load(request.param, name)


def follow(golden: dict, params: dict, chain, loss, batches) -> dict:
    """Trains with recorded rates and holds each loss to the recorded one.

    Returns:
      The parameters after the last of the batches.
    """
    state = chain.init(params)

    @jax.jit
    def step(params, state, batch, rate):
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = chain.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, value

    for index, batch in enumerate(batches):
        rate = jnp.float32(golden["traj_lr"][index])
        params, state, value = step(params, state, batch, rate)
        there = golden["traj_loss__f64"][index]
        assert abs(float(value) - there) < FLOAT32["loss of a trajectory"]
    return params


def relative(ours, theirs) -> float:
    """The largest difference, relative to the largest entry."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def worst(ours: dict, theirs: dict) -> float:
    """The largest relative difference over the leaves of two trees."""
    return max(jax.tree.leaves(jax.tree.map(relative, ours, theirs)))


def settings(path: str) -> dict:
    """A JSON file of the golden folder."""
    return json.loads((GOLDEN / path).read_text())


def without_key_bias(*trees):
    """Leaves out the key third of attention biases: its exact gradient is zero."""
    result = []
    for tree in trees:
        tree = jax.tree.map(np.array, tree)
        for block in tree["transformer"]["blocks"].values():
            bias = block["attn"]["qkv"].get("bias", np.zeros(0))
            bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
        result.append(tree)
    return result
