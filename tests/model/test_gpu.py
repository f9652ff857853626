"""The kernels of NVIDIA GPUs, seen from a CPU: what is lowered, and what it equals."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from jaxgpt import config as configs
from jaxgpt.model import attention, cpu, gpu, gpu_norm, layers
from jaxgpt.model.config import ModelConfig
from jaxgpt.sampling.state import (
    DEFAULT_PARAMS,
    Draws,
    ModelDecoder,
    SamplingParams,
    prefill,
)
from jaxgpt.systems.registry import build_system
from jaxgpt.training.optimizers import make_optimizer
from jaxgpt.training.step import init_state, make_step

SMALL = {
    "system": "causal",
    "batch_size": 2,
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.block_size": 80,
    "model.vocab_size": 61,
    "model.dtype": "bfloat16",
}
HALF = ModelConfig(2, 2, 32, 16, 61, dtype="bfloat16", kernels="gpu")
SIGMA_SAMPLERS = ("ar", "burst", "exact-burst", "top-k-unmasking")


def close(ours, theirs, **tolerances):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), **tolerances)


def make(platform="gpu", **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return build_system(configs.override(configs.base(), SMALL | changes), platform)


@pytest.fixture
def cudnn(monkeypatch):
    """Lets JAX believe that cuDNN and a Hopper GPU are here."""
    names = {"check_cudnn_version": 91002, "check_compute_capability": True}
    names |= {"is_cuda_compute_capability_equal": False}
    for name, value in names.items():
        answer = lambda *_, value=value: value
        monkeypatch.setattr(fused_attention_stablehlo, name, answer)
    # From JAX 0.12 on, Pallas asks too.
    if importlib.util.find_spec("jax._src.pallas.triton.gpu_info"):
        kind = "jax._src.pallas.triton.gpu_info.get_device_kind"
        monkeypatch.setattr(kind, lambda: "NVIDIA H100")
    monkeypatch.setattr(gpu, "has_cudnn", lambda: True)


@pytest.fixture
def stand_in(monkeypatch):
    """Has plain JAX do what cuDNN is told to; returns what it was told each time."""
    calls, attend = [], jax.nn.dot_product_attention

    def plain(*arrays, implementation, **told):
        assert implementation == "cudnn"
        calls.append(told)
        return attend(*arrays, implementation="xla", **told)

    monkeypatch.setattr(gpu, "has_cudnn", lambda: True)
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    return calls


def lowered(system):
    """Returns the training step's program for CUDA, and the tokens it attends to."""
    c, optimizer = system.config, make_optimizer(system.config)
    state = jax.eval_shape(
        lambda key: init_state(system.init(key), optimizer, ema=False),
        jax.random.key(0),
    )
    tokens = jax.ShapeDtypeStruct((c.batch_size, system.window), np.int32)
    traced = make_step(system, optimizer).trace(state, np.int32(0), tokens)
    return traced.lower(lowering_platforms=("cuda",)).as_text(), system.num_predicted


@pytest.mark.parametrize("name", ["causal", "sigma"])
def test_scores_stay_within_cudnns_kernel(name, cudnn):
    text, T = lowered(make(system=name))
    assert text.count("__cudnn$fmhaSoftmax(") == 2
    assert text.count("__cudnn$fmhaSoftmaxBackward(") == 2
    assert not re.search(rf"tensor<[\dx]*{T}x{T}xf32>", text)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__dropout": 0.1},
        {"model__dtype": "float32"},
        {"model__positions": "alibi"},
        {"model__key_width": 8},
        {"model__n_embd": 24},
        {"model__n_embd": 512},
    ],
)
def test_what_cudnn_does_not_have_is_plain(changes, cudnn):
    text, T = lowered(make(**changes))
    assert "__cudnn" not in text
    assert re.search(rf"tensor<[\dx]*{T}x{T}xf32>", text)


def test_without_cudnn_attention_is_plain():
    assert "__cudnn" not in lowered(make())[0]


