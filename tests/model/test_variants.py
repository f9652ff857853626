"""Every position encoding, feed-forward and norm, on both kernels and in the cache."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.errors import UserError
from jaxgpt.model import attention, positions
from jaxgpt.model.config import NORMS, POSITIONS, ModelConfig
from tests.model.test_transformer import build, compiled, read_in_pieces

pytestmark = pytest.mark.unoptimised

T, S = 12, 17
PLAIN = ModelConfig(2, 3, 42, 131, 11, bias=True)
VARIANTS = {
    **{name: {"positions": name} for name in POSITIONS},
    "rope by neighbours": {
        "positions": "rope",
        "rope_pairs": "neighbours",
        "rope_frequency": 2 * math.pi,
        "qk_norm": True,
    },
    **{f"{name} norm": {"norm": name} for name in NORMS},
    "relu": {"activation": "relu", "attention_bias": False},
    "swiglu": {"activation": "swiglu"},
    "llama": {
        "positions": "rope",
        "norm": "rms",
        "activation": "swiglu",
        "bias": False,
        "tied_head": False,
    },
    "teeny": {"feed_forward_width": 42, "final_norm": False, "tied_head": False},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def tokens_of(length, seed=0):
    return jax.random.randint(jax.random.key(seed), (2, length), 0, PLAIN.vocab_size)


@pytest.mark.parametrize(
    ("name", "length"),
    # From 128 on attention works by blocks; nothing else depends on the length.
    [(name, 13) for name in VARIANTS]
    + [(name, 128) for name, changes in VARIANTS.items() if "positions" in changes],
)
def test_cpu_kernels_equal_plain_jax(name, length):
    changes = VARIANTS[name]
    tokens = tokens_of(length)
    results = []
    for kernels in ("cpu", "xla"):
        # One block: what the kernels replace is all within one.
        config = dataclasses.replace(PLAIN, n_layer=1, kernels=kernels, **changes)
        graphdef, params = build(config, scale=0.1)

        def loss(params, graphdef=graphdef):
            return nnx.merge(graphdef, params).nll(tokens, tokens).mean()

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    (loss_a, grads_a), (loss_b, grads_b) = results
    assert loss_a == pytest.approx(float(loss_b), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * np.abs(b).max() + 1e-7)


@variants
def test_cache_in_pieces_equals_one_pass(changes):
    config = dataclasses.replace(PLAIN, **changes)
    graphdef, params = build(config, scale=0.1)
    tokens = tokens_of(T)
    whole = compiled(graphdef, params)(tokens)
    in_pieces = functools.partial(read_in_pieces, config=config, slots=S)
    pieces = compiled(graphdef, params, in_pieces)(tokens, (jnp.arange(T),))
    np.testing.assert_allclose(pieces, whole, atol=2e-5)


@pytest.mark.parametrize("name", ["alibi", "rope", "sinusoidal"])
def test_rows_may_stand_at_different_places_of_the_cache(name):
    config = dataclasses.replace(PLAIN, positions=name)
    graphdef, params = build(config, scale=0.1)
    tokens = tokens_of(T)
    starts = np.array([3, 7])
    where = starts[:, None] + np.arange(4)

    def reread(model, tokens, where, starts):
        layers = attention.empty_cache(config, 2, S)
        _, layers = model(tokens, (jnp.arange(T),), cache=layers)
        new = jnp.take_along_axis(tokens, where, 1)
        return model(new, (where,), cache=layers, start=starts)[0]

    found = compiled(graphdef, params, reread)(tokens, where, starts)
    whole = compiled(graphdef, params)(tokens)
    for row, start in enumerate(starts):
        there = whole[row, start : start + 4]
        np.testing.assert_allclose(found[row], there, atol=2e-5)


@pytest.mark.parametrize("name", POSITIONS)
def test_only_a_learned_table_ends_with_the_block(name):
    config = ModelConfig(1, 2, 16, 8, 11, positions=name)
    model = compiled(*build(config))
    if name == "learned":
        with pytest.raises(UserError, match="longer than the table of 8 positions"):
            model(tokens_of(9))
    else:
        assert model(tokens_of(64)).shape == (2, 64, 11)


@pytest.mark.parametrize("name", ["alibi", "rope", "none"])
def test_relative_encodings_see_no_shift(name):
    """Attention alone: moved by 5 slots, two tokens see each other as before."""
    config = dataclasses.replace(PLAIN, positions=name, bias=False)
    layer = attention.Attention(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, T, 42))
    if bias := config.encoding.bias:
        added = lambda start: bias(start + jnp.arange(T), start + jnp.arange(T), config)
        np.testing.assert_allclose(added(0), added(5), atol=1e-6)
    q, k, _ = attention.split_heads(layer.project(x, S), 3)
    moved_q, moved_k, _ = attention.split_heads(layer.project(x, S, 5), 3)
    product = lambda q, k: jnp.einsum("bhtk,bhsk->bhts", q, k)
    np.testing.assert_allclose(product(q, k), product(moved_q, moved_k), atol=1e-4)


def test_alibi_slopes_are_the_papers():
    assert positions.alibi_slopes(8) == tuple(2.0**-h for h in range(1, 9))


def test_alibi_is_no_array_of_its_own_per_head():
    """The compiled gradient holds no more numbers than with no positions at all."""
    sizes = {}
    tokens = jnp.zeros((4, 256), jnp.int32)
    for name in ("none", "alibi"):
        config = ModelConfig(2, 8, 64, 256, 11, positions=name, kernels="cpu")
        graphdef, params = build(config)
        loss = lambda p, g=graphdef: nnx.merge(g, p).nll(tokens, tokens).mean()
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        memory = compiled.memory_analysis()
        sizes[name] = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    heads_by_block_by_block = 4 * 8 * 256 * 256
    assert sizes["alibi"] - sizes["none"] < heads_by_block_by_block / 4


def test_swiglu_has_as_many_weights_as_gelu():
    count = lambda activation: sum(
        leaf.size
        for leaf in jax.tree.leaves(
            build(ModelConfig(1, 4, 384, 8, 11, activation=activation))[1]
        )
    )
    assert count("swiglu") == count("gelu")


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"n_embd": 45, "positions": "sinusoidal"},
            "model.n_embd must be divisible by 2",
        ),
        (
            {"n_embd": 45, "positions": "learned-sinusoidal"},
            "model.n_embd must be divisible by 2",
        ),
        (
            {"n_embd": 45, "positions": "rope"},
            "must be even with model.positions=rope, got 15",
        ),
        ({"n_embd": 44}, "model.n_embd must be divisible by model.n_head 3"),
    ],
)
def test_widths_that_cannot_be(changes, expected):
    with pytest.raises(UserError, match=expected):
        dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize("start", [0, 1000, 100_000])
def test_rope_turns_far_positions_exactly(start):
    config = ModelConfig(1, 1, 8, 8, 11, positions="rope")
    qkv = np.asarray(jax.random.normal(jax.random.key(0), (1, 3, 24)))
    turned = positions.rotate(jnp.asarray(qkv), None, start, start + 3, config)
    angles = (start + np.arange(3))[:, None] * 1e4 ** (-np.arange(4) / 4)
    a, b = qkv[0, :, :4].astype(float), qkv[0, :, 4:8].astype(float)
    there = np.concatenate(
        [
            a * np.cos(angles) - b * np.sin(angles),
            a * np.sin(angles) + b * np.cos(angles),
        ],
        -1,
    )
    np.testing.assert_allclose(turned[0, :, :8], there, atol=1e-6)
    np.testing.assert_array_equal(turned[..., 16:], qkv[..., 16:])
