"""The distribution, progress and cost of the samplers that decode several tokens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgpt import config as configs
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.logits import sampling_probs
from jaxgpt.sampling.state import (
    DEFAULT_PARAMS,
    Draws,
    ModelDecoder,
    SamplingParams,
    prefill,
)
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.samplers import (
    best_of,
    one_by_one,
    speculative,
    unmasking,
    window,
)
from tests.systems.sigma import tables

SAMPLES = 100_000
ROWS = 40
FOREVER = jnp.int32(2**30)


def exact_burst(decoder, *arguments, max_draft_length=8):
    # No window is wider than the text: a wide one takes the tables longer.
    return speculative.advance(
        decoder, *arguments, max_draft_length=min(max_draft_length, decoder.n)
    )


def arrange(decoder, read_BT, tokens_BT):
    """Tokens and positions [B, n + 1] in reading order, a beginning token first."""
    B, n = read_BT.shape
    begin = lambda value: np.full((B, 1), value)
    tokens = np.take_along_axis(tokens_BT, read_BT, 1)
    return (
        np.concatenate([begin(decoder.V), tokens], 1).astype(np.int32),
        np.concatenate([begin(n), read_BT], 1).astype(np.int32),
    )


def decode_order(prompt_mask_BT, order):
    noise = np.random.default_rng(0).random(prompt_mask_BT.shape)
    rows = [
        np.concatenate([np.flatnonzero(k), orders.GENERATION[order](k, u, 16)])
        for k, u in zip(prompt_mask_BT, noise, strict=True)
    ]
    return np.array(rows)


@functools.partial(jax.jit, static_argnames=("decoder", "advance"))
def draw_many(decoder, advance, params, tokens_BS, own_BS, given_B, tasks):
    """A draw for each of the stacked tasks: texts, calls, evaluations, all filled."""
    B, S = tokens_BS.shape
    target_BS = jnp.roll(own_BS, -1, 1)

    def once(task):
        state = prefill(decoder, params, tokens_BS, own_BS, target_BS, given_B)
        state = advance(decoder, params, state, task, FOREVER)
        text = jnp.zeros((B, S), jnp.int32)
        text = text.at[jnp.arange(B)[:, None], state.own_BS].set(state.tokens_BS)
        full = (state.num_decoded_B == S).all()
        return text[:, :-1], state.num_forward_passes_B, state.tokens_processed_B, full

    return jax.lax.map(once, tasks)


def draw_texts(
    model,
    advance,
    runs,
    prompt_mask_BT,
    tokens_BT=None,
    read=None,
    sampling=DEFAULT_PARAMS,
):
    """Samples from a table: texts [runs, B, n], and each row's calls, evaluations."""
    decoder, params = model
    B, n = prompt_mask_BT.shape
    tokens_BT = np.zeros((B, n), np.int32) if tokens_BT is None else tokens_BT
    read = decode_order(prompt_mask_BT, "random") if read is None else read
    tokens_BS, own_BS = arrange(decoder, read, tokens_BT)
    keys = jax.random.split(jax.random.key(7), runs)
    task = lambda key: sampling.decode_params(n + 1, Draws.of(key, B))
    tasks = jax.vmap(task)(keys)
    given_B = 1 + prompt_mask_BT.sum(1)
    found = draw_many(decoder, advance, params, tokens_BS, own_BS, given_B, tasks)
    texts, calls, evaluations, full = (np.asarray(array) for array in found)
    assert full.all(), "a slot was left empty"
    return texts, calls, evaluations


@functools.partial(jax.jit, static_argnames="decoder")
def conditionals(decoder, params, tokens_BS, own_BS, task):
    """What each token but the first was drawn from [B, S - 1, V], in one pass."""
    where = own_BS[:, :-1], own_BS[:, 1:]
    cache = decoder.init_cache(params, *tokens_BS.shape)
    logits_BTV, _ = decoder.forward(params, tokens_BS[:, :-1], where, cache, 0)
    return sampling_probs(logits_BTV, task)


