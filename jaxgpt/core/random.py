"""Named random streams: every draw is a function of (seed, stream, index)."""

import jax

STREAMS = (
    "params",
    "dropout",
    "order",
    "data",
    "sample",
    "eval_order",
    "graph",
    "memory",
)


def stream(seed: int | jax.Array, name: str) -> jax.Array:
    """Returns the key of one named use of randomness."""
    return jax.random.fold_in(jax.random.key(seed), STREAMS.index(name))


def at(seed: int | jax.Array, name: str, index: int | jax.Array) -> jax.Array:
    """Returns the key of a stream at an index, such as the training step."""
    return jax.random.fold_in(stream(seed, name), index)
