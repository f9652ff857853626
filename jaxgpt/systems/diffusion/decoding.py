"""Unmasking: block by block, a pass at a time over the block that a row is in.

A pass draws a token for every mask of the block and keeps some of them: those whose
time has come (ancestral sampling), or those that the model is surest of. Ancestral
sampling is exact with one token a pass, the masks of a block in a random order: if each
token is unmasked at a uniform time, nothing happens between two of these times (the
first-hitting sampler, Zheng et al. 2024, arXiv 2409.02908).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxgpt.sampling import unmasking
from jaxgpt.sampling.logits import (
    sample_token,
    sampling_probs,
    token_log_prob,
    uniforms,
)
from jaxgpt.sampling.state import (
    Cache,
    DecodeParams,
    ModelDecoder,
    SamplerOutput,
    SamplingParams,
)

NEVER = 2**30


def rule(sampling: SamplingParams) -> unmasking.Rule:
    """Returns the rule of `sampling.sampler`; rank "time" is ancestral sampling."""
    if sampling.sampler in ("", "ancestral"):
        return unmasking.Rule("time", 0, 0.0)
    return unmasking.rule(sampling)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UnmaskingState:
    """A batch of texts, partly unmasked.

    Attributes:
      tokens_BS: int32, in the order of the text; V where masked.
      time_BS: when ancestral sampling unmasks each token: at the lowest first.
      block_B: the block that a row is in.
      cache: keys and values of the blocks before it; None if there is only one.
      num_forward_passes_B: passes while the row was incomplete.
      tokens_processed_B: tokens that these computed.
      log_p_BS: log-probability of each new token, at temperature 1 and among all.
      decode_step_BS: the pass that drew each token; 0 where none did.
    """

    tokens_BS: jax.Array
    time_BS: jax.Array
    block_B: jax.Array
    cache: Cache
    num_forward_passes_B: jax.Array
    tokens_processed_B: jax.Array
    log_p_BS: jax.Array
    decode_step_BS: jax.Array


def _missing(tokens_BS: jax.Array, end_B: jax.Array, V: int) -> jax.Array:
    """Returns which masks are to be replaced: those of the text, [B, S]."""
    return (tokens_BS == V) & (jnp.arange(tokens_BS.shape[1]) < end_B[:, None])


@functools.partial(jax.jit, static_argnames=("graphdef", "length", "num_steps"))
def start(
    graphdef: nnx.GraphDef,
    params: dict,
    tokens_BS: jax.Array,
    decode_params: DecodeParams,
    *,
    length: int,
    num_steps: int,
) -> UnmaskingState:
    """Returns the state before the first pass.

    Args:
      tokens_BS: whole blocks; V where masked.
      decode_params: where texts end, and the keys of the rows.
      length: of a block.
      num_steps: of ancestral sampling, for each block; 0 unmasks one by one.
    """
    model = nnx.merge(graphdef, params)
    B, S = tokens_BS.shape
    missing_BS = _missing(tokens_BS, decode_params.end_B, model.config.vocab_size)
    noise_BS = uniforms(jax.vmap(lambda key: jax.random.fold_in(key, 1))(
        decode_params.key_B), (B, S))  # fmt: skip
    time_BS = jnp.argsort(jnp.argsort(noise_BS, -1), -1)
    if num_steps:
        time_BS = (noise_BS * num_steps).astype(int)
    cache = None
    if length < S:
        decoder, block_S = ModelDecoder(graphdef), np.arange(S) // length
        causal = jnp.asarray(block_S[:, None] >= block_S)
        # This also writes blocks that still have masks; each is overwritten before a
        # later block attends to it.
        where = (jnp.broadcast_to(jnp.arange(S), (B, S)),)
        cache = decoder.init_cache(params, B, S)
        cache = decoder.forward(params, tokens_BS, where, cache, 0, causal)[1]
    zeros_BS = jnp.zeros((B, S), jnp.int32)
    return UnmaskingState(
        tokens_BS=tokens_BS,
        time_BS=time_BS,
        block_B=missing_BS.argmax(-1) // length,
        cache=cache,
        num_forward_passes_B=zeros_BS[:, 0],
        tokens_processed_B=zeros_BS[:, 0],
        log_p_BS=zeros_BS.astype(jnp.float32),
        decode_step_BS=zeros_BS,
    )


@functools.partial(
    jax.jit,
    static_argnames=("graphdef", "length", "rank", "most"),
    donate_argnames="state",
)
def advance(
    graphdef: nnx.GraphDef,
    params: dict,
    state: UnmaskingState,
    decode_params: DecodeParams,
    limit: jax.Array,
    bound: jax.typing.ArrayLike,
    *,
    length: int,
    rank: str,
    most: int,
) -> UnmaskingState:
    """Unmasks until the rows are complete, or each has made `limit` passes.

    Args:
      state: from `start`; donated.
      decode_params: temperature and the like, and where texts end.
      limit: passes to make, at most.
      rank, most, bound: of the `Rule`.
    """
    model = nnx.merge(graphdef, params)
    # Drawn for positions, before the loop, so that a row's depend on its key alone.
    uniform_BS = uniforms(decode_params.key_B, state.tokens_BS.shape)
    last_B = state.num_forward_passes_B + limit

    def missing(state):
        return _missing(state.tokens_BS, decode_params.end_B, model.config.vocab_size)

    def going(state):
        return (missing(state).any(1) & (state.num_forward_passes_B < last_B)).any()

    def body(state):
        first_B = state.block_B * length
        own_BL = first_B[:, None] + jnp.arange(length)
        take = lambda array_BS: jnp.take_along_axis(array_BS, own_BL, 1)
        missing_BS = missing(state)
        active_B, missing_BL = missing_BS.any(1), take(missing_BS)
        logits_BLV, cache = model(
            take(state.tokens_BS), (own_BL,), cache=state.cache, start=first_B
        )
        p_BLV = sampling_probs(logits_BLV, decode_params)
        drawn_BL = sample_token(take(uniform_BS), p_BLV)
        if rank == "time":
            time_BL = jnp.where(missing_BL, take(state.time_BS), NEVER)
            now_BL = missing_BL & (time_BL == time_BL.min(1, keepdims=True))
        else:
            perm_BL, count_B = unmasking.surest(p_BLV, missing_BL, rank, most, bound)
            now_BL = jnp.argsort(perm_BL, -1) < count_B[:, None]
        num_forward_passes_B = state.num_forward_passes_B + active_B

        def put(array_BS, new_BL):
            new_BL = jnp.where(now_BL, new_BL, take(array_BS))
            return array_BS.at[jnp.arange(len(new_BL))[:, None], own_BL].set(new_BL)

        return dataclasses.replace(
            state,
            tokens_BS=put(state.tokens_BS, drawn_BL),
            # A block moves on only after a pass over it without masks, which leaves the
            # keys and values that later blocks are to see.
            block_B=state.block_B + (active_B & ~missing_BL.any(1)),
            cache=cache,
            num_forward_passes_B=num_forward_passes_B,
            tokens_processed_B=state.tokens_processed_B + length * active_B,
            log_p_BS=put(state.log_p_BS, token_log_prob(logits_BLV, drawn_BL)),
            decode_step_BS=put(state.decode_step_BS, num_forward_passes_B[:, None]),
        )

    return lax.while_loop(going, body, state)


def output(
    state: UnmaskingState, V: int, tokens_BT: np.ndarray, beyond_BT: np.ndarray
) -> SamplerOutput:
    """Returns the texts as they stand.

    Args:
      tokens_BT: what the batch was given.
      beyond_BT: true past the end of a text, where that is left alone.
    """
    T = tokens_BT.shape[1]
    found_BT = np.asarray(state.tokens_BS)[:, :T]
    decoded_BT = (found_BT != V) & ~beyond_BT
    found_BT = np.where(decoded_BT, found_BT, np.where(beyond_BT, tokens_BT, 0))
    decode_step_BT = np.asarray(state.decode_step_BS)[:, :T]
    # What is given comes first; tokens of one call, and those to come, left to right.
    order_BT = np.argsort(np.where(decoded_BT, decode_step_BT, NEVER), 1, kind="stable")
    return SamplerOutput(
        tokens_BT=found_BT,
        decoded_BT=decoded_BT,
        log_p_BT=np.asarray(state.log_p_BS)[:, :T],
        decode_step_BT=decode_step_BT,
        rank_BT=np.argsort(order_BT, 1).astype(np.int32),
        num_forward_passes_B=np.asarray(state.num_forward_passes_B),
        tokens_processed_B=np.asarray(state.tokens_processed_B),
    )