def law(model, prompt_mask_T, given_T, order_T, sampling):
    """The exact law [V^n] of one-by-one generation in an order, by enumeration."""
    decoder, params = model
    texts = np.array(list(itertools.product(range(decoder.V), repeat=decoder.n)))
    fits = (texts == given_T)[:, prompt_mask_T].all(1)
    order_BT = np.tile(order_T, (len(texts), 1))
    tokens_BS, own_BS = arrange(decoder, order_BT, texts)
    task = sampling.decode_params(1, Draws.of(jax.random.key(0), 1))
    p = conditionals(decoder, params, tokens_BS, own_BS, task)
    chosen = np.take_along_axis(np.asarray(p, np.float64), tokens_BS[:, 1:, None], 2)
    # Where a prefix is impossible the table knows nothing, and nothing gets there.
    chosen = np.nan_to_num(chosen[..., 0])
    chosen[:, : prompt_mask_T.sum()] = 1
    law_O = np.where(fits, chosen.prod(1), 0)
    assert law_O.sum() == pytest.approx(1, abs=1e-4)
    return law_O / law_O.sum()


def counts(texts, V):
    n = texts.shape[-1]
    codes = texts.reshape(-1, n) @ V ** np.arange(n)[::-1]
    return np.bincount(codes, minlength=V**n)


def agreement(texts, V, expected):
    """(total variation over that of independent samples, chi-square p).

    The total variation is the mean over 50 parts of the samples: that of all of them,
    taken once, varies by a quarter where a few texts have most of the probability.
    """
    parts = np.array([counts(part, V) for part in np.array_split(texts, 50)])
    size = len(texts) // 50
    distance = lambda c: abs(c / c.sum(-1, keepdims=True) - expected).sum(-1).mean() / 2
    floor = distance(np.random.default_rng(0).multinomial(size, expected, 1000))
    found = parts.sum(0)
    often = expected * len(texts) >= 5
    pool = lambda c: np.append(c[often], c[~often].sum())
    seen, wanted = pool(found), pool(expected * len(texts))
    keep = wanted > 0
    assert seen[~keep].sum() == 0, "an impossible text was drawn"
    if keep.sum() == 1:
        return 1.0, 1.0  # Only one text is possible, and it was drawn.
    p = stats.chisquare(seen[keep], wanted[keep] * seen.sum() / wanted.sum()).pvalue
    return distance(parts) / floor, p


rng = np.random.default_rng(3)
PAIR = np.array([[0.45, 0.05], [0.05, 0.45]])
SAME = np.diag([0.4, 0.3, 0.2, 0.1])
MODELS = {
    "correlated pairs": tables.joint(np.einsum("ab,cd,ef->acebdf", PAIR, PAIR, PAIR)),
    "dependent pairs": tables.joint(np.einsum("ab,cd->acbd", SAME, SAME)),
    "independent": tables.joint(np.einsum("a,b,c->abc", *rng.dirichlet([2] * 4, 3))),
    "joint 3^4": tables.joint(rng.dirichlet(np.full(81, 0.4)).reshape(3, 3, 3, 3)),
    "joint 8x8": tables.joint(rng.dirichlet(np.full(64, 0.4)).reshape(8, 8)),
    "chain 2^6": tables.markov(6, 2, 0.9),
}
HOW = {
    "plain": DEFAULT_PARAMS,
    "temperature 0.7": SamplingParams(temperature=0.7),
    "top-k 2": SamplingParams(top_k=2),
    "top-p 0.95": SamplingParams(top_p=0.95),
}


# Many rows at once, and one text at a time.
CASES = [(model, sampling, ROWS) for model in MODELS for sampling in HOW]
CASES += [("joint 3^4", "plain", 1), ("chain 2^6", "plain", 1)]