def test_every_device_attends_to_its_own_rows_and_heads(cudnn):
    mesh = jax.sharding.AbstractMesh(
        (2, 1, 2),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    x = jax.ShapeDtypeStruct((4, 96, 6, 16), jnp.float32)
    attend = jax.jit(lambda x: gpu.causal_attention(x, x, x, "bfloat16"))
    with jax.sharding.use_abstract_mesh(mesh):
        shapes = str(attend.trace(x).jaxpr)
    assert "bf16[2,96,3,16]" in shapes


def test_every_device_normalises_its_own_rows():
    mesh = jax.sharding.AbstractMesh(
        (2, 1, 2),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    x, scale = jnp.zeros((4, 96, 128)), jnp.ones(128)
    norm = lambda x, scale: gpu_norm.add_and_norm(x, x, scale, 1e-5, "bfloat16")[
        1
    ].sum()
    with jax.sharding.use_abstract_mesh(mesh):
        shapes = str(jax.make_jaxpr(jax.grad(norm, (0, 1)))(x, scale))
    assert "f32[192,128]" in shapes and "f32[384,128]" not in shapes


def test_a_step_joins_and_cuts_up_nothing_for_cudnn(cudnn, monkeypatch):
    monkeypatch.setattr(gpu, "APART", 1)
    text, T = lowered(make(model__n_embd=128))
    # Two sums with their norms in each block and the last one, forward and back.
    assert text.count("custom_call @__gpu$xla.gpu.triton(") == 2 * (2 * 2)
    assert not re.search(rf"stablehlo.dot_general.*tensor<{2 * T}x384xbf16>", text)
    assert re.search(rf"stablehlo.dot_general.*tensor<{2 * T}x128xbf16>", text)


def plain_attention(q_BTHK, k_BTHK, v_BTHK, dtype):
    halves = (x_BTHK.astype(dtype) for x_BTHK in (q_BTHK, k_BTHK, v_BTHK))
    return jax.nn.dot_product_attention(*halves, is_causal=True).astype(jnp.float32)


@pytest.mark.parametrize("dropout, fused", [(0.0, False), (0.0, True), (0.2, False)])
def test_a_model_equals_plain_jax_within_bfloat16(dropout, fused, monkeypatch):
    if fused:
        monkeypatch.setattr(gpu_norm, "INTERPRET", True)
        monkeypatch.setattr(gpu_norm, "fuses_norms", lambda c, x: gpu.in_half(c))
        monkeypatch.setattr(gpu, "projects_apart", lambda x, c: gpu.in_half(c))
        monkeypatch.setattr(gpu, "can_attend", lambda c, seed_2: gpu.in_half(c))
        monkeypatch.setattr(gpu, "causal_attention", plain_attention)
    losses, grads = {}, {}
    tokens = np.random.default_rng(0).integers(0, 61, (2, 81)).astype(np.int32)
    for kernels, dtype in (
        ("gpu", "bfloat16"),
        ("xla", "bfloat16"),
        ("xla", "float32"),
    ):
        system = make("xla", model__dropout=dropout, model__dtype=dtype)
        system.model_config = dataclasses.replace(system.model_config, kernels=kernels)
        system.graphdef = jax.eval_shape(system._build, jax.random.key(0))
        system.graphdef = nnx.split(system.graphdef)[0]
        params = system.init(jax.random.key(0))
        key = jax.random.key(1)
        loss = lambda params, system=system, key=key: system.nll(
            params, {"tokens": tokens}, key
        ).mean()
        found = jax.jit(jax.value_and_grad(loss))(params)
        losses[kernels, dtype], grads[kernels, dtype] = float(found[0]), found[1]
    exact = jax.tree.leaves(grads["xla", "float32"])
    distance = {}
    for name in losses:
        leaves = jax.tree.leaves(grads[name])
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
        apart = [
            np.linalg.norm(a - b) / np.linalg.norm(b)
            for a, b in zip(leaves, exact, strict=True)
        ]
        distance[name] = max(apart)
    assert losses["gpu", "bfloat16"] == pytest.approx(
        losses["xla", "float32"], rel=1e-3
    )
    assert distance["gpu", "bfloat16"] < 2e-2
    # One more rounding, after each product, costs about as much as those before it.
    assert distance["gpu", "bfloat16"] < 3 * distance["xla", "bfloat16"]


def test_gelu_and_cross_entropy_equal_plain_jax():
    rng = np.random.default_rng(0)
    rounded = lambda *shape: jnp.asarray(
        3 * rng.standard_normal(shape), jnp.bfloat16
    ).astype(jnp.float32)
    x, dy = rounded(4, 61), rounded(4, 61)
    ours = jax.vjp(lambda x: gpu.gelu(x, "bfloat16"), x)
    plain = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), x)
    close(ours[0], plain[0], rtol=1e-5, atol=1e-6)
    close(ours[1](dy)[0], plain[1](dy)[0], rtol=1e-5, atol=1e-5)
    targets = jnp.asarray(rng.integers(0, 61, 4))
    ours = jax.vjp(lambda x: layers.cross_entropy(x, targets, HALF), x)
    plain = jax.vjp(lambda x: layers.cross_entropy(x, targets), x)
    close(ours[0], plain[0], rtol=1e-6)
    g = jnp.arange(4.0)
    close(ours[1](g)[0], plain[1](g)[0], rtol=1e-5, atol=1e-6)


