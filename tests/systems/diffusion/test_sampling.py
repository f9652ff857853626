"""The law of what is sampled, by enumeration; rows, gaps, and what is refused."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxgpt import config as configs
from jaxgpt.sampling.state import DEFAULT_PARAMS, Draws, SamplingParams
from tests.conftest import refusal
from tests.systems.diffusion.tiny import (
    log_p_in_order,
    orders,
    texts,
    tiny,
    true_log_p,
)

pytestmark = pytest.mark.unoptimised
SAMPLES = 20_000
HOW = {
    "whole": {},
    "whole, temperature 0.7, top-k 2": {
        "sampling": SamplingParams(temperature=0.7, top_k=2)
    },
    "whole, top-p 0.8": {"sampling": SamplingParams(top_p=0.8)},
    "shorter than the block": {"end": 2},
    "blocks": {"T": 4, "V": 2, "length": 2, "positions": "rope"},
    "blocks, learned positions": {"T": 4, "V": 2, "length": 2},
    "blocks, shorter": {"T": 4, "V": 2, "length": 2, "end": 3},
    "one step": {"sampling": SamplingParams(num_steps=1)},
    "one step for each block": {
        "T": 4, "V": 2, "length": 2, "sampling": SamplingParams(num_steps=1)
    },
}  # fmt: skip


def in_one_step(log_p, T, length):
    """log p [N] of texts whose blocks are unmasked in a step each."""
    total = 0
    for start in range(0, T, length):
        masked = tuple(t >= start for t in range(T))
        total = total + log_p[masked][:, start : start + length].sum(1)
    return total


@pytest.mark.parametrize("name", HOW)
def test_samples_have_the_enumerated_law(name):
    how = {"T": 3, "V": 3, "length": 0, "positions": "learned"} | HOW[name]
    sampling = how.get("sampling", DEFAULT_PARAMS)
    T, V, end = how["T"], how["V"], how.get("end", how["T"])
    changes = {"model.positions": how["positions"]}
    system, params = tiny(T, V, how["length"], **changes)
    logits = jax.jit(lambda tokens, masked: system.logits(params, tokens, masked))
    found = np.pad(texts(end, V), ((0, 0), (0, T - end)))
    log_p = true_log_p(logits, found, sampling)
    if sampling.num_steps:
        expected = np.exp(in_one_step(log_p, T, system.block_length))
    else:
        each = [*orders(T, system.block_length, end)]
        expected = np.mean([np.exp(log_p_in_order(log_p, o, T)) for o in each], 0)
    assert expected.sum() == pytest.approx(1, abs=1e-5)

    nothing = np.zeros((SAMPLES, end), bool)
    blank = np.zeros(nothing.shape, np.int32)
    filled = system.sample(params, blank, nothing, jax.random.key(0), sampling)
    assert filled.decoded_BT.all()
    code = filled.tokens_BT @ V ** np.arange(end)[::-1]
    count = np.bincount(code, minlength=V**end)
    assert count[expected < 1e-9].sum() == 0
    possible = expected >= 1e-9
    wanted = expected[possible] * SAMPLES
    assert stats.chisquare(count[possible], wanted, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize("length", [0, 2])
def test_a_row_does_not_depend_on_the_batch(length):
    system, params = tiny(T=6, V=5, length=length)
    tokens = np.random.default_rng(0).integers(0, 5, (4, 6)).astype(np.int32)
    known = np.arange(6) < np.array([[1], [0], [3], [2]])
    lengths = np.array([6, 3, 5, 6])
    draws = Draws.of(jax.random.key(3), 4)
    together = system.sample(params, tokens, known, draws, length_B=lengths)
    for row, end in enumerate(lengths):
        alone = system.sample(
            params,
            tokens[row : row + 1, :end],
            known[row : row + 1, :end],
            Draws(draws.key_B[row : row + 1], draws.number_B[row : row + 1]),
        )
        np.testing.assert_array_equal(together.tokens_BT[row, :end], alone.tokens_BT[0])
        np.testing.assert_array_equal(together.tokens_BT[row, end:], tokens[row, end:])
        np.testing.assert_allclose(
            together.log_p_BT[row, :end], alone.log_p_BT[0], atol=1e-5
        )
        assert together.num_forward_passes_B[row] == alone.num_forward_passes_B[0]
        given = known[row, :end]
        assert (alone.tokens_BT[0][given] == tokens[row, :end][given]).all()
        assert (alone.decode_step_BT[0][given] == 0).all()


def test_gaps_are_filled_and_watched():
    system, params = tiny(T=6, V=5)
    tokens = np.array([[1, 0, 2, 0, 0, 3]], np.int32)
    known = np.array([[True, False, True, False, False, True]])
    seen = []

    def watch(filled):
        seen.append(int(filled.decoded_BT.sum()))
        return True

    filled = system.sample(params, tokens, known, jax.random.key(0), callback=watch)
    assert seen == [4, 5, 6]
    assert (filled.tokens_BT[known] == tokens[known]).all()
    assert filled.num_forward_passes_B == filled.decode_step_BT.max() == 3
    assert filled.tokens_processed_B == 18
    # What is given was read first.
    assert filled.rank_BT[known].tolist() == [0, 1, 2]
    first = filled.decode_step_BT[~known].argsort()
    assert filled.rank_BT[~known][first].tolist() == [3, 4, 5]
    twice = system.sample(params, tokens, known, jax.random.key(0))
    np.testing.assert_array_equal(filled.tokens_BT, twice.tokens_BT)


def test_calls_are_as_many_as_the_sampler_says():
    nothing, blank = np.zeros((3, 8), bool), np.zeros((3, 8), np.int32)
    whole, blocks = tiny(T=8, V=5), tiny(T=8, V=5, length=4)

    def calls(model, **options):
        system, params = model
        sampling = SamplingParams(**options)
        filled = system.sample(params, blank, nothing, jax.random.key(0), sampling)
        return filled.num_forward_passes_B

    assert (calls(whole) == 8).all()
    # A block that is followed by another is read once more, without masks.
    assert (calls(blocks) == 9).all()
    assert (calls(whole, num_steps=3) <= 3).all()
    surest = {"sampler": "top-k-unmasking"}
    assert (calls(whole, **surest, tokens_per_pass=3) == 3).all()
    assert (calls(blocks, **surest) == 3).all()
    bounded = {"sampler": "entropy-bounded-unmasking"}
    assert (calls(whole, **bounded, entropy_bound=1e-6) == 8).all()
    assert (calls(whole, **bounded, entropy_bound=1e6) == 1).all()


def test_the_surest_token_comes_first():
    system, params = tiny(T=4, V=5)
    nothing, blank = np.zeros((1, 4), bool), np.zeros((1, 4), np.int32)
    sampling = SamplingParams("top-k-unmasking", tokens_per_pass=1)
    filled = system.sample(params, blank, nothing, jax.random.key(0), sampling)
    p = jax.nn.softmax(system.logits(params, blank, ~nothing), -1)
    assert filled.decode_step_BT[0, int(p[0].max(-1).argmax())] == 1


REFUSED = {
    "one of ancestral, top-k-unmasking, entropy-bounded-unmasking": {"sampler": "ar"},
    "--order=random is for σ-GPT": {"order": "random"},
    "--num_orders is for σ-GPT": {"num_orders": 2},
    "--block_length is for σ-GPT": {"block_length": 2},
    "--num_steps needs --sampler=ancestral": {
        "num_steps": 2, "sampler": "top-k-unmasking"
    },
    "--tokens_per_pass needs --sampler=top-k-unmasking or": {"tokens_per_pass": 2},
    "--entropy_bound needs --sampler=entropy-bounded-unmasking": {
        "entropy_bound": 0.1, "sampler": "top-k-unmasking"
    },
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_do_not_fit_are_refused(message):
    system, params = tiny()
    nothing, blank = np.zeros((1, 3), bool), np.zeros((1, 3), np.int32)
    sampling = SamplingParams.of(REFUSED[message])
    key = jax.random.key(0)
    assert message in refusal(system.sample, params, blank, nothing, key, sampling)


def test_nothing_is_given_after_the_block_of_a_gap():
    system, params = tiny(T=6, V=5, length=2)
    known = np.array([[True, True, True, False, False, True]])
    blank = np.zeros((1, 6), np.int32)
    message = refusal(system.sample, params, blank, known, jax.random.key(0))
    assert "writes blocks of 2 tokens left to right" in message
    known[0, 5] = False
    filled = system.sample(params, blank, known, jax.random.key(0))
    assert filled.decoded_BT.all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion.block_length": 4}, "0, or a divisor of model.block_size 6"),
        ({"model.positions": "alibi"}, "one of learned, sinusoidal, rope with system"),
        ({"model.mixer": "lstm"}, "model.mixer must be attention with system"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit_are_refused(changes, message):
    fields = {"system": "masked-diffusion", "model.block_size": 6}
    config = configs.override(configs.base(), fields | changes)
    assert message in refusal(configs.validate, config)


def test_there_is_no_likelihood_of_a_token():
    assert "has a bound of the likelihood" in refusal(tiny()[0].check_scores)


def test_what_is_not_exact_says_so():
    system, _ = tiny()
    assert system.inexact(DEFAULT_PARAMS) == ""
    assert "--num_steps=8" in system.inexact(SamplingParams(num_steps=8))
    surest = SamplingParams("top-k-unmasking", tokens_per_pass=1)
    assert "--sampler=top-k-unmasking" in system.inexact(surest)
