"""Generation: what every sampler shares, and the cached autoregressive one.

A sequence is held in reading order: slot t is the t-th token read, wherever it stands
in the text; left to right is the identity order. A sampler is a compiled loop over
model calls from a `State` to a later one, so that it can be run to its end at once or
a few calls at a time, to be watched.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxgpt.core import cache as kv
from jaxgpt.core.positions import Positions, in_order

Cache = Any


class Reader(Protocol):
    """A model as samplers see it: it reads tokens and says what comes next."""

    def empty(self, params: Any, batch: int, slots: int) -> Cache:
        """Returns a cache in which nothing has been read: a tree of arrays [B, ...]."""

    def read(
        self,
        params: Any,
        tokens_BT: jax.Array,
        where: Positions,
        cache: Cache,
        start: jax.Array,
        among_TT: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Returns logits [B, T, V] after T tokens, and the cache with them.

        The tokens take the slots start .. start + T and see those before; among_TT
        (or [B, 1, T, T]) says which of themselves they see, None is causal.
        """


@dataclasses.dataclass(frozen=True)
class Network:
    """The Reader of a LanguageModel."""

    graphdef: nnx.GraphDef

    def empty(self, params: dict, batch: int, slots: int) -> kv.KVCache:
        """Returns zeros."""
        return kv.empty(nnx.merge(self.graphdef, params).config, batch, slots)

    def read(self, params, tokens_BT, where, cache, start, among_TT=None):
        """See `Reader.read`."""
        model = nnx.merge(self.graphdef, params)
        where = where[: len(in_order(1, model.config))]
        x_BTD, cache = model.extend(tokens_BT, where, cache, start, among_TT)
        return model.head(x_BTD), cache


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["end", "key", "temperature", "top_p"],
    meta_fields=["top_k", "nucleus"],
)
@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be sampled; only top_k and nucleus compile a program of their own.

    Attributes:
      end: one past the last slot to fill.
      key: row b draws from fold_in(key, b), so that rows do not depend on the batch.
      temperature: 0 takes the likeliest token.
      top_p: only the likeliest tokens that together reach this probability are drawn.
      top_k: only the k likeliest tokens are drawn; 0 allows all.
      nucleus: whether top_p is looked at.
    """

    end: jax.Array
    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: int = 0
    nucleus: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """How far a batch of sequences is.

    Attributes:
      tokens_BS: int32, in reading order; the first filled_B of a row are settled.
      own_BS, target_BS: the position of each slot's token, and of the next slot's.
      filled_B: slots settled.
      cache: of the reader: keys and values of all settled slots but the last.
      calls_B: model calls made while the row was not yet full.
      evaluations_B: tokens those calls had to look at for this row.
      log_p_BS: log-probability of each generated token, at temperature 1 and among all.
      call_BS: the number of the call that settled each slot; 0 where it was given.
      lookahead_B: how many tokens a burst tries next.
    """

    tokens_BS: jax.Array
    own_BS: jax.Array
    target_BS: jax.Array
    filled_B: jax.Array
    cache: Cache
    calls_B: jax.Array
    evaluations_B: jax.Array
    log_p_BS: jax.Array
    call_BS: jax.Array
    lookahead_B: jax.Array

    replace = dataclasses.replace


FIRST_LOOKAHEAD = 8


@functools.partial(jax.jit, static_argnames=("reader",))
def start(
    reader: Reader,
    params: Any,
    tokens_BS: jax.Array,
    own_BS: jax.Array,
    target_BS: jax.Array,
    filled_B: jax.Array,
) -> State:
    """Returns the state in which the first filled_B slots of each row are given.

    They are read in one pass over all S slots: the slots not yet settled hold
    nonsense, and each is written again before a later token sees it.
    """
    B, S = tokens_BS.shape
    where = (own_BS, target_BS)

    def prefill(cache):
        return reader.read(params, tokens_BS, where, cache, jnp.int32(0))[1]

    cache = reader.empty(params, B, S)
    cache = lax.cond(filled_B.max() > 1, prefill, lambda cache: cache, cache)
    count_B = jnp.zeros(B, jnp.int32)
    return State(
        tokens_BS=tokens_BS,
        own_BS=own_BS,
        target_BS=target_BS,
        filled_B=filled_B.astype(jnp.int32),
        cache=cache,
        calls_B=count_B,
        evaluations_B=count_B,
        log_p_BS=jnp.zeros((B, S), jnp.float32),
        call_BS=jnp.zeros((B, S), jnp.int32),
        lookahead_B=count_B + FIRST_LOOKAHEAD,
    )


def distribution(logits: jax.Array, task: Task) -> jax.Array:
    """Returns the probabilities [..., V] that tokens are drawn with.

    Args:
      logits: [..., V], unnormalised log-probabilities.
      task: temperature, top-k and top-p, applied in this order.
    """
    # A near-zero temperature would overflow instead of picking the likeliest.
    scaled = logits / jnp.maximum(task.temperature, 1e-6)
    if task.top_k:
        count = min(task.top_k, logits.shape[-1])
        least = lax.top_k(scaled, count)[0][..., -1:]
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    p = jax.nn.softmax(scaled, -1)
    if task.nucleus:
        ordered = jnp.sort(p, -1, descending=True)
        before = jnp.cumsum(ordered, -1) - ordered
        least = jnp.where(before < task.top_p, ordered, 2).min(-1, keepdims=True)
        p = jnp.where(p < least, 0, p)
        p = p / p.sum(-1, keepdims=True)
    greedy = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=p.dtype)
    return jnp.where(task.temperature > 0, p, greedy)


def draw(uniform: jax.Array, p: jax.Array) -> jax.Array:
    """Returns int32 tokens [...] drawn from unnormalised p [..., V].

    Args:
      uniform: [...], in [0, 1); the cumulative distribution is inverted at it.
      p: non-negative weights, not all zero.
    """
    cdf = jnp.cumsum(p, -1)
    reached = cdf <= uniform[..., None] * cdf[..., -1:]
    # Rounding may reach past the last token that has any weight.
    last = p.shape[-1] - 1 - (p > 0)[..., ::-1].argmax(-1)
    return jnp.minimum(reached.sum(-1), last).astype(jnp.int32)


def uniforms(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uniform numbers [B, ...]; row b's depend on (key, b) alone.

    Samplers draw them before their loop: Threefry inside it would cost as much as
    the model.
    """
    row = lambda b: jax.random.uniform(jax.random.fold_in(key, b), shape[1:])
    return jax.vmap(row)(jnp.arange(shape[0]))


