"""σ-GPT's other transformer, of its tasks: double sinusoids, ReLU, keys of their own
width, no bias in attention, no last norm, logits from their own matrix.

The original reads token 0 at position -1 first; ours has a beginning token there, which
gets the parameters of token 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt import config as configs
from jaxgpt.interop import rules
from jaxgpt.model import positions
from jaxgpt.model.config import ModelConfig
from jaxgpt.sampling.state import Draws, ModelDecoder, SamplingParams, prefill
from jaxgpt.systems.base import System
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma.samplers import window
from parity_tests import pairs
from parity_tests.conftest import GOLDEN, relative, worst
from parity_tests.tolerances import FLOAT32
from parity_tests.torch_tasks import TaskGPT

FOLDER = GOLDEN / "sigma_tasks"
V = 11
FIELDS = pairs.TASK_MODEL | {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.key_width": 8,
    "model.feed_forward_width": 32,
    "model.block_size": 14,
    "model.vocab_size": V,
}


def tree(golden: dict, prefix: str) -> dict:
    """Our parameters, or their gradients, from the original's names."""
    get = lambda name: golden[f"{prefix}/{name}"]
    norm = lambda name: {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}
    linear = lambda name: {
        "kernel": get(f"{name}.weight").T,
        "bias": get(f"{name}.bias"),
    }
    fused = lambda w_HKD: w_HKD.reshape(-1, w_HKD.shape[-1]).T
    blocks = {}
    for index in range(2):
        first, second = f"trunk.{2 * index}.f", f"trunk.{2 * index + 1}.f.f"
        qkv = [fused(get(f"{first}.1.w_{kind}")) for kind in "qkv"]
        blocks[index] = {
            "norm_1": norm(f"{first}.0.f"),
            "attn": {
                "qkv": {"kernel": np.concatenate(qkv, 1)},
                "out": {"kernel": get(f"{first}.1.w_o")},
            },
            "norm_2": norm(f"{second}.0"),
            "mlp": {"up": linear(f"{second}.1"), "down": linear(f"{second}.3")},
        }
    table = get("embedding.f.0.weight")
    return {
        "table": np.concatenate([table, table[:1]]),
        "transformer": {"blocks": blocks},
        "unembed": linear("readout.f"),
    }


@pytest.fixture(scope="module")
def golden() -> dict:
    with np.load(FOLDER / "tiny_perturbed.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def system() -> System:
    return build_system(configs.override(configs.base(), FIELDS))


@pytest.fixture(scope="module")
def params(golden, system) -> dict:
    ours = tree(golden, "param")
    expected = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, expected)
    return ours


def orders(golden: dict, kind: str) -> np.ndarray:
    order_BT = golden["order"]
    straight = np.broadcast_to(np.arange(order_BT.shape[1]), order_BT.shape)
    return straight if kind == "left-to-right" else order_BT


@pytest.mark.parametrize("name", ["B2_T7_D16", "B1_T33_D32", "B2_T9_D12"])
def test_double_sinusoids(name):
    with np.load(FOLDER / "double_positional_encoding.npz") as archive:
        order_BT = archive[f"{name}_L100000/order"]
        expected = archive[f"{name}_L100000/pe__f64"]
    T, D = expected.shape[1:]
    config = ModelConfig(
        1, 1, D, T, V, positions="double-sinusoidal", sinusoid_scale=1.0
    )
    own_BT = np.concatenate([np.full_like(order_BT[:, :1], T), order_BT[:, :-1]], 1)
    encode = positions.SinusoidalPositions(config, rngs=None)
    assert relative(encode((own_BT, order_BT)), expected) < 1e-6


@pytest.mark.parametrize("kind", ["left-to-right", "shuffled"])
def test_logits_loss_and_gradients(golden, system, params, kind):
    suffix = "ltr" if kind == "left-to-right" else "shuffled"
    batch = {
        "tokens": jnp.asarray(golden["x"]),
        "order": jnp.asarray(orders(golden, kind)),
    }
    read, where = system.read(batch["tokens"], batch["order"])
    logits = system.model(params)(read[:, :-1], where)[0]
    expected = golden["logits_ltr" if kind == "left-to-right" else "logits"]
    assert relative(logits, expected) < FLOAT32["logits"]

    mean = lambda p: system.nll(p, batch).mean()
    loss, grads = jax.jit(jax.value_and_grad(mean))(params)
    assert abs(loss - golden[f"loss_{suffix}"]) < FLOAT32["loss"]
    # What token 0 learns as the first token read, it learns as itself.
    table = np.array(grads["table"])
    table[0] += table[V]
    expected = tree(golden, "grad_ltr" if kind == "left-to-right" else "grad")
    expected["table"] = expected["table"][:V]
    found = grads | {"table": table[:V]}
    assert worst(found, expected) < FLOAT32["gradient"]


def test_the_pytorch_twin_is_the_same_model(golden, system, params):
    twin = TaskGPT(2, 2, 16, V, key_width=8, hidden=32)
    table = pairs.TWINS["sigma-tasks"].table(system.config.model)
    state = rules.to_torch(params, table)
    twin.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    pair = pairs.Pair("sigma-tasks", twin, system, table)
    with torch.no_grad():
        logits = pair.logits_there(golden["x"], golden["order"])
    assert relative(logits, golden["logits"]) < FLOAT32["logits"]


def test_greedy_generation_through_the_cache(golden, system, params):
    tokens, P = golden["x"], int(golden["P"])
    known = np.broadcast_to(np.arange(tokens.shape[1]) < P, tokens.shape)
    sampling = SamplingParams("ar", "left-to-right", temperature=0.0)
    given = np.where(known, tokens, 0)
    found = system.sample(params, given, known, jax.random.key(0), sampling)
    np.testing.assert_array_equal(found.tokens_BT, golden["greedy_ltr"])


def test_a_burst_drafts_from_the_true_conditionals(golden, system, params):
    """The original's own drafts miss them, but for the first."""
    tokens_BT, order_BT, P = golden["x"], golden["order"], int(golden["P"])
    B, T = tokens_BT.shape
    begin = lambda array, value: np.pad(
        array, ((0, 0), (1, 0)), constant_values=value
    ).astype(np.int32)
    own_BS = begin(order_BT, T)
    read_BS = begin(np.take_along_axis(tokens_BT, order_BT, 1), V)
    decoder = ModelDecoder(system.graphdef)
    state = prefill(
        decoder, params, *map(jnp.asarray, (read_BS, own_BS, np.roll(own_BS, -1, 1))),
        jnp.full(B, P + 1),
    )  # fmt: skip
    task = SamplingParams().decode_params(T + 1, Draws.of(jax.random.key(0), B))
    draft = jax.jit(lambda *arguments: window.draft(decoder, *arguments).logits_BWV)
    drafted_BWV = draft(params, state, task, jnp.zeros((B, T - P)))
    expected = golden["burst_logits_exact"]
    assert relative(drafted_BWV, expected) < FLOAT32["logits"]
    assert relative(golden["burst_logits_ref"][:, 0], expected[:, 0]) < 1e-5
    assert relative(golden["burst_logits_ref"], expected) > 0.1
