import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.errors import UserError
from jaxgpt.model import positions, rng
from jaxgpt.model.config import ModelConfig, flops_per_token
from jaxgpt.model.layers import count_parameters
from jaxgpt.model.transformer import LanguageModel

pytestmark = pytest.mark.unoptimised

# Prime or odd sizes, so that no transposed axis fits by chance.
CONFIG = ModelConfig(2, 3, 42, 131, 11, positions="double", bias=True)
B, T = 2, 13


def build(config, scale=0.3):
    """A model far from its initial symmetry: no gain is 1 and no bias 0.

    Drawn by numpy: XLA takes seconds to compile a model's draws.
    """
    make = lambda: LanguageModel(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(nnx.eval_shape(make))
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        drawn = start + scale * generator.normal(size=leaf.shape)
        return jnp.asarray(drawn, leaf.dtype)

    return graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))


def compiled(graphdef, params, call=lambda model, *args: model(*args)[0]):
    """The model, or a function of it and more, as one program: eager calls are many."""
    run = jax.jit(lambda params, *args: call(nnx.merge(graphdef, params), *args))
    return functools.partial(run, params)


def read_in_pieces(model, tokens, where, config, slots):
    """Logits of tokens read in three pieces through the cache."""
    layers = config.token_mixer.empty_cache(config, len(tokens), slots)
    pieces = []
    for start, end in ((0, 1), (1, 6), (6, tokens.shape[1])):
        here = tuple(index[..., start:end] for index in where)
        logits, layers = model(tokens[:, start:end], here, cache=layers, start=start)
        pieces.append(logits)
    return jnp.concatenate(pieces, 1)


def inputs(length=T, seed=0):
    key = jax.random.key(seed)
    tokens = jax.random.randint(key, (B, length), 0, CONFIG.vocab_size)
    order = jax.random.permutation(key, jnp.tile(jnp.arange(length + 1), (B, 1)), 1)
    return tokens, (order[:, :-1], order[:, 1:])


