"""The recurrent mixers: beside other implementations, in the cache, and trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AbstractMesh

import jaxgpt
from jaxgpt import config as configs
from jaxgpt import gssm
from jaxgpt.commands.convert import convert
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.model import recurrent
from jaxgpt.model.config import MIXERS, ModelConfig, flops_per_token
from jaxgpt.model.layers import count_parameters
from jaxgpt.parallel import sharding
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.registry import build_system
from jaxgpt.training import metrics, optimizers
from tests.conftest import ROOT, refusal
from tests.model.test_transformer import build, compiled, read_in_pieces
from tests.systems.test_causal import ask, logits_of, system_with

pytestmark = pytest.mark.unoptimised

RECURRENT = [name for name in MIXERS if name != "attention"]
mixers = pytest.mark.parametrize("name", RECURRENT)
B, T, D, S = 2, 12, 10, 17
# Three heads would not divide the width.
CONFIG = ModelConfig(2, 3, D, 131, 11, positions="none", mixer="gru")
GSSM = f"{ROOT}/configs/gssm.py:easy-tiny"


def mixer_of(name, **changes):
    """A mixer whose parameters are all away from zero, and tokens [B, T, D]."""
    config = dataclasses.replace(CONFIG, mixer=name, **changes)
    module = config.token_mixer(config, rngs=nnx.Rngs(0))
    generator = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.5 * generator.normal(size=a.shape), a.dtype)
    nnx.update(module, jax.tree.map(draw, nnx.state(module)))
    x_BTD = generator.normal(size=(B, T, D)).astype(config.param_dtype)
    return module, jnp.asarray(x_BTD)


def numbers(parameter):
    return np.asarray(parameter[...])


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_cells_equal_pytorchs_and_flax(name):
    module, x_BTD = mixer_of(name)
    rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name](D, D, batch_first=True)
    weights = {"ih": module.input, "hh": module.hidden}
    with torch.no_grad():
        for place, layer in weights.items():
            kernel = torch.tensor(numbers(layer.kernel).T)
            getattr(rnn, f"weight_{place}_l0").copy_(kernel)
            bias = 0 if layer.bias is None else torch.tensor(numbers(layer.bias))
            getattr(rnn, f"bias_{place}_l0")[:] = bias
        theirs = rnn(torch.tensor(np.asarray(x_BTD)))[0].numpy()
    ours, _, _ = jax.jit(lambda x: module(x))(x_BTD)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Flax's GRU has no bias of the last output.
    if name == "gru":
        module.hidden.bias[...] *= 0
        cell = nnx.GRUCell(D, D, rngs=nnx.Rngs(0))
        cell.dense_i.bias[...] = module.input.bias[...]
    else:
        cell = nnx.OptimizedLSTMCell(D, D, rngs=nnx.Rngs(0))
        cell.dense_h.bias[...] = module.input.bias[...]
    cell.dense_i.kernel[...] = module.input.kernel[...]
    cell.dense_h.kernel[...] = module.hidden.kernel[...]
    theirs = nnx.RNN(cell)(x_BTD)
    ours, _, _ = jax.jit(lambda x: module(x))(x_BTD)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kernels", ["cpu", "xla"])
def test_the_state_space_model_is_its_convolution(kernels):
    """y_t = Re(C sum_k lambda^k sqrt(1 - |lambda|^2) B x_{t-k}), in float64."""
    module, x_BTD = mixer_of("ssm", kernels=kernels)
    B_DN = numbers(module.input.kernel).astype(float) @ np.vstack(
        [np.eye(D), 1j * np.eye(D)]
    )
    C_ND = np.hstack([np.eye(D), -1j * np.eye(D)]) @ numbers(module.out.kernel)
    rate, angle = np.exp(numbers(module.nu_log)), np.exp(numbers(module.theta_log))
    lambda_N = np.exp(-rate.astype(float) + 1j * angle)
    factor_N = np.sqrt(1 - np.abs(lambda_N) ** 2)
    expected = np.zeros((B, T, D))
    for t in range(T):
        for k in range(t + 1):
            h_BN = lambda_N**k * factor_N * (np.asarray(x_BTD)[:, t - k] @ B_DN)
            expected[:, t] += (h_BN @ C_ND).real
    found, _, _ = jax.jit(lambda x: module(x))(x_BTD)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_decay_rates_of_the_state_space_model_begin_in_their_ring():
    config = dataclasses.replace(CONFIG, n_embd=3000, mixer="ssm", n_layer=1)
    module = config.token_mixer(config, rngs=nnx.Rngs(0))
    radius = np.exp(-np.exp(numbers(module.nu_log)))
    assert radius.min() > 0 and radius.max() <= recurrent.LARGEST_RADIUS + 1e-6
    # Uniform by area.
    assert np.mean(radius**2) == pytest.approx(0.5, abs=0.02)
    angle = np.exp(numbers(module.theta_log))
    assert angle.min() > 0 and angle.max() == pytest.approx(2 * np.pi, abs=0.01)


def test_the_lstms_forget_gate_is_open_at_first():
    config = dataclasses.replace(CONFIG, mixer="lstm")
    bias = numbers(config.token_mixer(config, rngs=nnx.Rngs(0)).input.bias)
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], D))


@mixers
def test_cache_in_pieces_equals_one_pass(name):
    config = dataclasses.replace(CONFIG, mixer=name)
    graphdef, params = build(config)
    tokens = jax.random.randint(jax.random.key(0), (B, T), 0, 11)
    whole = compiled(graphdef, params)(tokens)
    in_pieces = functools.partial(read_in_pieces, config=config, slots=S)
    pieces = compiled(graphdef, params, in_pieces)(tokens, (jnp.arange(T),))
    np.testing.assert_allclose(pieces, whole, atol=2e-5)


@mixers
def test_rows_may_stand_at_different_places_of_the_cache(name):
    """What was written past them does not matter, and what runs over is dropped."""
    module, x_BTD = mixer_of(name)
    starts = np.array([0, 7])
    where = starts[:, None] + np.arange(T - 5)

    def reread(x_BTD):
        layer = module.empty_cache(module.config, B, T)[0]
        whole_BTD, layer, _ = module(x_BTD, layer=layer)
        new_BTD = jnp.take_along_axis(x_BTD, jnp.minimum(where, T - 1)[..., None], 1)
        again_BTD, layer, _ = module(new_BTD, layer=layer, start=starts)
        return whole_BTD, again_BTD, layer

    whole, again, layer = jax.jit(reread)(x_BTD)
    for row, start in enumerate(starts):
        there = whole[row, start : start + T - 5]
        np.testing.assert_allclose(again[row, : len(there)], there, atol=2e-6)
    assert all(states.shape == (B, T, D) for states in layer)


@mixers
def test_rows_of_different_prompts_are_continued_as_without_a_cache(name):
    changes = {"model.mixer": name, "model.positions": "none"}
    system, params = system_with(**changes)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8) % 7
    known = np.arange(8) < np.array([[2], [6]])
    fast, slow = (
        system.sample(
            params, tokens, known, jax.random.key(3), SamplingParams(cached=cached)
        )
        for cached in (True, False)
    )
    np.testing.assert_array_equal(fast.tokens_BT, slow.tokens_BT)
    np.testing.assert_allclose(fast.log_p_BT, slow.log_p_BT, atol=1e-5)
    # Past the block, from its last tokens.
    greedy = ask(system, params, 13, temperature=0.0)
    likeliest = logits_of(system, params, greedy[:, 4:12])[:, -1].argmax(-1)
    np.testing.assert_array_equal(greedy[:, 12], likeliest)


@mixers
@pytest.mark.parametrize("kernels", ["cpu", "xla"])
def test_outputs_depend_on_all_tokens_so_far_and_on_none_after(name, kernels):
    module, x_BTD = mixer_of(name, kernels=kernels)
    sizes = jax.jit(jax.jacobian(lambda x: module(x)[0][0].sum(-1)))(x_BTD)[:, 0]
    sizes_TT = np.abs(sizes).max(-1)
    assert (sizes_TT[np.triu_indices(T, 1)] == 0).all()
    assert (sizes_TT[np.tril_indices(T)] > 0).all()


@mixers
def test_kernels_and_ways_to_compile_agree(name):
    """Loss and gradients: CPU or plain JAX, recomputed, scanned; with dropout."""
    tokens = jax.random.randint(jax.random.key(0), (B, T), 0, 11)
    results = []
    for changes in (
        {"kernels": "cpu"},
        {"kernels": "xla"},
        {"kernels": "xla", "scan_layers": True, "remat": "full"},
    ):
        config = dataclasses.replace(CONFIG, mixer=name, dropout=0.3, **changes)
        graphdef, params = build(config, scale=0.2)

        def loss(params, graphdef=graphdef):
            model = nnx.merge(graphdef, params)
            return model.nll(tokens, tokens, dropout_key=jax.random.key(7)).mean()

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    (loss_a, grads_a), *others = results
    for loss_b, grads_b in others:
        assert loss_a == pytest.approx(float(loss_b), rel=1e-6)
        pairs = zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-7)


@mixers
def test_gradients_through_a_thousand_tokens_are_finite(name):
    config = dataclasses.replace(CONFIG, mixer=name, n_layer=1)
    system_params = build(config, scale=0.3)
    tokens = jax.random.randint(jax.random.key(0), (1, 1000), 0, 11)
    graphdef, params = system_params
    loss = lambda params: nnx.merge(graphdef, params).nll(tokens, tokens)[0, -1]
    gradients = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@mixers
def test_bfloat16_stays_close_and_keeps_float32_states(name):
    config = dataclasses.replace(CONFIG, mixer=name)
    graphdef, params = build(config, scale=0.05)
    half, _ = build(dataclasses.replace(config, dtype="bfloat16"))
    tokens = jax.random.randint(jax.random.key(0), (B, T), 0, 11)
    exact, rounded = (compiled(g, params)(tokens) for g in (graphdef, half))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.01)
    states = config.token_mixer.empty_cache(
        dataclasses.replace(config, dtype="bfloat16"), B, S
    )
    assert {a.real.dtype for a in jax.tree.leaves(states)} == {jnp.dtype("float32")}


@mixers
def test_parameters_have_a_sharding_a_decay_and_their_flops(name):
    config = dataclasses.replace(CONFIG, mixer=name)
    _, params = build(config)
    mesh = AbstractMesh((1, 2, 1), ("data", "fsdp", "tensor"))
    leaves = jax.tree.leaves_with_path(params)
    places = {
        sharding.path_name(path): sharding.spec(sharding.path_name(path), leaf, mesh)
        for path, leaf in leaves
    }
    inside = {path: place for path, place in places.items() if "/mixer/" in path}
    assert len(inside) >= 6
    assert "fsdp" in inside["transformer/blocks/0/mixer/input/kernel"]
    decays = jax.tree.leaves(optimizers.decay_mask(params))
    for (path, leaf), decay in zip(leaves, decays, strict=True):
        assert decay == (leaf.ndim == 2)
        in_block = decay and path[-1].key == "kernel"
        assert optimizers.kind_of(path) == ("muon" if in_block else "adamw")
    count = count_parameters(params)
    assert flops_per_token(config, count) == 6 * count


@pytest.mark.trains
@mixers
def test_it_learns_resumes_and_is_probed(name, tmp_path):
    def config(steps):
        fields = {
            "model.mixer": name,
            "model.positions": "none",
            "model.n_layer": 1,
            "optimizer.learning_rate": 1e-2,
            "steps": steps,
            "optimizer.decay_steps": 40,
            "eval_interval": 20,
            "checkpoint_interval": 20,
        }
        return configs.load(GSSM, {key: str(value) for key, value in fields.items()})

    for steps in (20, 40):
        assert train(config(steps), tmp_path) == 0
    rows = [row for row in metrics.read_rows(tmp_path) if "val_gap" in row]
    assert [row["step"] for row in rows] == [0, 20, 40]
    assert rows[-1]["val_loss"] < rows[-1]["val_loss_bigram"] < rows[0]["val_loss"]
    assert rows[-1]["val_loss"] < rows[1]["val_loss"]
    found = gssm.probe(jaxgpt.load(tmp_path), num_sequences=16)
    assert found["layers"] == ["embedding", "block_0"]
    output = str(tmp_path / "x.pth")
    message = refusal(convert, "nanollama", str(tmp_path), None, output)
    assert f"model.mixer must be 'attention', got '{name}'" in message


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"positions": "rope"}, "model.positions must be none, or added to the embed"),
        ({"positions": "alibi"}, "with model.mixer=gru, got 'alibi'"),
        ({"key_width": 4}, "model.key_width must be 0 with model.mixer=gru, got 4"),
        ({"qk_norm": True}, "model.qk_norm must be False with model.mixer=gru"),
    ],
)
def test_options_of_attention_are_refused(changes, expected):
    with pytest.raises(UserError, match=expected):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("system", ["sigma", "sigma-task", "memory"])
def test_systems_that_need_attention_say_so(system):
    fields = {"model.mixer": "lstm", "model.positions": "none", "system": system}
    config = configs.override(configs.base(), fields)
    with pytest.raises(UserError, match=r"must be attention for .*, got 'lstm'"):
        configs.validate(config)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_may_be_added_to_the_embeddings(positions):
    system, params = system_with(**{"model.mixer": "gru", "model.positions": positions})
    assert build_system(system.config).model_config.mixer == "gru"
    fast, slow = (ask(system, params, 8, cached=c) for c in (True, False))
    np.testing.assert_array_equal(fast, slow)