def test_layer_norm_equals_plain_jax_within_bfloat16():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((7, 64)) + 1, jnp.float32)
    scale = jnp.asarray(rng.standard_normal(64), jnp.float32).at[3].set(0)
    dy = jnp.asarray(rng.standard_normal((7, 64)), jnp.float32)
    y, back = jax.vjp(lambda x, s: gpu.layer_norm(x, s, 1e-5, "bfloat16"), x, scale)
    plain, plain_back = jax.vjp(lambda x, s: cpu.layer_norm(x, s, 1e-5), x, scale)
    close(y, plain, rtol=5e-3)
    (dx, dscale), (plain_dx, plain_dscale) = back(dy), plain_back(dy)
    close(dx, plain_dx, rtol=1e-5, atol=1e-6)
    assert dscale[3] == 0
    close(dscale, plain_dscale.at[3].set(0), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("groups", [1, 4, 1024])
def test_a_sum_and_its_norm_equal_two_steps_within_bfloat16(groups, monkeypatch):
    monkeypatch.setattr(gpu_norm, "INTERPRET", True)
    monkeypatch.setattr(gpu_norm, "GROUPS", groups)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    half = lambda a: a.astype(jnp.bfloat16).astype(jnp.float32)
    x, more, scale = normal(2, 24, 384) + 1, half(normal(2, 24, 384)), normal(384)
    ours = jax.vjp(
        lambda *a: gpu_norm.add_and_norm(*a, 1e-5, "bfloat16"), x, more, scale
    )
    plain = jax.vjp(
        lambda x, m, s: (x + m, cpu.layer_norm(x + m, s, 1e-5)), x, more, scale
    )
    close(ours[0][0], plain[0][0])
    close(ours[0][1], plain[0][1], rtol=5e-3)
    gradients = normal(2, 24, 384), half(normal(2, 24, 384))
    dx, dmore, dscale = ours[1](gradients)
    plain_dx, _, plain_dscale = plain[1](gradients)
    close(dx, plain_dx, rtol=1e-3, atol=2e-3)
    close(dmore, half(dx))
    close(dscale, plain_dscale, rtol=1e-2, atol=5e-2)


def test_a_loss_of_one_pass_is_finite_whatever_the_logits():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((5, 1000)) * 100, jnp.float32)
    x = x.at[0].add(3e4).at[1].add(-3e4).at[2, :999].set(-jnp.inf)
    targets = jnp.full(5, 999)
    ours = gpu.cross_entropy(x, targets, "bfloat16")
    close(ours, layers.cross_entropy(x, targets), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 3])
