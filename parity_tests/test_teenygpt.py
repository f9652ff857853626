"""teenyGPT: every position encoding, feed-forward and norm against golden numbers."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import systems
from jaxgpt.interop import formats, rules, teenygpt
from parity_tests.conftest import GOLDEN, relative, worst
from parity_tests.tolerances import FLOAT32

FOLDER = GOLDEN / "teenygpt"
COMBINATIONS = [
    "-".join(kinds)
    for kinds in itertools.product(
        teenygpt.POSITIONS, teenygpt.ACTIVATIONS, teenygpt.NORMS
    )
]
SIZES = {
    "n_dim": 16,
    "n_vocab": 23,
    "n_attn_heads": 4,
    "n_attn_layers": 2,
    "n_context_max": 12,
}
TRAINED = SIZES | {"n_dim": 32, "n_vocab": 65, "n_context_max": 24}


def settings_of(name: str, sizes=SIZES) -> dict:
    """The original's own configuration of a golden file."""
    values = name.removeprefix("train_").split("-")
    return sizes | dict(zip(teenygpt.KINDS, values, strict=True))


@pytest.fixture
def load(tmp_path):
    """Reads a golden file: its arrays, our system and parameters, the table."""

    def load(name, sizes=SIZES, kernels=None, **changes):
        settings = tmp_path / "settings.json"
        settings.write_text(json.dumps(settings_of(name, sizes)))
        source = FOLDER / f"{name}.npz"
        original = formats.read_original("teenygpt", str(source), str(settings))
        config = configs.override(original.config, changes)
        system = systems.make(config)
        with np.load(source) as archive:
            golden = dict(archive)
        table = formats.FORMATS["teenygpt"].rules(config.model)
        return golden, system, original.params, table

    return load


def tree_of(golden, prefix, system, table):
    """Golden arrays under a prefix, as our tree of parameters."""
    abstract = jax.eval_shape(system.init, jax.random.key(0))
    names = {rule.name: golden[f"{prefix}/{rule.name}"] for rule in table}
    return rules.to_jax(names, table, abstract, prefix)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_logits_loss_gradients_and_round_trip(load, name):
    golden, system, params, table = load(name)

    def loss(params):
        model = system.model(params)
        logits_BTV = model(golden["ids"])
        nll = jnp.mean(model.nll(golden["ids"], golden["targets"]))
        return nll, logits_BTV

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative(logits, golden["logits"]) < FLOAT32["logits of teenyGPT"]
    assert relative(value, golden["loss"]) < FLOAT32["loss"]
    there = tree_of(golden, "grad__f64", system, table)
    assert worst(grads, there) < FLOAT32["gradient of teenyGPT"]
    if "logits_short" in golden:
        short = system.model(params)(golden["ids_short"])
        assert relative(short, golden["logits_short"]) < FLOAT32["logits of teenyGPT"]
    back = rules.to_torch(params, table)
    names = {n.removeprefix("param/") for n in golden if n.startswith("param/")}
    assert names == set(back)
    for key, array in back.items():
        np.testing.assert_array_equal(array, golden[f"param/{key}"])
