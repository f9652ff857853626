import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.model import attention, cpu
from jaxgpt.sampling import decoding
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.logits import sample_token, sampling_probs
from jaxgpt.sampling.state import Draws, ModelDecoder, SamplingParams, grow
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma.options import LOW_ENTROPY_FIRST

pytestmark = pytest.mark.unoptimised

T = 17


@pytest.fixture(scope="module", params=["sigma", "causal"])
def system_and_params(request):
    changes = {
        "system": request.param,
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": T,
        "model.vocab_size": 7,
    }
    system = build_system(configs.override(configs.base(), changes))
    params = system.init(jax.random.key(0))
    return system, jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)


def ask(system, params, known, seed=3, **options):
    tokens = np.arange(known.size, dtype=np.int32).reshape(known.shape) % 7
    sampling = SamplingParams(**{"sampler": "ar"} | options)
    filled = system.sample(params, tokens, known, jax.random.key(seed), sampling)
    assert filled.decoded_BT.all()
    return tokens, filled.tokens_BT


@pytest.mark.parametrize("length", [2, 9, T])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"temperature": 0.0}, {"top_p": 0.6}]
)
def test_cached_generation_equals_the_naive_one(system_and_params, length, options):
    known = np.arange(length) < np.array([[1], [1]])
    _, fast = ask(*system_and_params, known, **options)
    _, slow = ask(*system_and_params, known, cached=False, **options)
    np.testing.assert_array_equal(fast, slow)


def test_rows_with_more_known_tokens_keep_them(system_and_params):
    known = np.arange(T) < np.array([[1], [5], [T]])
    tokens, filled = ask(*system_and_params, known)
    _, naive = ask(*system_and_params, known, cached=False)
    np.testing.assert_array_equal(filled[known], tokens[known])
    np.testing.assert_array_equal(filled, naive)


def test_a_gap_anywhere_is_filled_and_the_rest_kept():
    changes = {"model.block_size": T, "model.vocab_size": 7, "model.n_layer": 1}
    changes |= {"model.n_embd": 12}
    system = build_system(configs.override(configs.base(), changes))
    params = system.init(jax.random.key(0))
    known = np.isin(np.arange(T), [3, 4, 5, T - 1])[None]
    for order in ("random", "left-to-right", "fractal"):
        tokens, filled = ask(system, params, known, order=order)
        np.testing.assert_array_equal(filled[known], tokens[known])
        draws = Draws.of(jax.random.key(0), 1)
        sampling = SamplingParams(order=order)
        read = system.decode_order(known, np.array([T]), sampling, draws)
        assert sorted(read[0]) == list(range(T))
        assert list(read[0][:4]) == [3, 4, 5, T - 1]


