"""Against live PyTorch models in float64: agreement here is meaning, not luck."""

import jax
import numpy as np
import pytest

from parity_tests import pairs
from parity_tests.conftest import ORIGINALS, relative, without_key_bias, worst
from parity_tests.tolerances import FLOAT64

pytestmark = pytest.mark.unoptimised


@pytest.fixture(params=[*ORIGINALS, "teenygpt"])
def pair(request):
    with jax.enable_x64(True):
        yield pairs.make(request.param, "float64")


def test_logits_loss_and_gradient(pair):
    tokens, orders = pairs.random_batches(pair, 1)
    logits = pair.logits_of(tokens[0], orders[0]).detach().numpy()
    loss = pair.loss_of(tokens[0], orders[0])
    loss.backward()
    params, batch = pair.params(), pair.batch(tokens[0], orders[0])
    value, grads = jax.jit(jax.value_and_grad(pair.loss))(params, batch)
    assert value.dtype == np.float64
    assert relative(value, loss.item()) < FLOAT64["loss"]
    score = jax.jit(pair.system.score)
    ours = score(params, tokens[0][:, : pairs.T], orders[0])[0]
    assert relative(ours, logits) < FLOAT64["logits"]
    theirs = pair.to_ours({n: p.grad for n, p in pair.module.named_parameters()})
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        assert np.abs(np.asarray(a) - b).max() < FLOAT64["gradient"] * largest


def test_50_adamw_steps_with_schedule_clipping_and_decay_groups(pair):
    steps = pairs.ours_and_theirs(pair, *pairs.random_batches(pair, 50))
    for index, (ours, theirs, params) in enumerate(steps):
        assert relative(ours, theirs) < FLOAT64["loss of a trajectory"], index
        if index in (0, 4):
            found, there = without_key_bias(params, pair.params())
            assert worst(found, there) < FLOAT64["parameters after a step"]