@pytest.mark.parametrize(("model", "sampling", "batch"), CASES)
def test_exact_burst_has_the_law_of_one_by_one_generation(model, sampling, batch):
    decoder, _ = MODELS[model]
    known = np.zeros((batch, decoder.n), bool)
    read = np.tile(decode_order(known[:1], "random"), (batch, 1))
    texts, calls, _ = draw_texts(
        MODELS[model],
        exact_burst,
        SAMPLES // batch,
        known,
        read=read,
        sampling=HOW[sampling],
    )
    expected = law(MODELS[model], known[0], texts[0, 0], read[0], HOW[sampling])
    ratio, p = agreement(texts.reshape(-1, decoder.n), decoder.V, expected)
    assert ratio <= 1.2
    assert p > 0.01
    assert calls.max() <= decoder.n


@pytest.mark.parametrize("model", ["joint 3^4", "chain 2^6"])
def test_rows_with_different_gaps_each_have_their_own_law(model):
    decoder, _ = MODELS[model]
    given = np.random.default_rng(5).integers(0, decoder.V, (8, decoder.n))
    known = np.random.default_rng(6).random((8, decoder.n)) < 0.4
    known[0], known[1] = False, True
    read = decode_order(known, "random")
    texts, calls, _ = draw_texts(
        MODELS[model], exact_burst, SAMPLES // 8, known, given, read
    )
    assert (calls <= (~known).sum(1)).all()
    for row in range(8):
        kept = texts[:, row][:, known[row]] == given[row, known[row]]
        assert kept.all()
        expected = law(MODELS[model], known[row], given[row], read[row], DEFAULT_PARAMS)
        ratio, p = agreement(texts[:, row], decoder.V, expected)
        assert ratio <= 1.2
        assert p > 0.01 / 8


