"""Texts longer than the block: which windows there are, and what they fill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.errors import UserError
from jaxgpt.sampling.state import Draws, SamplingParams
from jaxgpt.systems.reader import Reader
from jaxgpt.systems.sigma import windows
from tests.conftest import refusal
from tests.systems.sigma.test_samplers import tiny_sigma

pytestmark = pytest.mark.unoptimised

BLOCK = 8


def mask(text):
    """True for every letter, false for every dot."""
    return np.array([letter != "." for letter in text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As much on both sides as fits; at the ends, all on one side.
        ("abcdefgh..ijklmnop", [(5, 8, 10)]),
        ("a..bcdefghijklmnop", [(0, 1, 3)]),
        ("abcdefghijklmnop..", [(10, 16, 18)]),
        # What other gaps take up is no context.
        ("abcdef.g.hijklmnop", [(3, 6, 7), (4, 8, 9)]),
        # A continuation: half a block at a time.
        ("ab..........", [(0, 2, 6), (2, 6, 10), (4, 10, 12)]),
        # Nothing before it: from the text backwards.
        ("..........ab", [(4, 6, 10), (2, 2, 6), (0, 0, 2)]),
        # Both sides: the last piece sees what is behind the gap.
        ("abcdef......ghijkl", [(2, 6, 10), (7, 10, 12)]),
        # Nothing is known, as a model with a beginning token allows.
        ("..........", [(0, 0, 4), (0, 4, 8), (2, 8, 10)]),
        # It fits the block: one piece.
        ("a..b.c", [(0, 0, 6)]),
    ],
)
def test_a_window_has_as_much_context_as_fits(text, expected):
    assert [tuple(piece) for piece in windows.plan(mask(text), BLOCK)] == expected


def test_every_gap_is_filled_once_with_something_known_in_view():
    rng = np.random.default_rng(0)
    for _ in range(200):
        T = int(rng.integers(BLOCK + 1, 60))
        known = rng.random(T) < rng.random()
        known[rng.integers(T)] = True
        filled = known.astype(int)
        for start, first, end in windows.plan(known, BLOCK):
            assert 0 <= start <= first < end <= start + BLOCK <= T
            assert end - first <= BLOCK // 2
            assert filled[start : start + BLOCK].any()
            assert not filled[first:end].any()
            filled[first:end] += 1
        np.testing.assert_array_equal(filled, 1)


@pytest.fixture(scope="module")
def sigma():
    return tiny_sigma(T=BLOCK, V=7, **{"sigma.begin_token": False})


TEXT = np.random.default_rng(1).integers(0, 7, 30).astype(np.int32)


def fill(sigma, texts, sampling=None, draws=None, **options):
    """What is filled of these texts of dots and letters."""
    system, params = sigma
    known = np.zeros((len(texts), max(map(len, texts))), bool)
    for row, text in zip(known, texts, strict=True):
        row[: len(text)] = mask(text)
    tokens = np.where(known, TEXT[: known.shape[1]], 0).astype(np.int32)
    draws = jax.random.key(3) if draws is None else draws
    lengths = np.array([len(text) for text in texts])
    sampling = sampling or SamplingParams("exact-burst", order="left-to-right")
    return system.sample(
        params, tokens, known, draws, sampling, length_B=lengths, **options
    )


@pytest.mark.parametrize("order", ["left-to-right", "random"])
def test_each_window_has_the_models_distribution(sigma, order):
    """The log-probabilities are the model's, of each window's gap given the rest."""
    system, params = sigma
    text = "abcdef...ghi.jklm.........."
    found = fill(sigma, [text], SamplingParams("ar", order=order))
    tokens, log_p, rank = found.tokens_BT[0], found.log_p_BT[0], found.rank_BT[0]
    known = mask(text)
    assert found.decoded_BT.all()
    np.testing.assert_array_equal(tokens[known], TEXT[: len(text)][known])
    np.testing.assert_array_equal(np.sort(rank), np.arange(len(text)))
    pieces = windows.plan(known, BLOCK)
    assert len(pieces) == 5
    score = jax.jit(system.score)
    for start, first, end in pieces:
        here = np.arange(start, start + BLOCK)
        new = (here >= first) & (here < end) & ~known[here]
        seen = np.flatnonzero(known[here])
        asked = np.flatnonzero(new)[np.argsort(rank[here][new])]
        rest = np.setdiff1d(np.arange(BLOCK), [*seen, *asked])
        read = np.concatenate([seen, asked, rest]).astype(np.int32)
        _, nll = score(params, tokens[None, here], read[None])
        got = np.asarray(nll)[0, len(seen) - 1 : len(seen) - 1 + len(asked)]
        np.testing.assert_allclose(-log_p[here][asked], got, atol=1e-4)
        known[first:end] = True
    assert not log_p[mask(text)].any()


def test_rows_do_not_depend_on_each_other(sigma):
    texts = ["ab..................", "abcd..e.fghi....j", "a...b.", "abcdefgh"]
    keys = jnp.stack([jax.random.key(seed) for seed in (3, 3, 4, 5)])
    draws = Draws(keys, np.array([0, 1, 0, 0], np.int32))
    together = fill(sigma, texts, SamplingParams(), draws)
    for b, text in enumerate(texts):
        alone = Draws(keys[b : b + 1], draws.number_B[b : b + 1])
        alone = fill(sigma, [text], SamplingParams(), alone)
        for name in ("tokens_BT", "decode_step_BT", "rank_BT"):
            got = getattr(together, name)[b, : len(text)]
            np.testing.assert_array_equal(got, getattr(alone, name)[0])
        assert not together.decoded_BT[b, len(text) :].any()
        passes = together.num_forward_passes_B[b], alone.num_forward_passes_B[0]
        assert passes[0] == passes[1]


def test_a_callback_is_shown_whole_texts_and_can_stop(sigma):
    shown = []

    def stop_after_five(output):
        shown.append(output)
        return output.decoded_BT.sum() < 7

    found = fill(sigma, ["ab" + "." * 20], callback=stop_after_five)
    counts = [int(output.decoded_BT.sum()) for output in shown]
    assert counts == sorted(counts) and 7 <= counts[-1] < 22
    assert all(output.tokens_BT.shape == (1, 22) for output in shown)
    np.testing.assert_array_equal(found.decoded_BT, shown[-1].decoded_BT)


def test_a_list_of_positions_is_for_one_block(sigma):
    sampling = SamplingParams("ar", order="8,9,10")
    assert "a text of 11 tokens" in refusal(fill, sigma, ["abcdefgh..."], sampling)


def test_prompts_and_templates_may_be_longer_than_the_block(sigma):
    reader = Reader(sigma[0], CharTokenizer("abcdefg"), "none")
    given = reader.template("abcabc<missing:3>abcabc")
    assert given.tokens.shape == (15,) and given.known.sum() == 12
    assert reader.template([1, -1] * 10).tokens.shape == (20,)
    given = reader.prompt("abcabcabcabc", 5)
    assert given.known.sum() == 12 and len(given.known) == 17
    with pytest.raises(UserError, match="--max_new_tokens=N"):
        reader.prompt("abcabcabcabc")
    assert "65536" in refusal(reader.template, "a<missing:65536>")
