"""nanoGPT, σ-GPT (text) and Hugging Face's GPT-2 against golden numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.positions import in_order
from jaxgpt.training import optimizers
from parity_tests.conftest import follow, load, relative, without_key_bias, worst
from parity_tests.tolerances import BFLOAT16_KL, FLOAT32


def test_embeddings_and_every_block(case):
    model = case.system.model(case.params("param"))
    golden = case.golden
    if case.original == "sigma-gpt":
        order = golden["order"]
        x = model.embed(golden["x"], (order[:, :-1], order[:, 1:]))
    else:
        ids = golden["ids"]
        x = model.embed(ids, in_order(ids.shape[1], model.config))
    hf = case.original == "gpt2"
    assert relative(x, golden["hidden/0" if hf else "act/emb"]) < FLOAT32["activation"]
    for index, block in enumerate(model.transformer.blocks):
        x = block(x)[0]
        if not hf:
            there = golden[f"act/block{index}"]
        elif index + 1 < len(model.transformer.blocks):
            there = golden[f"hidden/{index + 1}"]
        else:
            continue  # Hugging Face's last hidden state is after the norm.
        assert relative(x, there) < FLOAT32["activation"]
    last = golden["hidden/2" if hf else "act/ln_f"]
    assert relative(model.transformer.norm_f(x), last) < FLOAT32["activation"]


def test_logits_and_loss(case):
    params = case.params("param")
    assert relative(case.logits(params), case.golden["logits"]) < FLOAT32["logits"]
    name = "loss_unshifted" if case.original == "gpt2" else "loss"
    assert relative(case.nll(params).mean(), case.golden[name]) < FLOAT32["loss"]


@pytest.mark.parametrize("original", ["nanogpt", "sigma-gpt"])
def test_gradient_of_every_parameter(original):
    case = load(original, "tiny_bias_perturbed.npz")
    found = jax.jit(jax.grad(lambda p: case.nll(p).mean()))(case.params("param"))
    assert worst(found, case.params("grad__f64")) < FLOAT32["gradient"]


def test_gradient_of_huggingface_loss():
    case = load("gpt2", "tiny_perturbed.npz")
    ids, labels = case.golden["ids"], case.golden["labels"]

    def loss(params):
        nll = case.system.model(params).nll(ids[:, :-1], jnp.maximum(labels[:, 1:], 0))
        counts = labels[:, 1:] >= 0
        return (nll * counts).sum() / counts.sum()

    value, found = jax.jit(jax.value_and_grad(loss))(case.params("param"))
    assert relative(value, case.golden["loss_shifted"]) < FLOAT32["loss"]
    assert worst(found, case.params("grad__f64")) < FLOAT32["gradient"]


@pytest.mark.parametrize("original", ["nanogpt", "sigma-gpt"])
def test_parameters_after_1_and_5_adamw_steps(original):
    changes = {
        "optimizer.learning_rate": 1e-3,
        "optimizer.min_learning_rate": 1e-3,
        "optimizer.warmup_steps": 0,
        "optimizer.beta2": 0.95,
    }
    case = load(original, "tiny_bias_perturbed.npz", **changes)
    optimizer = optimizers.make_optimizer(case.system.config)
    params = case.params("param")
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: case.nll(p).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    names = {1: "step1", 5: "step5__f64"}
    for count in range(1, 6):
        params, state = step(params, state)
        if count in names:
            there = case.params(names[count])
            assert (
                worst(*without_key_bias(params, there))
                < FLOAT32["parameters after a step"]
            )


@pytest.mark.parametrize("original", ["nanogpt", "sigma-gpt"])
def test_loss_of_100_training_steps(original):
    # The golden runs record the rate of every step, so it is fed, not recomputed.
    case = load(original, "trajectory.npz")
    golden = case.golden
    import optax

    params = case.params("param")
    chain = optax.chain(
        optimizers.clip_by_norm(1.0),
        optax.scale_by_adam(0.9, 0.99),
        optax.add_decayed_weights(0.1, optimizers.decay_mask),
    )
    recorded = {"tokens": golden["traj_tokens"]}
    if original == "sigma-gpt":
        recorded["order"] = golden["traj_orders"]
    batches = (
        {name: array[index].astype(np.int32) for name, array in recorded.items()}
        for index in range(100)
    )
    loss = lambda params, batch: case.system.nll(params, batch).mean()
    follow(golden, params, chain, loss, batches)


@pytest.mark.parametrize("original", ["nanogpt", "sigma-gpt", "gpt2"])
def test_bfloat16_stays_close_in_distribution(original):
    file = "tiny_perturbed.npz" if original == "gpt2" else "tiny_bias_perturbed.npz"
    case = load(original, file)
    half = load(original, file, "bfloat16")
    params = case.params("param")
    p = jax.nn.log_softmax(case.golden["logits"])
    q = jax.nn.log_softmax(half.logits(params))
    assert float((jnp.exp(p) * (p - q)).sum(-1).mean()) < BFLOAT16_KL


def test_cached_logits_and_cache_of_sigma_gpt():
    from jaxgpt.model import attention

    case = load("sigma-gpt", "tiny_bias_perturbed.npz")
    golden, model = case.golden, case.system.model(case.params("param"))
    order = golden["order"]
    x = model.embed(golden["x"], (order[:, :-1], order[:, 1:]))
    layers = attention.empty_cache(case.system.model_config, len(order), x.shape[1])
    pieces = []
    bounds = golden["kv_chunks"]
    for start, end in itertools.pairwise(bounds):
        y, blocks = model.transformer(x[:, start:end], cache=layers, start=int(start))
        layers = blocks.cache
        pieces.append(model.head(y))
    logits = jnp.concatenate(pieces, 1)
    assert relative(logits, golden["logits_kv"]) < FLOAT32["logits"]
    for index, (k, v) in enumerate(layers):
        assert relative(k, golden["kv_k"][index]) < FLOAT32["activation"]
        assert relative(v, golden["kv_v"][index]) < FLOAT32["activation"]


def test_burst_drafts_are_the_true_conditionals():
    """The original's own drafts are not: `burst_logits_ref` in the same file."""
    from jaxgpt.sampling.state import Draws, ModelDecoder, SamplingParams, prefill
    from jaxgpt.systems.sigma.samplers import window

    case = load("sigma-gpt", "tiny_bias_perturbed.npz")
    golden, params = case.golden, case.params("param")
    order, P = jnp.asarray(golden["order"], jnp.int32), int(golden["burst_P"])
    B, N = order.shape
    # golden["x"] is in reading order already, without its last token.
    tokens = jnp.pad(jnp.asarray(golden["x"], jnp.int32), ((0, 0), (0, 1)))
    decoder = ModelDecoder(case.system.graphdef)
    state = prefill(
        decoder, params, tokens, order, jnp.roll(order, -1, 1), jnp.full(B, P)
    )
    task = SamplingParams().decode_params(N, Draws.of(jax.random.key(0), B))
    draft = jax.jit(lambda *arguments: window.draft(decoder, *arguments).logits_BWV)
    drafted_BWV = draft(params, state, task, jnp.zeros((B, N - P)))
    assert relative(drafted_BWV, golden["burst_logits_exact"]) < FLOAT32["logits"]
    assert relative(drafted_BWV, golden["burst_logits_ref"]) > 1e-2
