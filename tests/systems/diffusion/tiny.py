"""A random masked diffusion model of a few tokens, and its law by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config as configs
from jaxgpt.sampling.logits import sampling_probs
from jaxgpt.sampling.state import DEFAULT_PARAMS, Draws
from jaxgpt.systems.registry import build_system


def tiny(T=3, V=3, length=0, **changes):
    """A random model, sure of some tokens, and its parameters."""
    fields = {
        "system": "masked-diffusion",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": T,
        "model.vocab_size": V,
        "diffusion.block_length": length,
    }
    config = configs.override(configs.base(), fields | changes)
    system = build_system(configs.validate(config))
    params = system.init(jax.random.key(4))
    return system, jax.tree.map(lambda a: a * 10 if a.ndim > 1 else a, params)


def texts(T, V):
    return np.array(list(itertools.product(range(V), repeat=T)), np.int32)


def true_log_p(logits, found, sampling=DEFAULT_PARAMS):
    """log p [M, N, T] of each token of N texts under M masks, by logits(texts, mask).

    The token of a place that is not masked has a value too, which means nothing.
    """
    T = found.shape[1]
    task = sampling.decode_params(T, Draws.of(jax.random.key(0), 1))
    result = {}
    for mask in itertools.product((False, True), repeat=T):
        masked = np.broadcast_to(np.array(mask), found.shape)
        p = sampling_probs(logits(jnp.asarray(found), jnp.asarray(masked)), task)
        chosen = np.take_along_axis(np.asarray(p, np.float64), found[..., None], 2)
        with np.errstate(divide="ignore"):
            result[mask] = np.log(chosen[..., 0])
    return result


def orders(T, length, end):
    """Every order in which `end` of T tokens are unmasked, block by block."""
    places = range(min(T, end))
    blocks = [[t for t in places if t // length == b] for b in range(-(-T // length))]
    for parts in itertools.product(*map(itertools.permutations, blocks)):
        yield list(itertools.chain(*parts))


def log_p_in_order(log_p, order, T):
    """log p [N] of N texts whose tokens are unmasked one by one in an order."""
    masked, total = [True] * T, 0
    for place in order:
        total = total + log_p[tuple(masked)][:, place]
        masked[place] = False
    return total