def test_seeds_and_rows_draw_differently_and_repeatably(system_and_params):
    known = np.arange(T) < np.ones((4, 1))
    tokens = np.zeros(known.shape, np.int32)
    draw = lambda seed: (
        system_and_params[0]
        .sample(system_and_params[1], tokens, known, jax.random.key(seed))
        .tokens_BT
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    assert len({tuple(row) for row in draw(0)}) == 4


def test_nothing_is_compiled_for_other_lengths(system_and_params):
    known = lambda length, given: np.arange(length) < np.full((2, 1), given)
    ask(*system_and_params, known(T, 1))
    before = autoregress._cache_size()
    for length, given in ((T, 4), (9, 2), (2, 1), (T, T)):
        ask(*system_and_params, known(length, given))
    assert autoregress._cache_size() == before


LONG = 70
GROWING = {
    "causal": {"system": "causal"},
    "one by one": {},
    "with a begin token": {"sigma.begin_token": True},
    "burst": {"sigma.begin_token": True, "sampler": "exact-burst"},
}


@pytest.mark.parametrize("name", GROWING)
def test_a_cache_that_grows_changes_no_token(name, monkeypatch):
    changes = dict(GROWING[name])
    rows, sampler = 4, changes.pop("sampler", "ar")
    changes |= {"model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16}
    changes |= {"model.block_size": LONG, "model.vocab_size": 7}
    system = build_system(configs.override(configs.base(), changes))
    params = system.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)
    grown = []

    def grow_seen(decoder, params, state, slots):
        grown.append(slots)
        return grow(decoder, params, state, slots)

    monkeypatch.setattr(decoding, "grow", grow_seen)
    first = int(system.model_config.begin_token)
    half = -(-(LONG + first) // 2)
    # Prompts and texts that end where the smaller cache does, and beside.
    edge = half - first
    cases = [(LONG, 1), (LONG, edge - 1), (LONG, edge), (edge, 1), (edge + 1, 1)]
    gaps = np.random.default_rng(0).random((rows, LONG)) < 0.3
    masks = [np.arange(T) < np.full((rows, 1), given) for T, given in cases]
    masks.append(np.sort(gaps)[:, ::-1] if name == "causal" else gaps)
    growing = [ask(system, params, mask, sampler=sampler)[1] for mask in masks]
    assert len(grown) >= 2
    assert set(grown) == {LONG + first}
    tokens = np.arange(rows * LONG, dtype=np.int32).reshape(rows, LONG) % 7
    key, sampling = jax.random.key(3), SamplingParams(sampler)
    watch = lambda filled: True
    watched = system.sample(params, tokens, masks[0], key, sampling, watch, 3)
    np.testing.assert_array_equal(watched.tokens_BT, growing[0])
    monkeypatch.setattr(decoding.cpu, "cache_sizes", lambda slots, *_: (slots,))
    for mask, tokens in zip(masks, growing, strict=True):
        fixed = ask(system, params, mask, sampler=sampler)[1]
        np.testing.assert_array_equal(tokens, fixed)


def test_samplers_that_look_at_all_slots_get_a_cache_of_all():
    changes = {"model.block_size": LONG, "model.vocab_size": 7}
    system = build_system(configs.override(configs.base(), changes))
    assert system.lookahead(SamplingParams("ar")) == 1
    assert system.lookahead(SamplingParams("ar", order=LOW_ENTROPY_FIRST)) == LONG
    assert system.lookahead(SamplingParams("burst")) == LONG
    assert system.lookahead(SamplingParams()) == system.max_draft_length == 8


def test_a_token_sees_the_slots_before_and_what_its_mask_says():
    starts = jnp.array([0, 2, 4])
    causal = attention.visible_slots(None, starts, 2, 5).astype(int)
    assert causal[:, 0].tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    ]
    alone = attention.visible_slots(jnp.eye(2, dtype=bool), starts, 2, 5).astype(int)
    assert alone[:, 0].tolist() == [
        [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]],
        [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
    ]
    first = attention.visible_slots(None, 1, 1, 3)
    assert first.tolist() == [[[[True, True, False]]]]


def test_no_cache_is_narrowed_at_every_token_on_a_cpu():
    changes = {"model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16}
    changes |= {"model.block_size": T, "model.vocab_size": 7}
    changes |= {"model.dtype": "bfloat16"}
    system = build_system(configs.override(configs.base(), changes), "cpu")
    params = system.init(jax.random.key(0))
    decoder = ModelDecoder(system.graphdef)
    one = jnp.zeros((3, 1), jnp.int32)
    step = lambda params, cache: decoder.forward(params, one, (one, one), cache, 4)
    traced = str(jax.make_jaxpr(step)(params, decoder.init_cache(params, 3, T)))
    assert f"f32[3,2,{T},8]" in traced
    assert f"bf16[3,2,{T},8]" not in traced


def test_a_small_cache_does_not_grow():
    assert cpu.cache_sizes(256, 32, 128) == (32, 64, 128, 256)
    assert cpu.cache_sizes(257, 32, 128) == (33, 65, 129, 257)
    assert cpu.cache_sizes(256, 8, 128) == (128, 256)
    assert cpu.cache_sizes(256, 1, 128) == (256,)
    assert cpu.cache_sizes(17, 1000, 16) == (17,)


def task(temperature=1.0, top_k=0, top_p=1.0):
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    return sampling.decode_params(1, Draws.of(jax.random.key(0), 1))


def test_draws_follow_the_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    uniform = jax.random.uniform(jax.random.key(0), (20000,))

    def shares(**options):
        p = sampling_probs(logits, task(**options))
        drawn = sample_token(uniform, jnp.tile(p, (20000, 1)))
        return np.bincount(drawn, minlength=4) / 20000

    np.testing.assert_allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.015)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.015)
    # The nucleus is the smallest set that reaches top_p, the last token included.
    np.testing.assert_allclose(shares(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_array_equal(shares(top_p=0.49), [1, 0, 0, 0])
    # XLA takes the first for zero, and the second is zero as a float32.
    for smallest in (1e-40, 1e-300):
        np.testing.assert_array_equal(shares(top_p=smallest), [1, 0, 0, 0])
    sharp = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), sharp / sharp.sum(), atol=0.015)
    np.testing.assert_array_equal(shares(temperature=0.0), [1, 0, 0, 0])


def test_a_draw_never_takes_a_token_without_weight():
    p = jnp.array([[0.0, 0.3, 0.0, 0.2, 0.0]] * 3)
    drawn = sample_token(jnp.array([0.0, 0.59999, 1.0]), p)
    assert set(drawn.tolist()) <= {1, 3}


def test_log_probabilities_are_those_of_the_text(system_and_params):
    system, params = system_and_params
    known = np.arange(T) < np.array([[1], [4]])
    sampling = SamplingParams("ar", order="left-to-right", temperature=0.7, top_k=3)
    tokens = np.ones((2, T), np.int32)
    filled = system.sample(params, tokens, known, jax.random.key(1), sampling)
    order = np.tile(np.arange(T), (2, 1))
    nll = system.score(params, filled.tokens_BT, order)[1]
    expected = np.where(known[:, 1:], 0, -np.asarray(nll))
    np.testing.assert_allclose(filled.log_p_BT[:, 1:], expected, atol=1e-4)
    assert filled.num_forward_passes_B.tolist() == [T - 1, T - 4]


def test_watching_changes_nothing_and_can_stop(system_and_params):
    system, params = system_and_params
    known = np.arange(T) < np.ones((2, 1))
    tokens = np.zeros((2, T), np.int32)
    seen = []

    def watch(filled):
        seen.append(int(filled.decoded_BT.sum()))
        return len(seen) < 4 or more

    more = True
    sampling = SamplingParams("ar")
    watched = system.sample(
        params, tokens, known, jax.random.key(3), sampling, watch, 3
    )
    plain = system.sample(params, tokens, known, jax.random.key(3), sampling)
    np.testing.assert_array_equal(watched.tokens_BT, plain.tokens_BT)
    assert seen == [8, 14, 20, 26, 32, 34]
    more = False
    seen.clear()
    stopped = system.sample(
        params, tokens, known, jax.random.key(3), sampling, watch, 3
    )
    assert stopped.decoded_BT.sum() == 26