@pytest.mark.parametrize("kernels", ["cpu", "xla"])
@pytest.mark.parametrize("length", [13, 128])
def test_no_logit_depends_on_a_later_token_in_any_order(kernels, length):
    graphdef, params = build(dataclasses.replace(CONFIG, kernels=kernels))
    x = compiled(graphdef, params, LanguageModel.embed)(*inputs(length))

    def logit_sum(x, model, t):
        return model.head(model.transformer(x)[0])[:, t].sum()

    gradient_of = compiled(
        graphdef, params, lambda model, x, t: jax.grad(logit_sum)(x, model, t)
    )
    for t in (0, length // 2, length - 1):
        gradient = gradient_of(x, t)
        assert not np.any(np.asarray(gradient[:, t + 1 :]))
        assert np.all(np.any(np.asarray(gradient[:, : t + 1]), -1))


KERNELS = [
    *((length, {"dropout": rate}) for length in (13, 128) for rate in (0.0, 0.3)),
    (128, {"dropout": 0.3, "bidirectional": True}),
]


@pytest.mark.parametrize(("length", "changes"), KERNELS)
def test_cpu_kernels_equal_plain_jax(length, changes):
    tokens, where = inputs(length)
    results = []
    for kernels in ("cpu", "xla"):
        config = dataclasses.replace(CONFIG, kernels=kernels, **changes)
        graphdef, params = build(config)

        def loss(params, graphdef=graphdef):
            model = nnx.merge(graphdef, params)
            return model.nll(tokens, tokens, where, jax.random.key(7)).mean()

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    (loss_a, grads_a), (loss_b, grads_b) = results
    assert loss_a == pytest.approx(float(loss_b), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
        # Rounding in two orders: 2.3e-6 of the largest on a processor without AVX-512.
        np.testing.assert_allclose(a, b, atol=5e-6 * np.abs(b).max() + 1e-7)


@pytest.mark.parametrize("kernels", ["cpu", "xla"])
def test_bfloat16_stays_close_to_float32_and_keeps_float32_parameters(kernels):
    tokens, where = inputs()
    config = dataclasses.replace(CONFIG, kernels=kernels)
    graphdef, params = build(config, scale=0.05)
    half, _ = build(dataclasses.replace(config, dtype="bfloat16"))
    exact = compiled(graphdef, params)(tokens, where)
    rounded = compiled(half, params)(tokens, where)
    assert rounded.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(rounded)
    assert float((jnp.exp(p) * (p - q)).sum(-1).max()) < 1e-3


def test_cache_in_pieces_equals_one_pass():
    graphdef, params = build(CONFIG)
    tokens, where = inputs()
    whole = compiled(graphdef, params)(tokens, where)
    in_pieces = functools.partial(read_in_pieces, config=CONFIG, slots=17)
    pieces = compiled(graphdef, params, in_pieces)(tokens, where)
    np.testing.assert_allclose(pieces, whole, atol=2e-5)


def test_identity_order_is_the_causal_model():
    model = compiled(*build(CONFIG))
    tokens, _ = inputs()
    order = jnp.tile(jnp.arange(T + 1), (B, 1))
    straight = model(tokens, (order[:, :-1], order[:, 1:]))
    np.testing.assert_array_equal(straight, model(tokens))


def test_rows_do_not_see_each_other():
    model = compiled(*build(CONFIG))
    tokens, where = inputs()
    alone = model(tokens[1:], tuple(index[1:] for index in where))
    np.testing.assert_allclose(model(tokens, where)[1:], alone, atol=1e-5)


def test_initial_distribution_is_gpt2s():
    config = ModelConfig(8, 4, 128, 64, 65)
    _, state = nnx.split(LanguageModel(config, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    block = params["transformer"]["blocks"][3]
    assert params["table"].std() == pytest.approx(0.02, rel=0.05)
    assert block["attn"]["qkv"]["kernel"].std() == pytest.approx(0.02, rel=0.02)
    for residual in (block["attn"]["out"], block["mlp"]["down"]):
        assert residual["kernel"].std() == pytest.approx(0.02 / 4, rel=0.05)
    assert (block["norm_1"]["scale"] == 1).all()
    assert "bias" not in block["norm_1"]


def test_dropout_drops_its_share_and_keeps_the_mean():
    seed = jnp.array([3, 5], jnp.uint32)
    factor = rng.dropout_factor((64, 127, 33), 0.2, seed, jnp.float32)
    assert (factor == 0).mean() == pytest.approx(0.2, abs=0.003)
    assert factor.mean() == pytest.approx(1, abs=0.004)
    along = [float((factor == 0).mean(axis).std()) for axis in (0, 1, 2)]
    expected = [float(np.sqrt(0.16 / n)) for n in (64, 127, 33)]
    np.testing.assert_allclose(along, expected, rtol=0.1)
    other = rng.dropout_factor((64, 127, 33), 0.2, seed + 1, jnp.float32)
    both = ((factor == 0) & (other == 0)).mean()
    assert both == pytest.approx(0.04, abs=0.002)


def test_a_block_of_a_dropout_mask_is_a_block_of_the_whole():
    seed = jnp.array([3, 5], jnp.uint32)
    whole = rng.dropout_factor((2, 3, 8, 8), 0.5, seed, jnp.float32)
    block = rng.dropout_factor(
        (2, 3, 4, 8), 0.5, seed, jnp.float32, whole=(2, 3, 8, 8), start=(0, 0, 4, 0)
    )
    np.testing.assert_array_equal(block, whole[:, :, 4:])


def test_flops_count_every_multiplied_parameter():
    config = ModelConfig(2, 2, 16, 8, 32)
    params = nnx.to_pure_dict(nnx.split(LanguageModel(config, rngs=nnx.Rngs(0)))[1])
    multiplied = 2 * 12 * 16**2 + 5 * 16 + 32 * 16
    scores = 12 * 2 * 16 * 8
    count = count_parameters(params)
    assert flops_per_token(config, count) == 6 * multiplied + scores


def test_positions_of_a_full_block_stay_inside_the_table():
    own, target = positions.in_order(CONFIG.block_size, CONFIG)
    assert int(own.max()) == int(target.max()) == CONFIG.block_size - 1


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="must be divisible by model"):
        ModelConfig(1, 4, 42, 8, 11)
    odd = ModelConfig(1, 1, 33, 8, 11, positions="double")
    with pytest.raises(UserError, match="odd"):
        LanguageModel(odd, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kernels", ["cpu", "xla"])
@pytest.mark.parametrize(
    "changes", [{"remat": "dots"}, {"scan_layers": True, "remat": "full"}]
)
def test_blocks_recomputed_or_scanned_leave_the_same(changes, kernels):
    """Hidden states, a hook's addition and return, dropout and gradients included."""
    config = dataclasses.replace(CONFIG, n_layer=4, dropout=0.2, kernels=kernels)
    tokens, where = inputs()

    def hook(q, k, v, y, total):
        more = y * jax.nn.sigmoid(total)[..., None]
        return 0.1 * (q + more), (k * k).sum()

    def run(config):
        graphdef, params = build(config)

        def loss(params):
            model = nnx.merge(graphdef, params)
            x_BTD, blocks = model.transformer(
                model.embed(tokens, where),
                dropout_key=jax.random.key(3),
                hooks={2: hook},
                keep_hidden=True,
            )
            return (x_BTD**2).mean() + blocks.hooked[2], blocks.hidden

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss, hidden), grads = run(dataclasses.replace(config, **changes))
    (plain_loss, plain_hidden), plain_grads = run(config)
    assert loss == pytest.approx(float(plain_loss), rel=1e-6)
    assert len(hidden) == len(plain_hidden) == 5
    for a, b in zip(hidden, plain_hidden, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(plain_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-7)


@pytest.mark.parametrize("chunk", [4, 13])
@pytest.mark.parametrize("tied", [True, False])
def test_a_loss_in_chunks_is_the_same_and_never_holds_all_logits(chunk, tied):
    base = dataclasses.replace(CONFIG, vocab_size=997, tied_head=tied, dropout=0.1)
    tokens, where = inputs()
    targets = jnp.roll(tokens, -1, 1)
    found, programs = [], []
    for config in (base, dataclasses.replace(base, loss_chunk=chunk)):
        graphdef, params = build(config, 0.1)

        def loss(params, graphdef=graphdef):
            model = nnx.merge(graphdef, params)
            nll_BT = model.nll(tokens, targets, where, jax.random.key(2))
            return (nll_BT * jnp.arange(1, T + 1)).mean()

        step = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        found.append(step(params))
        programs.append(step.as_text())
    whole = f"f32[{B},{T},997]"
    assert whole in programs[0]
    assert (whole in programs[1]) == (chunk == T)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        scale = jnp.abs(one).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)
