"""Rows of a batch: each has its own length and seed, and depends on no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt.sampling.state import Draws, SamplingParams
from jaxgpt.systems.registry import build_system

T = 12
LENGTHS = [12, 7, 9, 5]
NUMBERS = [0, 3, 1, 0]
SEEDS = [5, 5, 6, 7]


@pytest.mark.parametrize(
    "sampling",
    [
        {"system": "causal"},
        {"sampler": "ar"},
        {"sampler": "ar", "order": "low-entropy-first"},
        {"sampler": "exact-burst"},
        {"sampler": "exact-burst", "order": "far-apart"},
        {"sampler": "burst", "num_orders": 2},
        {"sampler": "top-k-unmasking", "tokens_per_pass": 2},
        {"sampler": "entropy-bounded-unmasking", "entropy_bound": 2.0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_row_is_the_same_in_any_batch(sampling):
    kind = sampling.pop("system", "sigma")
    changes = {"system": kind, "model.block_size": T, "model.vocab_size": 7}
    changes |= {"model.n_layer": 1, "model.n_embd": 12, "model.n_head": 2}
    system = build_system(configs.override(configs.base(), changes))
    params = system.init(jax.random.key(0))
    params = jax.tree.map(lambda a: 8 * a, params)  # Not nearly uniform.
    sampling = SamplingParams(**sampling)
    tokens = np.random.default_rng(0).integers(0, 7, (4, T)).astype(np.int32)
    known = np.arange(T) < np.array([[1], [2], [3], [4]])
    keys = [jax.random.key(seed) for seed in SEEDS]
    draws = Draws(jnp.stack(keys), np.array(NUMBERS))
    together = system.sample(
        params, tokens, known, draws, sampling, length_B=np.array(LENGTHS)
    )
    for b, (length, number) in enumerate(zip(LENGTHS, NUMBERS, strict=True)):
        # As the last of so many rows of its seed: how a user would ask for it.
        row = lambda array, b=b, n=number, t=length: np.tile(array[b, :t], (n + 1, 1))
        alone = system.sample(params, row(tokens), row(known), keys[b], sampling)
        for name in ("tokens_BT", "decoded_BT", "decode_step_BT", "rank_BT"):
            got = getattr(together, name)[b, :length]
            np.testing.assert_array_equal(got, getattr(alone, name)[-1])
        for name in ("num_forward_passes_B", "tokens_processed_B"):
            assert getattr(together, name)[b] == getattr(alone, name)[-1]
        assert not together.decoded_BT[b, length:].any()


def test_an_entropy_bound_of_nothing_is_lowest_entropy_first():
    changes = {"system": "sigma", "model.block_size": T, "model.vocab_size": 7}
    changes |= {"model.n_layer": 1, "model.n_embd": 12, "model.n_head": 2}
    system = build_system(configs.override(configs.base(), changes))
    params = jax.tree.map(lambda a: 8 * a, system.init(jax.random.key(0)))
    tokens, known = np.zeros((3, T), np.int32), np.arange(T) < np.ones((3, 1))
    fill = lambda *sampling, **options: system.sample(
        params, tokens, known, jax.random.key(1), SamplingParams(*sampling, **options)
    )
    bounded = fill("entropy-bounded-unmasking", entropy_bound=1e-9)
    surest = fill("ar", "low-entropy-first")
    np.testing.assert_array_equal(bounded.tokens_BT, surest.tokens_BT)
    np.testing.assert_array_equal(bounded.decode_step_BT, surest.decode_step_BT)
    np.testing.assert_allclose(bounded.log_p_BT, surest.log_p_BT, atol=1e-5)
