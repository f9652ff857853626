"""A batch of texts filled in an order of reading, through a cache that grows with it.

The loop around a sampler's compiled `advance`: it puts the texts into reading order,
and shows them to a callback every few forward passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.model import cpu, gpu
from jaxgpt.model.config import ModelConfig
from jaxgpt.sampling.state import (
    NO_LIMIT,
    Callback,
    Decoder,
    DecodeState,
    Draws,
    SamplerOutput,
    SamplingParams,
    grow,
    in_text_order,
    prefill,
)


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """Texts with gaps, and how to fill them: the arguments of `System.sample`.

    Attributes:
      tokens_BT: int32.
      prompt_mask_BT: bool, true where the token is given.
      open_BT: bool, true where a position is neither given nor to be filled: a model
        that reads in any order can leave it out.
      length_B: tokens of each row; what lies past them is left alone.
      draws: the random numbers of the rows.
      sampling: sampler, order, temperature and the like.
      callback: is shown the texts every few forward passes; false stops.
      every: forward passes between two calls of it.
    """

    tokens_BT: np.ndarray
    prompt_mask_BT: np.ndarray
    open_BT: np.ndarray
    length_B: np.ndarray
    draws: Draws
    sampling: SamplingParams
    callback: Callback | None
    every: int

    replace = dataclasses.replace

    @property
    def passes(self) -> jax.Array:
        """How many forward passes to make before the next look at the texts."""
        return jnp.int32(self.every if self.callback else NO_LIMIT)


def decode(
    decoder: Decoder,
    params: Any,
    advance: Callable[..., DecodeState],
    request: SampleRequest,
    order_BT: np.ndarray,
    config: ModelConfig,
    capacity: int,
    lookahead: int,
) -> SamplerOutput:
    """Fills the texts of a request.

    Args:
      advance: (decoder, params, state, decode_params, limit) -> a later state.
      order_BT: the positions in the order of reading: first those given, last those
        past the end of a row.
      capacity: cache slots of a text, apart from the begin token's.
      lookahead: slots that a forward pass takes past the decoded ones.
    """
    B, T = request.tokens_BT.shape
    params = gpu.for_sampling(params, config)
    open_BT = request.open_BT & (np.arange(T) < request.length_B[:, None])
    # What stays open is read last, past the end.
    late_BT = np.take_along_axis(open_BT, order_BT, 1)
    order_BT = np.take_along_axis(order_BT, late_BT.argsort(1, kind="stable"), 1)
    first = int(config.begin_token)
    slots = first + gpu.slots(T, capacity, config.kernels)
    tokens_BS = np.zeros((B, slots), np.int32)
    own_BS = np.zeros_like(tokens_BS)
    end = first + T
    tokens_BS[:, first:end] = np.take_along_axis(request.tokens_BT, order_BT, 1)
    own_BS[:, first:end] = order_BT
    if first:
        tokens_BS[:, 0], own_BS[:, 0] = config.vocab_size, config.block_size
    end_B = first + request.length_B - open_BT.sum(1)
    num_decoded_B = first + request.prompt_mask_BT.sum(1)
    decode_params = request.sampling.decode_params(end_B, request.draws)
    sizes: tuple[int, ...] = (slots,)
    if config.kernels == "cpu":
        sizes = cpu.cache_sizes(slots, B, config.n_embd)

    def fitting(num_decoded: int) -> int:
        return next(s for s in sizes if s >= end or s - lookahead > num_decoded)

    size = fitting(num_decoded_B.max())
    state = prefill(
        decoder,
        params,
        jnp.asarray(tokens_BS),
        jnp.asarray(own_BS),
        jnp.asarray(np.roll(own_BS, -1, 1)),
        jnp.asarray(num_decoded_B, jnp.int32),
        size,
    )
    while True:
        stop = jnp.int32(NO_LIMIT if size >= end else size - lookahead)
        until_full = dataclasses.replace(decode_params, stop=stop)
        state = advance(decoder, params, state, until_full, request.passes)
        larger = fitting(int(state.num_decoded_B.max()))
        if larger > size:
            size, state = larger, grow(decoder, params, state, larger)
            if not request.callback:
                continue
        filled = in_text_order(state, first, T)
        full = (np.asarray(state.num_decoded_B) >= end_B).all()
        if not request.callback or not request.callback(filled) or full:
            return filled
