import numpy as np
import pytest

from jaxgpt import gssm
from jaxgpt.errors import UserError
from jaxgpt.systems.gssm import kernels, likelihood
from jaxgpt.systems.gssm.process import Stream
from tests.conftest import refusal
from tests.systems.gssm.conftest import MIXED, PRODUCT, make

pytestmark = pytest.mark.unoptimised

FEEDBACK = [MIXED[0], {**MIXED[3], "parents": ["Z1", "X"], "mode": "context"}]
LATENT = [
    {"name": "Z", "state_dim": 3, "alpha": 0.4, "mode": "context"},
    {"name": "X", "state_dim": 5, "alpha": 0.3, "parents": ["Z"]},
]
OF_PRODUCTS = [*PRODUCT[:2], PRODUCT[2] | {"mode": "context"}]
GRAPHS = {"feedback": FEEDBACK, "latent": LATENT, "product": OF_PRODUCTS}


@pytest.fixture(scope="module", params=GRAPHS)
def by_sequence(request):
    return make(GRAPHS[request.param], context="sequence")


def test_kernels_of_a_batch_are_those_of_before():
    """Drawn before there were kernels by sequence."""
    process = make(FEEDBACK)
    tokens = process.held_out(Stream(0, "val", 4), 6, 12)
    expected = ["044422211120", "043234424234", "044430424230"]
    expected += ["030434423434", "001211021041", "012101014410"]
    assert ["".join(map(str, row)) for row in tokens] == expected
    nll = process.score_held_out(tokens, Stream(0, "val", 4), "float64").sum(1)
    np.testing.assert_allclose(nll[[0, 5]], [14.2471374477, 11.2220282849], rtol=1e-6)


def test_a_sequence_is_scored_with_its_kernels_alone(by_sequence):
    stream = Stream(0, "val", 4)
    tokens = by_sequence.held_out(stream, 7, 12)
    for wanted in ("nll", "predictive", "beliefs"):
        found = by_sequence.score_held_out(tokens, stream, "float64", wanted)
        for n in range(7):
            place = tuple(map(np.uint32, (0, 1, n // 4)))
            own = {
                name: np.asarray(table[n % 4])
                for name, table in by_sequence._context(place, 4).items()
            }
            alone = likelihood.forward(
                by_sequence.graph,
                by_sequence.tables | own,
                tokens[n : n + 1],
                dtype="float64",
                wanted=wanted,
            )
            if wanted == "beliefs":
                for name, belief in alone.items():
                    np.testing.assert_allclose(found[name][n], belief[0], atol=1e-12)
            else:
                np.testing.assert_allclose(found[n], alone[0], rtol=1e-9, atol=1e-12)


def test_scores_by_sequence_do_not_depend_on_how_many_go_at_a_time(
    by_sequence, monkeypatch
):
    tokens = by_sequence.held_out(Stream(0, "val", 4), 7, 12)
    whole = by_sequence.score_held_out(tokens, Stream(0, "val", 4), "float64")
    monkeypatch.setattr(likelihood, "LARGEST_BELIEF", 500)
    parts = by_sequence.score_held_out(tokens, Stream(0, "val", 4), "float64")
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_every_sequence_has_kernels_of_its_own(by_sequence):
    tokens = by_sequence.held_out(Stream(0, "val", 8), 16, 300)
    own = by_sequence.score_held_out(tokens, Stream(0, "val", 8), "float32")
    # The rows of a batch, each with the kernels of the next one.
    turned = np.roll(tokens.reshape(2, 8, -1), 1, axis=1).reshape(16, -1)
    others = by_sequence.score_held_out(turned, Stream(0, "val", 8), "float32")
    owners = np.roll(own.reshape(2, 8, -1), 1, axis=1).reshape(16, -1)
    assert (others.mean(1) > owners.mean(1)).mean() > 0.9
    few = by_sequence.held_out(Stream(0, "val", 8), 5, 300)
    np.testing.assert_array_equal(few, tokens[:5])
    again = np.asarray(by_sequence.sample(Stream(0, "val", 8), 1, 300))
    np.testing.assert_array_equal(again, tokens[8:])
    other = np.asarray(by_sequence.sample(Stream(0, "test", 8), 1, 300))
    assert (other != again).mean() > 0.1


def test_tokens_follow_the_kernels_of_their_sequence():
    chain = [{"name": "X", "state_dim": 3, "alpha": 1, "mode": "context",
              "parents": ["X"]}]  # fmt: skip
    process = make(chain, context="sequence")
    tokens = np.asarray(process.sample(Stream(0, "train", 4), 2, 20_000))
    tables = process._context(tuple(map(np.uint32, (0, 0, 2))), 4)["X"]
    for row, table in zip(tokens, np.asarray(tables), strict=True):
        counts = np.zeros((3, 3))
        np.add.at(counts, (row[:-1], row[1:]), 1)
        seen = counts.sum(1) > 2000
        shares = counts / counts.sum(1, keepdims=True)
        np.testing.assert_allclose(shares[seen], table[seen], atol=0.04)


def test_kernels_that_do_not_fit_are_refused_with_their_number(monkeypatch):
    process = make(FEEDBACK, context="sequence")  # Tables of 3 x 5 x 5.
    monkeypatch.setattr(kernels, "LARGEST_INDEX", 1000)
    process.sample(Stream(0, "val", 6), 0, 12)
    message = "the kernels of 7 sequences have 525 entries in all, and this machine"
    with pytest.raises(UserError, match=f"{message} takes 500: lower batch_size"):
        process.sample(Stream(0, "val", 7), 0, 12)


def test_kernels_by_sequence_from_python():
    graph = gssm.Graph(LATENT, context="sequence")
    process = make(LATENT, context="sequence")
    tokens = gssm.sample(graph, 5, 12, batch_size=4)
    expected = process.held_out(Stream(0, "train", 4), 5, 12)
    np.testing.assert_array_equal(tokens, expected)
    assert (gssm.sample(gssm.Graph(LATENT), 5, 12, batch_size=4) != tokens).any()
    expected = "gssm.context must be one of batch, sequence, got 'token'"
    assert expected in refusal(gssm.Graph, LATENT, context="token")
    # A graph without context nodes is the same with either.
    np.testing.assert_array_equal(
        gssm.sample(gssm.Graph(MIXED, context="sequence"), 5, 12),
        gssm.sample(gssm.Graph(MIXED), 5, 12),
    )