def log_probability(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the log-probability of tokens [...] under logits [..., V]."""
    picked = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return picked - jax.nn.logsumexp(logits, -1)


@functools.partial(jax.jit, static_argnames=("reader", "cached"), donate_argnums=2)
def autoregress(
    reader: Reader,
    params: Any,
    state: State,
    task: Task,
    limit: jax.Array,
    *,
    cached: bool = True,
) -> State:
    """Fills slots one after another, for at most limit calls.

    All rows stand at the same slot: a row that was given more waits, reading its own.

    Args:
      reader, params: a model that can be read.
      state: donated.
      task: what to sample.
      limit: calls to make, at most.
      cached: False computes every token from the whole sequence: the oracle.
    """
    uniform_BS = uniforms(task.key, state.tokens_BS.shape)
    B, S = state.tokens_BS.shape
    first = state.filled_B.min()

    def slot(array, t):
        return lax.dynamic_slice_in_dim(array, t, 1, axis=1)

    def body(state):
        t = state.filled_B.min() - 1
        where, cache = (state.own_BS, state.target_BS), state.cache
        if cached:
            here = tuple(slot(index, t) for index in where)
            tokens_B1 = slot(state.tokens_BS, t)
            logits, cache = reader.read(params, tokens_B1, here, cache, t)
            logits_BV = logits[:, 0]
        else:
            nothing = reader.empty(params, B, S)
            whole = state.tokens_BS
            logits, _ = reader.read(params, whole, where, nothing, jnp.int32(0))
            logits_BV = slot(logits, t)[:, 0]
        drawn_B = draw(slot(uniform_BS, t + 1)[:, 0], distribution(logits_BV, task))
        fills_B = state.filled_B == t + 1
        next_B = jnp.where(fills_B, drawn_B, slot(state.tokens_BS, t + 1)[:, 0])
        log_p_B = jnp.where(fills_B, log_probability(logits_BV, next_B), 0)
        calls_B = state.calls_B + fills_B
        put = lambda array, new_B: lax.dynamic_update_slice(
            array, new_B[:, None].astype(array.dtype), (0, t + 1)
        )
        return state.replace(
            tokens_BS=put(state.tokens_BS, next_B),
            filled_B=state.filled_B + fills_B,
            cache=cache,
            calls_B=calls_B,
            evaluations_B=state.evaluations_B + fills_B,
            log_p_BS=put(state.log_p_BS, log_p_B),
            call_BS=put(state.call_BS, jnp.where(fills_B, calls_B, 0)),
        )

    end = jnp.minimum(task.end, first + limit)
    return lax.while_loop(lambda state: state.filled_B.min() < end, body, state)


@functools.partial(jax.jit, static_argnames=("graphdef",))
def slide(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_BN: jax.Array,
    first: jax.Array,
    task: Task,
) -> tuple[jax.Array, jax.Array]:
    """Goes on past the block: each token from the last block_size, read left to right.

    The window's positions shift with every token, so nothing can be cached: a token
    costs a whole block (nanoGPT's generate).

    Args:
      graphdef, params: a LanguageModel, split.
      tokens_BN: int32, N above block_size; the first `first` are given.
      first: at least block_size.
      task: what to sample; its end is N.

    Returns:
      tokens_BN filled to its end, and the log-probabilities [B, N] of the new tokens.
    """
    model = nnx.merge(graphdef, params)
    B, N = tokens_BN.shape
    block = model.config.block_size
    uniform_BN = uniforms(task.key, (B, N))

    def body(t, carry):
        tokens, log_p = carry
        window = lax.dynamic_slice(tokens, (0, t - block), (B, block))
        x_BTD = model.transformer(model.embed(window, in_order(block, model.config)))
        logits_BV = model.head(x_BTD[:, -1:])[:, 0]
        next_B = draw(uniform_BN[:, t], distribution(logits_BV, task))
        log_p_B1 = log_probability(logits_BV, next_B)[:, None].astype(log_p.dtype)
        return (
            lax.dynamic_update_slice(tokens, next_B[:, None], (0, t)),
            lax.dynamic_update_slice(log_p, log_p_B1, (0, t)),
        )

    return lax.fori_loop(first, N, body, (tokens_BN, jnp.zeros((B, N), jnp.float32)))
