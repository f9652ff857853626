"""The three modes: equal to what they should be, causal, with gradients everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt import config as configs
from jaxgpt.model import attention, layers
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.systems.registry import build_system

pytestmark = pytest.mark.unoptimised

T, V = 8, 11


def make(mode="associative", kernels="cpu", **changes):
    fields = {
        "system": "memory",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": T,
        "model.vocab_size": V,
        "memory.mode": mode,
        "memory.memory_size": 32,
        "memory.num_search_results": 3,
        "data.path": "",
    }
    config = configs.override(configs.base(), fields | changes)
    system = build_system(configs.validate(config))
    params = system.init(jax.random.key(0))
    return system, jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)


def segments(count, B=2, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (B, count * T + 1)).astype(np.int32)
    for nth in range(count):
        yield {
            "tokens": tokens[:, nth * T : (nth + 1) * T + 1],
            "document": np.arange(B, dtype=np.int32),
            "start": np.full(B, nth * T, np.int32),
            "weight": np.ones((B, T), np.float32),
        }


def run(system, params, batches, store, state):
    """Reads segments; returns the logits of each and the state after them."""
    logits = []
    for batch in batches:
        reading = system.memory.reading
        state, read, _ = system.host.read(params, state, batch, reading)
        logits.append(read.logits_BTV)
        store.update(state["entries"])
    return logits, state


def plain(system, params, tokens):
    """The logits of GPT-2 with the same parameters."""
    make = lambda: LanguageModel(system.model_config, rngs=nnx.Rngs(0))
    module = nnx.eval_shape(make)
    rest = {name: value for name, value in params.items() if name != "memory"}
    # Operation by operation, as `run` does it: it is compared to the bit.
    return nnx.merge(nnx.split(module)[0], rest)(tokens)[0]


@pytest.mark.parametrize("mode", ["associative", "attention", "output"])
def test_an_empty_memory_is_gpt2_to_the_bit(mode):
    system, params = make(mode)
    if mode == "associative":
        params["memory"] = jax.tree.map(jnp.zeros_like, params["memory"])
    store, state = system.host.open(2)
    (first,), _ = run(system, params, segments(1), store, state)
    tokens = next(segments(1))["tokens"][:, :-1]
    np.testing.assert_array_equal(first, plain(system, params, tokens))
    np.testing.assert_array_equal(system.model(params)(tokens)[0], first)


def test_a_fresh_associative_model_is_gpt2_whatever_the_memory_holds():
    system, params = make()
    store, state = system.host.open(2)
    logits, state = run(system, params, segments(3), store, state)
    assert store.size(0) == 3 * T
    for batch, found in zip(segments(3), logits, strict=True):
        expected = plain(system, params, batch["tokens"][:, :-1])
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_output_with_weight_zero_is_the_base_to_the_bit():
    system, params = make("output", **{"memory.weight": 0.0})
    store, state = system.host.open(2)
    logits, _ = run(system, params, segments(3), store, state)
    for batch, found in zip(segments(3), logits, strict=True):
        expected = plain(system, params, batch["tokens"][:, :-1])
        np.testing.assert_array_equal(found, expected)


def test_output_mixes_the_tokens_that_followed():
    system, params = make("output", **{"memory.num_search_results": 2})
    store, state = system.host.open(2)
    batch = next(segments(1))
    run(system, params, [batch], store, state)
    state = {"entries": store.entries, "recent": state["recent"]}
    # The same segment again finds itself first: distance 0.
    again = batch | {"start": np.full(2, T, np.int32)}
    (mixed,), _ = run(system, params, [again], store, state)
    own = jax.nn.softmax(plain(system, params, batch["tokens"][:, :-1]), -1)
    rise = np.exp(mixed) - 0.75 * np.asarray(own)
    target = np.take_along_axis(rise, batch["tokens"][:, 1:, None], -1)
    assert (target > 0.25 * 0.4).all()
    np.testing.assert_allclose(np.exp(mixed).sum(-1), 1, atol=1e-5)


def test_attention_with_all_stored_is_dense_attention():
    system, params = make("attention", **{"memory.num_search_results": 24})
    store, state = system.host.open(2)
    batches = list(segments(3))
    logits, _ = run(system, params, batches, store, state)
    module = system.model(params)
    last = module.transformer.blocks[-1]
    outputs = []
    for batch in batches:  # What enters the last block knows no memory.
        tokens = batch["tokens"][:, :-1]
        x = module.with_positions(module.table[...][tokens], (jnp.arange(T),))
        outputs.append(module.transformer.blocks[0](x)[0])
    x = jnp.concatenate(outputs, 1)
    qkv = last.attn.project(last.norm_1(x), 3 * T)
    q, k, v = attention.split_heads(qkv, 2)
    mask = jnp.tril(jnp.ones((3 * T, 3 * T), bool))
    y, _ = attention.attend(q, k, v, mask, system.model_config)
    x = x + last.attn.out(attention.merge_heads(y))
    x = module.transformer.norm_f(x + last.mlp(last.norm_2(x)))
    dense = module.head(x).reshape(2, 3, T, V)
    for nth, found in enumerate(logits):
        np.testing.assert_allclose(found, dense[:, nth], atol=1e-5)


@pytest.mark.parametrize("mode", ["associative", "attention", "output"])
def test_what_comes_later_changes_nothing_before(mode):
    system, params = make(mode)
    params["memory"] = random_like(params.get("memory", {}))
    batches = list(segments(3))
    changed = [dict(batch) for batch in batches]
    at = 3
    changed[1]["tokens"] = batches[1]["tokens"].copy()
    changed[1]["tokens"][:, at:] = (changed[1]["tokens"][:, at:] + 1) % V
    found = []
    for each in (batches, changed):
        store, state = system.host.open(2)
        found.append(run(system, params, each, store, state)[0])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1][:, :at], found[1][1][:, :at])
    assert np.abs(found[0][1][:, at:] - found[1][1][:, at:]).max() > 1e-3
    assert np.abs(found[0][2] - found[1][2]).max() > 1e-6


def random_like(tree):
    leaves, kind = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(5), max(len(leaves), 1))
    drawn = [
        0.5 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(kind, drawn)


@pytest.mark.parametrize("mode", ["associative", "attention"])
def test_gradients_reach_every_part(mode):
    changes = {"memory.delete": True} if mode == "associative" else {}
    system, params = make(mode, **changes)
    params["memory"] = random_like(params["memory"])
    carried = system.host.recurrent_state(2)
    system.host.on_restore(carried, {})
    grad = jax.jit(jax.grad(system.objective, has_aux=True))
    for batch in segments(4):
        batch = system.train_batch(batch, None, 0)
        grads, carried = grad(params, batch, carried, None)
        system.host.on_step_end(carried)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_one_search_for_each_forward_and_a_stale_index_is_an_error():
    system, params = make()
    carried = system.host.recurrent_state(2)
    system.host.on_restore(carried, {})
    grad = jax.jit(jax.grad(system.objective, has_aux=True))
    batches = [system.train_batch(batch, None, 0) for batch in segments(3)]
    for batch in batches:
        _, carried = grad(params, batch, carried, None)
        system.host.on_step_end(carried)
    jax.block_until_ready(carried)
    assert system.host.stores[0].searches == 3
    _, carried = grad(params, batches[0], carried, None)
    with pytest.raises(Exception, match="out of sync"):
        jax.block_until_ready(grad(params, batches[1], carried, None))


@pytest.mark.parametrize("kind, calls", [("flat", False), ("graph", True)])
def test_only_training_and_an_index_call_the_host(kind, calls):
    """XLA keeps no program with a callback in its disk cache."""
    system, params = make(**{"memory.index_type": kind})
    _, state = system.host.open(2)
    batch = next(segments(1))

    def program(training):
        def logits(batch):
            read = system.host.read(params, state, batch, "on", training=training)[1]
            return read.logits_BTV

        return jax.jit(logits).lower(batch).as_text()

    batch = system.train_batch(batch, None, 0)
    assert ("callback" in program(False)) == calls
    assert "callback" in program(True)


def test_a_row_reads_no_other_and_shared_rows_read_all():
    for shared in (False, True):
        system, params = make(
            "output", **{"memory.shared": shared, "memory.num_search_results": 1}
        )
        store, state = system.host.open(2)
        batches = list(segments(2))
        for batch in batches:  # Row 1 comes to ask for what row 0 read.
            batch["tokens"] = batch["tokens"].copy()
        batches[1]["tokens"][1] = batches[0]["tokens"][0]
        logits, _ = run(system, params, batches, store, state)
        own = plain(system, params, batches[1]["tokens"][:, :-1])
        p = np.exp(logits[1][1]) - 0.75 * np.asarray(jax.nn.softmax(own[1], -1))
        right = np.take_along_axis(p, batches[1]["tokens"][1, 1:, None], -1)
        assert (right > 0.2).all() == shared


def test_a_new_document_begins_with_an_empty_memory():
    system, params = make("output")
    store, state = system.host.open(2)
    batches = list(segments(3))
    batches[2] = batches[0] | {"start": np.array([0, 2 * T], np.int32)}
    logits, state = run(system, params, batches, store, state)
    expected = plain(system, params, batches[0]["tokens"][:, :-1])
    np.testing.assert_array_equal(logits[2][0], expected[0])
    assert np.abs(logits[2][1] - expected[1]).max() > 1e-3
    assert store.size(0) == T and store.size(1) == 3 * T
    held = np.asarray(state["entries"]["document"])
    assert (held[0, np.asarray(state["entries"]["id"])[0] >= 0] == 0).all()


def test_the_loss_is_cross_entropy_of_what_counts():
    system, params = make()
    carried = system.host.recurrent_state(2)
    system.host.on_restore(carried, {})
    batch = next(segments(1))
    batch["weight"] = (np.arange(T) < 3)[None].repeat(2, 0).astype(np.float32)
    batch_and_more = system.train_batch(batch, None, 0)
    loss, _ = jax.jit(system.objective)(params, batch_and_more, carried, None)
    logits = plain(system, params, batch["tokens"][:, :-1])
    nll = layers.cross_entropy(logits, batch["tokens"][:, 1:])
    assert float(loss) == pytest.approx(float(nll[:, :3].mean()), rel=1e-5)