def test_products_are_rounded_but_not_the_gradients_of_weights(rows):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, 32)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((32, 24)), jnp.float32)
    y, back = jax.vjp(lambda x, w: layers.matmul(x, w, HALF), x, w)
    half = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64)
    assert y.dtype == jnp.float32 and (half(y) == y).all()
    close(y, half(x) @ half(w), rtol=1e-2, atol=1e-2)
    dy = jnp.asarray(rng.standard_normal((rows, 24)), jnp.float32)
    dx, dw = back(dy)
    assert dx.dtype == dw.dtype == jnp.float32
    close(dx, half(dy) @ half(w).T, rtol=1e-2, atol=2e-2)
    close(dw, half(x).T @ half(dy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["causal", "sigma"])
def test_the_cache_holds_half_and_gives_what_one_pass_gives(name, fused, request):
    if fused:
        request.getfixturevalue("stand_in")
    system = make(system=name, model__block_size=12)
    params = system.init(jax.random.key(0))
    tokens = np.zeros((1, 12), np.int32)
    known = np.arange(12) < np.ones((1, 1))
    key = jax.random.key(1)
    cached = system.sample(params, tokens, known, key)
    log_p = np.asarray(cached.log_p_BT)[0, 1:]
    draws, length = Draws.of(key, 1).split()[0], np.array([12])
    order = system.decode_order(known, length, DEFAULT_PARAMS, draws)
    nll = system.score(params, jnp.asarray(cached.tokens_BT), jnp.asarray(order))[1]
    again = np.zeros((1, 12))
    again[0, order[0, 1:]] = -np.asarray(nll, np.float64)[0]
    close(log_p, again[0, 1:], atol=0.03)
    empty = jax.eval_shape(
        lambda params: ModelDecoder(system.graphdef).init_cache(params, 1, 12),
        params,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(empty)} == {jnp.dtype("bfloat16")}
    shape = (1, 16, 2, 16) if fused else (1, 2, 12, 16)
    assert {leaf.shape for leaf in jax.tree.leaves(empty)} == {shape}


@pytest.mark.parametrize("start", [5, np.array([0, 9, 13])], ids=["common", "own"])
@pytest.mark.parametrize("mask", ["causal", "alone", "own"])
@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("hooked", [False, True])
def test_cudnn_reads_of_a_cache_what_plain_jax_does(
    hooked, T, mask, start, stand_in, monkeypatch
):
    B, S, rng = 3, 16, np.random.default_rng(0)
    module = attention.Attention(HALF, rngs=nnx.Rngs(0))
    x_BTD = jnp.asarray(rng.standard_normal((B, T, 32)), jnp.float32)
    cache_BSHK = jnp.asarray(rng.standard_normal((B, S, 2, 16)), jnp.bfloat16)
    own = (rng.random((B, 1, T, T)) < 0.5) | np.eye(T, dtype=bool)
    own = own if np.ndim(start) else own[0, 0]
    mask_TT = {"causal": None, "alone": np.eye(T, dtype=bool), "own": own}[mask]
    hook = (lambda q, k, v, y, total: (0.5 * y, None)) if hooked else None

    def attend(cache):
        y_BTD, written, _ = module(x_BTD, None, (cache,) * 2, start, mask_TT, hook)
        return y_BTD, written

    y_BTD, written = attend(cache_BSHK)
    assert len(stand_in) == 1 - hooked  # A hook needs the softmax's divisor.
    monkeypatch.setattr(gpu, "has_cudnn", lambda: False)
    plain_BTD, plain_written = attend(cache_BSHK.swapaxes(1, 2))
    close(y_BTD, plain_BTD, atol=2e-3)
    for array, plain in zip(written, plain_written, strict=True):
        np.testing.assert_array_equal(array, plain.swapaxes(1, 2))


@pytest.mark.parametrize(
    "name, sampler", [("causal", ""), *(("sigma", one) for one in SIGMA_SAMPLERS)]
)
def test_decoding_holds_no_scores(name, sampler, cudnn):
    """Of one token a call the lengths say all; of several, a mask in 16 bits."""
    B, S = 3, 80
    system = make(system=name)
    decoder, sampling = ModelDecoder(system.graphdef), SamplingParams(sampler=sampler)
    advance = system.sampler(sampling)

    def decode(params, tokens_BS):
        some_B = jnp.full(B, 2)
        state = prefill(decoder, params, tokens_BS, tokens_BS, tokens_BS, some_B)
        drawn = sampling.decode_params(S, Draws.of(jax.random.key(0), B))
        return advance(decoder, params, state, drawn, jnp.int32(9)).tokens_BS

    params = jax.eval_shape(system.init, jax.random.key(0))
    traced = jax.jit(decode).trace(params, jax.ShapeDtypeStruct((B, S), np.int32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # The prompt's pass has a mask too.
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    one_by_one = sampler in ("", "ar")
    assert ("__cudnn$fmhaSoftmax(" in text) == one_by_one
    assert not re.search(rf"tensor<{B}x2x\d+x{S}xf32>", text)
    assert not re.search(rf"tensor<[\dx]*{S}x{S}xf32>", text)


def test_a_cache_is_no_longer_than_it_must_be():
    assert gpu.slots(272, 1024, "gpu") == 512
    assert gpu.slots(512, 1024, "gpu") == 512
    assert gpu.slots(2, 1024, "gpu") == 64
    assert gpu.slots(70, 80, "gpu") == 80
    assert gpu.slots(2, 1024, "cpu") == 1024
    system = make()
    params = system.init(jax.random.key(0))
    tokens = np.zeros((1, 20), np.int32)
    filled = system.sample(params, tokens, tokens > 0, jax.random.key(1))
    assert filled.tokens_BT.shape == (1, 20) and filled.decoded_BT.all()


def test_samplers_read_matrices_in_half():
    system = make()
    params = gpu.for_sampling(system.init(jax.random.key(0)), system.model_config)
    assert params["table"].dtype == jnp.bfloat16
    assert params["positions"]["table"].dtype == jnp.float32
    block = params["transformer"]["blocks"][0]
    assert block["attn"]["qkv"]["kernel"].dtype == jnp.bfloat16
    assert block["norm_1"]["scale"].dtype == jnp.float32
