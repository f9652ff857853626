"""Gaps of unknown length: in training, in templates, in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import sample
from jaxgpt.commands.evaluate import evaluate_infilling
from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.errors import UserError
from jaxgpt.run import open_run
from jaxgpt.sampling.output import read_output
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.reader import Reader
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import open_gaps, orders
from tests.conftest import TINY, last_json, refusal
from tests.systems.sigma.test_samplers import tiny_sigma
from tests.test_run import begun

pytestmark = pytest.mark.unoptimised

B, T, MOST, END = 2000, 40, 5, 99
GAPS = {"sigma.max_gap": 5, "sigma.infill_share": 0.5}


@pytest.fixture(scope="module")
def batch():
    """A training batch of texts 0, 1, 2, ..., all of them with gaps."""
    tokens = jnp.broadcast_to(jnp.arange(T), (B, T))
    straight = orders.left_to_right(B, T)
    found = open_gaps.training_batch(
        jax.random.key(0), tokens, straight, 1.0, MOST, END
    )
    return {name: np.asarray(array) for name, array in found.items()}


def test_the_text_goes_on_behind_a_gap_of_unknown_length(batch):
    for row in batch["tokens"]:
        text = row[row != END]
        np.testing.assert_array_equal(text, np.arange(len(text)))


def test_of_its_end_tokens_the_last_one_is_given_and_counts_nothing(batch):
    lengths = []
    for tokens, order, weight in zip(*batch.values(), strict=True):
        assert sorted(order) == list(range(T))
        # What is read first is given: up to where the order turns back.
        turns = np.flatnonzero(np.diff(order) < 0)
        given = np.zeros(T, bool)
        given[order[: turns[0] + 1] if len(turns) else order] = True
        scored = np.zeros(T, bool)
        scored[order] = weight > 0
        ends = np.flatnonzero(tokens == END)
        runs = (
            np.split(ends, np.flatnonzero(np.diff(ends) > 1) + 1) if len(ends) else []
        )
        for run in runs:
            lengths.append(len(run))
            assert not given[run[:-1]].any()
            assert not given[run[0] - 1] and given[run[-1]]
            assert not scored[run[-1]] and scored[run[:-1]].all()
        assert scored[tokens != END].all()
    counts = np.bincount(lengths, minlength=MOST + 1)
    assert counts[0] == 0 and len(counts) == MOST + 1
    # Uniform but for those that no longer fit.
    assert counts[1:].min() > 0.7 * counts[1:].max()


def test_other_rows_are_what_they_were():
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, 9)
    straight = orders.left_to_right(B, T)
    found = open_gaps.training_batch(
        jax.random.key(0), tokens, straight, 0.25, MOST, END
    )
    same = (found["tokens"] == tokens).all(1) & (found["order"] == straight).all(1)
    assert 0.7 < float(same.mean()) < 0.85
    np.testing.assert_array_equal(found["weight"][same], 1)


def test_what_is_held_out_fits_and_fills_the_gap():
    tokens = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    texts = open_gaps.held_out(tokens, MOST, END, 0)
    assert set(texts["length"]) == set(range(1, MOST + 1))
    np.testing.assert_array_equal(texts["gap"].sum(1), MOST)
    for row, gap, span, read, n in zip(
        *(texts[k] for k in ("tokens", "gap", "span", "read", "length")), strict=True
    ):
        np.testing.assert_array_equal(row[row != END], tokens[0][read])
        np.testing.assert_array_equal(row[gap][:n], tokens[0][span])
        assert (row[gap][n:] == END).all()
        assert row[np.flatnonzero(gap)[-1] + 1] == END
        assert not gap[0]


@pytest.fixture(scope="module")
def sigma():
    return tiny_sigma(T=12, V=4, **GAPS)


def test_a_template_has_gaps_of_unknown_length(sigma):
    system, params = sigma
    assert system.end_of_gap == 3
    reader = Reader(system, CharTokenizer("abc"), "none")
    given = reader.template("ab<missing:1-4>c<missing:2>")
    assert given.tokens.tolist() == [0, 1, 0, 0, 0, 0, 3, 2, 0, 0]
    assert np.flatnonzero(~given.known).tolist() == [2, 3, 4, 5, 8, 9]
    for sampling in (SamplingParams(), SamplingParams("ar", order="random")):
        message = refusal(system.check_given, given.tokens, given.known, sampling)
        assert "add --order=left-to-right" in message
    straight = SamplingParams(order="left-to-right")
    output = system.sample(
        params,
        np.tile(given.tokens, (20, 1)),
        np.tile(given.known, (20, 1)),
        jax.random.key(0),
        straight,
    )
    found = read_output(output, given.known, CharTokenizer("abc"), "", 3)
    assert all(s.text.startswith("ab") and "c" in s.text[2:] for s in found)
    assert all(len(s.tokens) == len(s.text) for s in found)
    assert len({len(s.text) for s in found}) > 1


@pytest.mark.parametrize(
    ("gap", "reason"),
    [
        ("1-6", "<missing:1-6> must be between 1-1 and 1-5"),
        ("1-0", "must be between"),
        (
            "2-4",
            "write one of 12 tokens as <missing:12>, one of 1 to 12 as <missing:1-1",
        ),
        ("1-", "which is not a gap"),
    ],
)
def test_a_gap_that_it_is_not_trained_for_is_refused(sigma, gap, reason):
    reader = Reader(sigma[0], CharTokenizer("abc"), "none")
    assert reason in refusal(reader.template, f"ab<missing:{gap}>")


def test_a_run_without_them_refuses_the_template(trained):
    options = [f"--workdir={trained}", "--template=a<missing:1-4>b"]
    message = refusal(sample.command, options)
    assert "<missing:1-4> is of unknown length, which this run is not" in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sigma.max_gap": 5}, "sigma.max_gap must be 0 without infill_share"),
        (GAPS | {"model.block_size": 10}, "less than half of model.block_size"),
    ],
)
def test_wrong_options_are_named(changes, reason):
    config = configs.override(configs.base(), changes)
    assert reason in refusal(configs.validate, config)


def test_its_score_is_the_likelihood_of_text_and_length(sigma):
    """Of a model that gives each token a constant probability, in closed form."""
    system, params = sigma
    params = jax.tree.map(jnp.zeros_like, params)
    tokens = np.random.default_rng(0).integers(0, 3, (50, 12)).astype(np.int32)
    found = open_gaps.score(system, params, tokens, 0)
    length = open_gaps.held_out(tokens, 5, 3, 0)["length"]
    assert found["nll"] == pytest.approx(5 * np.log(4) / length.mean(), rel=1e-5)
    assert found["nll_known_length"] == pytest.approx(np.log(4), rel=1e-5)
    # A quarter of the draws end a gap, at every token.
    stops = [*(0.25 * 0.75**n for n in range(5)), 0.75**5]
    expected = np.mean([stops[n] for n in length])
    assert found["length_match"] == pytest.approx(expected, abs=0.06)
    # Half of the gaps hold no more than two tokens.
    assert 0.5 < found["length_error"] <= abs(2 - length).mean() + 0.5


def test_training_draws_them(sigma):
    system, params = sigma
    tokens = jax.random.randint(jax.random.key(0), (64, 12), 0, 3)
    batch = system.train_batch(tokens, jax.random.key(1), 0)
    assert (batch["tokens"] == system.end_of_gap).any()
    every = jax.jit(system.token_nll)(params, batch)
    counted = np.asarray(jax.jit(system.nll)(params, batch))
    left_out = np.asarray(batch["weight"]) == 0
    assert left_out.any()
    np.testing.assert_array_equal(counted, np.where(left_out, 0, every))


def test_a_run_is_sampled_and_evaluated(tmp_path, capsys):
    changes = {name.replace(".", "__"): str(value) for name, value in GAPS.items()}
    changes |= {"eval_sequences": "2"}
    run = f"--workdir={begun(tmp_path / 'run', TINY, **changes)}"
    system = build_system(configs.load_frozen(tmp_path / "run"))
    assert (system.model_config.vocab_size, system.end_of_gap) == (66, 65)
    template = "--template=To <missing:1-5>be"
    straight = ["--order=left-to-right", "--sampler=ar"]
    sample.command([run, template, *straight, "--json=-"])
    (found,) = last_json(capsys)["samples"]
    assert found["text"].startswith("To ") and found["text"].endswith("be")
    assert len(found["tokens"]) == len(found["text"]) <= 10
    with pytest.raises(UserError, match="filled left to right"):
        sample.command([run, template])
    figures = evaluate_infilling(open_run(str(tmp_path / "run")), "val", [])
    assert [*figures["unknown_length"]] == [
        *("nll", "nll_known_length", "length_match", "length_error", "match_span")
    ]