@pytest.mark.parametrize("num_orders", [1, 5])
@pytest.mark.parametrize("model", ["correlated pairs", "joint 3^4", "joint 8x8"])
def test_the_same_test_tells_the_biased_burst_apart(model, num_orders):
    decoder, params = MODELS[model]
    advance = functools.partial(best_of.advance, num_orders=num_orders)
    known = np.zeros((ROWS, decoder.n), bool)
    texts, _, _ = draw_texts(MODELS[model], advance, SAMPLES // ROWS, known)
    expected = np.asarray(params, np.float64)
    texts = texts.reshape(-1, decoder.n)
    ratio, p = agreement(texts, decoder.V, expected / expected.sum())
    assert ratio > 1.5
    assert p < 1e-6


@pytest.mark.parametrize(
    ("num_orders", "distance"), [(1, 0.040), (2, 0.076), (5, 0.107)]
)
def test_the_bias_of_burst_is_the_known_one(num_orders, distance):
    """The distances come from enumerating the scheme on this pair (no sampling)."""
    advance = functools.partial(best_of.advance, num_orders=num_orders)
    known = np.zeros((ROWS, 2), bool)
    texts, _, _ = draw_texts(tables.joint(PAIR), advance, SAMPLES // ROWS, known)
    share = counts(texts, 2) / SAMPLES
    assert abs(share - PAIR.ravel()).sum() / 2 == pytest.approx(distance, abs=0.004)


def test_unmasking_one_token_at_a_time_has_the_right_law_and_two_do_not():
    known = np.zeros((ROWS, 4), bool)
    expected = np.asarray(MODELS["joint 3^4"][1], np.float64)
    expected /= expected.sum()
    texts, calls, _ = draw_texts(
        MODELS["joint 3^4"], one_by_one.lowest_entropy_first, SAMPLES // ROWS, known
    )
    assert agreement(texts.reshape(-1, 4), 3, expected)[0] <= 1.2
    assert (calls == 4).all()
    two = lambda *a: unmasking.advance(*a, rank="probability", most=2, bound=jnp.inf)
    texts, calls, _ = draw_texts(MODELS["joint 3^4"], two, SAMPLES // ROWS, known)
    assert agreement(texts.reshape(-1, 4), 3, expected)[0] > 3
    assert (calls == 2).all()


def test_an_entropy_bound_settles_what_is_sure_together():
    sure = np.zeros((4, 4, 4))
    sure[1, 2] = [0.25, 0.25, 0.25, 0.25]
    bounded = lambda *a: unmasking.advance(*a, rank="entropy", most=3, bound=0.1)
    known = np.zeros((1, 3), bool)
    texts, calls, evaluations = draw_texts(tables.joint(sure), bounded, 8, known)
    # Two sure tokens cost nothing, and the first unsure one may always come along.
    assert (texts[:, 0, :2] == [1, 2]).all()
    assert (calls == 1).all()
    assert (evaluations == 3).all()


def test_independent_tokens_take_one_round():
    p = np.einsum("a,b,c,d->abcd", *np.random.default_rng(0).dirichlet([1] * 5, 4))
    _, calls, evaluations = draw_texts(
        tables.joint(p), exact_burst, 1000, np.zeros((1, 4), bool)
    )
    assert (calls == 2).all()
    assert (evaluations == 7).all()


def test_dependent_tokens_never_take_more_calls_than_tokens():
    n = 6
    p = np.zeros((2,) * n)
    p[(0,) * n] = p[(1,) * n] = 0.5
    texts, calls, _ = draw_texts(
        tables.joint(p), exact_burst, 500, np.zeros((3, n), bool)
    )
    assert (texts == texts[..., :1]).all()
    assert calls.max() <= n


@pytest.mark.parametrize(("n", "most"), [(32, 4), (128, 6), (512, 8)])
@pytest.mark.unoptimised
def test_rounds_grow_slower_than_the_text(n, most):
    known = np.zeros((1, n), bool)
    _, calls, evaluations = draw_texts(
        tables.markov(n, 2, 0.9),
        functools.partial(exact_burst, max_draft_length=n),
        16,
        known,
        read=decode_order(known, "far-apart"),
    )
    assert calls.mean() / 2 <= most
    assert evaluations.mean() / n <= 2.5


def tiny_sigma(T=4, V=3, **changes):
    """A random σ-GPT whose orders disagree, and its parameters."""
    fields = {
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": T,
        "model.vocab_size": V,
        "sigma.begin_token": True,
    }
    system = build_system(configs.override(configs.base(), fields | changes))
    params = system.init(jax.random.key(4))
    return system, jax.tree.map(lambda a: a * 10 if a.ndim > 1 else a, params)


def test_a_networks_exact_burst_has_the_law_of_its_one_by_one_sampler():
    system, params = tiny_sigma()
    order = np.array([2, 0, 3, 1])
    texts = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
    batch = {"tokens": jnp.asarray(texts), "order": jnp.tile(order, (81, 1))}
    nll = jax.jit(system.nll)(params, batch)
    expected = np.exp(-np.asarray(nll, np.float64).sum(1))
    known = np.zeros((SAMPLES // 4, 4), bool)
    sampling = SamplingParams("exact-burst", order="2,0,3,1")
    blank = np.zeros(known.shape, np.int32)
    filled = system.sample(params, blank, known, jax.random.key(0), sampling)
    ratio, p = agreement(filled.tokens_BT, 3, expected / expected.sum())
    assert ratio <= 1.2
    assert p > 0.01
    assert filled.num_forward_passes_B.mean() < 4
    total = filled.log_p_BT.sum(1)
    codes = filled.tokens_BT @ 3 ** np.arange(4)[::-1]
    np.testing.assert_allclose(total, np.log(expected)[codes], atol=1e-4)


@pytest.mark.unoptimised
def test_every_draft_is_the_conditional_of_a_plain_pass():
    system, params = tiny_sigma(T=9, V=5, **{"sigma.begin_token": False})
    decoder = ModelDecoder(system.graphdef)
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, 5)
    own = jnp.asarray(orders.random(jax.random.key(2), 3, 9))
    filled = jnp.array([1, 4, 6])
    state = prefill(decoder, params, tokens, own, jnp.roll(own, -1, 1), filled)
    task = SamplingParams().decode_params(9, Draws.of(jax.random.key(0), 3))
    draft = jax.jit(lambda *arguments: window.draft(decoder, *arguments).logits_BWV)
    drafted = draft(params, state, task, jnp.zeros((3, 8)))
    plain = jax.jit(lambda params, *args: system.model(params)(*args)[0])
    for row, n in enumerate([1, 4, 6]):
        for slot in range(n, 9):
            target = [*own[row, 1:n].tolist(), int(own[row, slot])]
            where = (own[row : row + 1, :n], jnp.array([target]))
            there = plain(params, tokens[row : row + 1, :n], where)[0, -1]
            np.testing.assert_allclose(drafted[row, slot - n], there, atol=1e-4)


@pytest.mark.parametrize("order", [*orders.GENERATION, "low-entropy-first"])
@pytest.mark.unoptimised
def test_greedy_bursts_write_what_greedy_one_by_one_writes(order):
    system, params = tiny_sigma(T=13, V=7)
    known = np.arange(13) % 5 == np.array([[0], [3]])
    tokens = np.arange(26, dtype=np.int32).reshape(2, 13) % 7
    one = SamplingParams("ar", order=order, temperature=0.0)
    filled = system.sample(params, tokens, known, jax.random.key(0), one)
    np.testing.assert_array_equal(filled.tokens_BT[known], tokens[known])
    if order != "low-entropy-first":
        many = SamplingParams("exact-burst", order=order, temperature=0.0)
        same = system.sample(params, tokens, known, jax.random.key(0), many)
        np.testing.assert_array_equal(filled.tokens_BT, same.tokens_BT)
        assert (same.num_forward_passes_B <= filled.num_forward_passes_B).all()


@pytest.mark.parametrize("sampler", ["ar", "exact-burst", "burst"])
@pytest.mark.unoptimised
def test_any_mask_is_filled_without_compiling_anew(sampler):
    system, params = tiny_sigma(T=11, V=7)
    compiled = {
        "ar": autoregress,
        "exact-burst": speculative.advance,
        "burst": best_of.advance,
    }[sampler]
    sampling = SamplingParams(sampler)

    def fill(known):
        tokens = np.arange(known.size, dtype=np.int32).reshape(known.shape) % 7
        filled = system.sample(params, tokens, known, jax.random.key(1), sampling)
        np.testing.assert_array_equal(filled.tokens_BT[known], tokens[known])
        assert filled.decoded_BT.all()
        missing = (~known).sum(1)
        assert (filled.num_forward_passes_B >= (missing > 0)).all()
        if sampler != "burst":
            assert (filled.num_forward_passes_B <= missing).all()
        assert ((filled.decode_step_BT > 0) == ~known).all()
        # Given tokens are read first, and a token after those of earlier passes.
        by_rank = np.take_along_axis(
            filled.decode_step_BT, filled.rank_BT.argsort(1), 1
        )
        assert (np.diff(by_rank, axis=1) >= 0).all()
        assert (np.sort(filled.rank_BT, 1) == np.arange(known.shape[-1])).all()

    fill(np.zeros((3, 11), bool))
    before = compiled._cache_size(), prefill._cache_size()
    rng = np.random.default_rng(0)
    for length in (11, 7, 2, 1):
        fill(rng.random((3, length)) < 0.5)
    fill(np.ones((3, 11), bool))
    ragged = np.zeros((3, 11), bool)
    ragged[1, 4:9], ragged[2] = True, True
    fill(ragged)
    assert (compiled._cache_size(), prefill._cache_size()) == before


@pytest.mark.parametrize("sampler", ["ar", "exact-burst", "burst"])
@pytest.mark.unoptimised
def test_a_row_does_not_depend_on_those_beside_it(sampler):
    system, params = tiny_sigma(T=11, V=7)
    known = np.arange(11) < np.array([[3], [1], [6]])
    tokens = np.zeros((3, 11), np.int32)
    sampling = SamplingParams(
        sampler, order="" if sampler == "burst" else "left-to-right"
    )
    fill = lambda rows: system.sample(
        params, tokens[:rows], known[:rows], jax.random.key(1), sampling
    )
    together, alone = fill(3), fill(1)
    np.testing.assert_array_equal(together.tokens_BT[:1], alone.tokens_BT)
    np.testing.assert_array_equal(
        together.num_forward_passes_B[:1], alone.num_forward_passes_B
    )
